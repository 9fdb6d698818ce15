from tunalab.sweeps.state import dry_run


def test_dry_run_lists_every_run_and_adds_up(cells, capsys):
    def describe(cell):
        return {
            "ratio": cell.factors["objective.masking.ratio"],
            "parameters": 700_000,
            "tokens": 2_000_000,
            "flops": 8e12,
            "minutes": 4.0,
        }

    text = dry_run(cells, describe, parallel=2)
    assert capsys.readouterr().out == text + "\n"
    lines = text.splitlines()
    assert lines[0].split() == ["run", "ratio", "parameters", "tokens", "flops", "minutes"]
    assert [line.split()[0] for line in lines[1:5]] == [cell.name for cell in cells]
    assert lines[1].split()[1:] == ["0.0", "700,000", "2,000,000", "8.00e+12", "4.0"]
    assert lines[5].split() == ["4", "runs", "8,000,000", "3.20e+13", "16.0"]
    assert lines[6] == "about 8.0 minutes with 2 run(s) at a time"
    assert not any(cell.run_dir.exists() for cell in cells)
