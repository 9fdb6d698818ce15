"""Reports: what they must say of unequal runs, that they hold everything in one file, and that committed ones are fresh."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.printed import assert_file_alike, assert_printed_alike
from tests.synthetic import synthetic_record, synthetic_records

from tunalab.analysis import report_results, report_runs
from tunalab.analysis.dynamics import write_dynamics
from tunalab.analysis.report import Beside, build, samples, to_html, to_markdown
from tunalab.analysis.report_results import measure, passes, sections
from tunalab.analysis.report_runs import budget, cost, failures, made, reproduce, run_command, verdict
from tunalab.cli import main
from tunalab.records.record import read_record, write_record
from tunalab.records.samples import Samples
from tunalab.settings.loading import config_hash, from_plain, load_config

ROOT = Path(__file__).parents[2]
HEADERS = sorted([*(ROOT / "sweeps").glob("*.yaml"), *(ROOT / "experiments").glob("*.yaml")])
REPORTS = sorted((ROOT / "results").rglob("report.md"))


def sampled(tokens: int = 4_000_000, prompts: tuple[str, ...] = ("a red ring", "two <b> & blue")) -> Samples:
    generator = np.random.default_rng(tokens)
    return Samples(tokens, prompts, tuple(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in prompts))


@pytest.fixture(scope="module")
def made_report():
    records = [replace(r, run=replace(r.run, sweep="figure6")) for r in synthetic_records(kinds=2)]
    beside = Beside({r.run.name: sampled() for r in records})
    return build(records, Path("results/somewhere"), "tunalab report --records results/somewhere", beside)


def test_the_page_is_one_file_without_network_or_script(made_report):
    page = to_html(made_report)
    assert len(page.encode()) < 1_500_000
    assert not re.search(r"<script|<link|@import|url\(|src=\"(?!data:)|href=\"(?!#)", page)
    assert page.count("data:image/png;base64,") == len(made_report.sections[4].pictures) + 6 * 2
    assert "two &lt;b&gt; &amp; blue" in page and "<b> &" not in page
    for section in made_report.sections:
        assert f'<h2 id="{section.anchor}">{section.title}</h2>' in page and f'href="#{section.anchor}"' in page
    assert page.count("<section>") == page.count("</section>") == len(made_report.sections)


def test_a_report_has_its_sections_in_the_order_of_doubt(made_report):
    assert [section.title for section in made_report.sections] == [
        *("In short", "Question", "Settings that differ", "Budget", "Curves", "Final accuracies"),
        *("Crossings", "Areas under the curves", "Power laws", "Effects"),
        *("Held-out losses and PSNR", "Samples for the same prompts and noise", "Failures and interruptions", "Cost", "Versions"),
        "Commands",
    ]
    text = to_markdown(made_report)
    assert text.startswith(
        "<!-- made by: tunalab report --records results/somewhere -->\n\n# somewhere: Tuna, Tuna-R, Tuna-2; 6 runs, 2 seeds"
    )
    assert "**Question:** how does accuracy grow with data" in text and "From the header of `sweeps/figure6.yaml`." in text
    assert text == to_markdown(made_report) and to_html(made_report) == to_html(made_report)


def test_equal_runs_are_said_to_be_equal():
    level, printed = verdict(synthetic_records())
    assert level == "equal" and printed.startswith("**Equal**: all runs share tokens, seeds")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda r: replace(r, totals=replace(r.totals, tokens=9_000_000)), "tokens"),
        (lambda r: replace(r, run=replace(r.run, seed=7)), "seeds"),
        (lambda r: replace(r, run=replace(r.run, finished=False)), "finished"),
        (lambda r: replace(r, environment=r.environment | {"accelerator": "H100"}), "precision"),
        (lambda r: replace(r, environment=r.environment | {"processes": 8}), "data order of seed 1"),
        (lambda r: replace(r, config=r.config | {"components_seed": 5}), "components_seed of seed 1"),
        (lambda r: replace(r, config=r.config | {"optimizer": r.config["optimizer"] | {"ema": 0.5}}), "setting optimizer.ema"),
    ],
)
def test_what_breaks_a_comparison_stands_loudly_at_the_top(change, what):
    records = synthetic_records()
    level, printed = verdict([*records[:-1], change(records[-1])])
    assert level == "broken" and printed.startswith("**NOT EQUAL: ")
    assert f"| **breaks** | {what} |" in printed or f"| varied | {what} |" in printed


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"commit": "abc"}, "code"), ({"threads": 4}, "threads"), ({"packages": {"torch": "3"}}, "version of torch")],
)
def test_what_may_be_rounding_is_a_doubt(changed, what):
    records = synthetic_records()
    level, printed = verdict([*records[:-1], replace(records[-1], environment=records[-1].environment | changed)])
    assert level == "doubt" and f"| doubt | {what} |" in printed


def test_what_a_sweep_varies_on_purpose_is_no_breach():
    level, _ = verdict(synthetic_records(("tuna2",), 2, (0.0, 0.5)))
    assert level == "equal", "a setting is what is compared"
    rows = synthetic_records(("tuna2",), 2)
    other = [replace(r, config=r.config | {"data": r.config["data"] | {"rows": 8}}) for r in rows]
    level, printed = verdict([*rows, *other])
    assert level == "varied" and "| varied | data order of seed 0 |" in printed


def test_unequal_compute_is_said_also_of_equal_runs():
    first, *others = synthetic_records(seeds=1)
    dear = replace(first, totals=replace(first.totals, flops=2 * first.totals.flops))
    assert "training FLOPs up to 2.00 times the least (a token)" in verdict([dear, *others])[1]
    assert "(x 2.00)" in budget([dear, *others]).text


def test_the_settings_of_arms_and_front_ends_are_told():
    text = report_runs.settings(synthetic_records(("tuna2", "tuna_r"), 2, (0.0, 0.5))).text
    assert "| Tuna-2 | 0.5 | 0, 1 |" in text and "`objective.masking.ratio`" in text and "`frontend.encoder`" in text
    assert re.search(r"\n\d{3} settings are equal in all 8 runs", text)


def test_headers_become_paragraphs(tmp_path):
    file = tmp_path / "x.yaml"
    lines = [
        "# Question:  is [this] a <question>?",
        "#            It is.",
        "# Command:   make it    (now)",
        "#            and [that]",
        "#",
    ]
    file.write_text("\n".join([*lines, "# Prose", "# goes on.", "key: 1", "# no"]))
    printed = "**Question:** is \\[this] a \\<question>? It is.\n\n"
    printed += "**Command:**\n\n```\nmake it    # now\nand [that]\n```\n\nProse goes on."
    assert report_runs.header(file) == printed
    record = synthetic_record()
    unknown = report_runs.question([replace(record, run=replace(record.run, experiment="elsewhere"))], ["nowhere"])
    assert "No file says it" in unknown.text and "`sweeps/nowhere.yaml`, `experiments/elsewhere.yaml`" in unknown.text


@pytest.mark.parametrize("file", HEADERS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_commands_of_shipped_headers_can_be_pasted(file):
    blocks = re.findall(r"\*\*Command:\*\*\n\n```\n(.*?)\n```", report_runs.header(file), re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] in ("make", "tunalab", "torchrun") and not any(letter in word for word in words for letter in "()<>|&;"), (
            line
        )


def test_power_laws_are_those_of_the_table(tmp_path):
    records = synthetic_records(kinds=2)
    write_dynamics(records, tmp_path, "x")
    (section,) = [section for section in sections(measure(records)) if section.title == "Power laws"]
    table = (tmp_path / "power_laws.md").read_text()
    assert_printed_alike(table, f"<!-- made by: x -->\n\n{section.text}\n")
    assert section.folded


def test_records_of_two_sweeps_have_two_questions_and_two_commands():
    records = [synthetic_record(), synthetic_record("tuna_r")]
    printed = report_runs.question(records, ["front_ends", "encoder"]).text
    assert printed.count("**Question:**") == 2 and "`sweeps/front_ends.yaml`" in printed and "`sweeps/encoder.yaml`" in printed
    commands = reproduce(records, ["front_ends", "encoder"], Path("results/x")).text
    assert "\ntunalab sweep front_ends\ntunalab sweep encoder\n" in commands and "at commit unknown. `git checkout`" in commands
    modified = replace(records[0], environment=records[0].environment | {"commit": "f" * 40, "dirty": True})
    printed = reproduce([modified, records[1]], [], Path("results/x")).text
    assert (
        f"at commit {'f' * 12}, modified; unknown. `git checkout` it" in printed and "modified, which is not on record" in printed
    )


def test_costs_add_up_by_machine():
    a, b = synthetic_records(("tuna2",), 2)
    b = replace(b, environment=b.environment | {"accelerator": "H100", "processes": 8})
    text = cost([a, a, b]).text
    assert "| **all on Abacus** |  | 4.80e+13 | 13.3 | 13.3 |" in text and "8 x H100" in text
    assert f"| {400.0037 / 60:.1f} | {8 * 400.0037 / 60:.1f} |" in text


def test_interruptions_and_unfinished_runs_are_named():
    records = synthetic_records(("tuna2",), 2)
    half = replace(records[0], run=replace(records[0].run, finished=False))
    name = records[1].run.name
    text = failures([half, replace(records[1], attempts={"starts": 3, "killed": 2})]).text
    assert "1 of 2 runs on record are finished." in text and f"- {half.run.name}: stands at" in text
    assert f"| {name} | 3 | 2 |" in text and "No history of starts is on record for 1 of 2 runs" in text
    assert "2 of 2 runs were started once" in failures([replace(record, attempts={"starts": 1}) for record in records]).text


def test_a_part_of_a_sweep_is_no_sweep():
    records = synthetic_records(("tuna2",), 2)
    names = [record.run.name for record in records]
    level, printed = verdict(records, {"wide": [*names, "away-seed0"], "here": names})
    assert level == "doubt" and printed.startswith("**INCOMPLETE: 2 of 3 runs of the sweep wide.** ")
    text = failures(records, {"wide": [*names, "away-seed0"], "here": names}).text
    assert "2 of 2 runs on record are finished; 2 of 3 runs of the sweep wide; 2 of 2 runs of the sweep here." in text
    assert "**Not here, or not finished:** away-seed0." in text
    half = replace(records[1], run=replace(records[1].run, finished=False))
    assert "1 of 2 runs of the sweep here" in verdict([records[0], half], {"here": names})[1]
    assert verdict(records, {"here": names}) == verdict(records) and verdict(records)[0] == "equal"


def test_the_command_counts_the_runs_of_the_sweeps_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("experiments", "variants", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    for variant in ("tuna2", "tuna_r"):
        record = synthetic_record(variant, kinds=0, name=f"{variant}-seed0")
        write_record(tmp_path / f"here/{variant}-seed0.json", replace(record, run=replace(record.run, sweep="figure6")))
    assert main(["report", "--records", "here", "--markdown"]) == 0
    text = (tmp_path / "here/report.md").read_text()
    assert "\n**INCOMPLETE: 2 of 28 runs of the sweep figure6.** " in text
    assert "**Not here, or not finished:** tuna-seed0, tuna_r_frozen-seed0, tuna2-seed1, tuna_r-seed1, tuna-seed1, " in text


def test_versions_stand_by_run_where_they_differ():
    records = synthetic_records(("tuna2",), 2)
    records[1] = replace(records[1], environment=records[1].environment | {"commit": "f" * 40, "dirty": True})
    text = made(records).text
    assert f"| code | {'f' * 12}, modified | 1: {records[1].run.name} |" in text and "| precision | fp32 | all |" in text


def test_crossings_and_areas_are_between_front_ends_of_one_setting():
    found = measure(synthetic_records(kinds=1))
    assert passes(found).startswith("Clear crossings, ") and "of 3 pairs of curves" in passes(found)
    assert [section.title for section in sections(found)] == ["Crossings", "Areas under the curves", "Power laws"]
    alone = measure(synthetic_records(("tuna2",), 2, (0.0, 0.5), kinds=1))
    assert passes(alone) == "" and [section.title for section in sections(alone)] == ["Areas under the curves", "Power laws"]


def test_runs_without_questions_have_a_report_too():
    records = [replace(r, points=[replace(p, benchmarks={}) for p in r.points]) for r in synthetic_records(seeds=1)]
    report = build(records, Path("results/x"), "x", Beside())
    texts = {section.title: section.text for section in report.sections}
    assert texts["Curves"].startswith("None: ") and texts["Final accuracies"].startswith("None: ")
    assert "| one-step PSNR at t = 0.3, dB | 14.2 |" in texts["Held-out losses and PSNR"] and "NOT EQUAL" not in report.verdict
    assert report_results.evaluations(records, ROOT / "results/published.csv") is None


@pytest.mark.parametrize(
    ("variants", "ratios", "seeds"),
    [
        (("tuna2",), (0.25,), 1),
        (("tuna2",), (0.0, 0.5), 2),
        (("tuna2", "tuna_r"), (0.25,), 2),
        (("tuna2", "tuna_r"), (0.0, 0.5), 1),
    ],
)
def test_every_shape_of_a_sweep_has_a_report(variants, ratios, seeds):
    report = build(synthetic_records(variants, seeds, ratios, kinds=1), Path("results/x"), "x", Beside(), draw=False)
    titles = [section.title for section in report.sections]
    assert report.level == "equal" and ("Effects" in titles) == (len(variants) * len(ratios) > 1)
    assert ("Crossings" in titles) == (len(variants) > 1) and not any(section.pictures for section in report.sections)


def test_samples_stand_side_by_side_for_common_prompts():
    records = synthetic_records()
    expected = {r.run.name: sampled(prompts=("one", "two", "three")) for r in records[:2]}
    expected[records[2].run.name] = sampled(prompts=("three", "one"))
    section = samples(records, expected)
    assert list(section.samples) == ["Tuna", "Tuna-R", "Tuna-2"] and {one.prompts for one in section.samples.values()} == {
        ("one", "three")
    }
    np.testing.assert_array_equal(section.samples["Tuna"].images[1], expected[records[0].run.name].images[2])
    np.testing.assert_array_equal(section.samples["Tuna-2"].images[1], expected[records[2].run.name].images[0])
    both = samples(records, {r.run.name: sampled() for r in records}).samples
    assert list(both) == [f"{name}, seed {seed}" for name in ("Tuna", "Tuna-R", "Tuna-2") for seed in (0, 1)]
    assert samples(records, {}).text.startswith("None: ")


# Trained before each encoder had a rate of its own and components crossed with seeds (LOG.md, 2026-11-30): settings that today's
# variants do not give. They leave this list as they are trained again.
EARLIER = {
    "encoder_rate_earlier",
    "reconstruction",
}
ELSEWHERE = {"own_data"}  # of an experiment that is not in experiments/
FOLDERS = sorted(
    {path.parent for path in (ROOT / "results").rglob("*-seed0.json")}
    - {path for name in EARLIER | ELSEWHERE for path in (ROOT / "results").rglob(name)}
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_command_of_a_committed_run_gives_its_configuration(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    record = read_record(sorted(folder.glob("*.json"))[-1])
    words = shlex.split(run_command(record))
    assert words[:3] == ["tunalab", "train", "--experiment"] and words[4] == "--variant" and f"seed={record.run.seed}" in words
    files = ROOT / f"experiments/{words[3]}.yaml", ROOT / f"variants/{words[5]}.yaml"
    assert config_hash(load_config(*files, words[6:])) == config_hash(from_plain(record.config))


def test_a_configuration_that_no_settings_give_is_said():
    record = synthetic_record()
    del record.config["stages"]["sft"]
    assert run_command(record).startswith("# ") and "no settings over scenes and tuna2" in run_command(record)
    old = replace(record, config=record.config | {"revision": 1})
    assert "today's settings refuse" in run_command(old)
    assert "tunalab sweep figure6" in reproduce([record], ["figure6"], Path("results/figure6")).text


def test_the_command_writes_both_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for variant in ("tuna2", "tuna_r"):
        write_record(tmp_path / "results" / "here" / f"{variant}-seed0.json", synthetic_record(variant, kinds=1))
    assert main(["report", "--records", "results/here"]) == 0
    assert capsys.readouterr().out.splitlines() == ["wrote results/here/report.md", "wrote results/here/report.html"]
    assert (tmp_path / "results/here/report.html").read_text().startswith("<!doctype html>")
    assert main(["report", "--records", "results/nothing"]) == 2
    assert "no records" in capsys.readouterr().err


def test_what_cannot_be_written_or_read_is_told_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_record(tmp_path / "here" / "tuna2-seed0.json", synthetic_record(kinds=1))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for command, words in (
        ("report --records here --out folder", "--out folder is a folder"),
        ("report --records here --out file/report.html", "file is a file"),
        ("report --records here --out page.md", "--out page.html, or --markdown"),
        ("report --records here --runs nowhere", "--runs nowhere"),
        ("figure curves --records here --out file", "--out file is a file"),
        ("table --records here --out file", "--out file is a file"),
        ("table --records here --out folder --readme nowhere.md", "--readme nowhere.md"),
    ):
        assert main(command.split()) == 2, command
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1, printed
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_a_committed_report_is_fresh(path, monkeypatch, tmp_path, capsys):
    """The Markdown; the page holds the same text, and pictures that other versions of a font may draw otherwise."""
    monkeypatch.chdir(ROOT)
    folder = path.parent.relative_to(ROOT)
    call = ["report", "--markdown", "--records", str(folder), "--runs", str(tmp_path), "--out", f"{tmp_path}/report.html"]
    assert main(call) == 0
    assert_file_alike(tmp_path / "report.md", path, f"tunalab report --records {folder}")
