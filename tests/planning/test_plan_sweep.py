"""`tunalab plan SWEEP`: sums over cells, storage, price, refusals; and that headers hold what it prints."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tunalab.cli import main
from tunalab.planning.memory import Count, Totals, downloads, storage
from tunalab.planning.plan import Gpu
from tunalab.planning.sweep import LIMITS, plan_sweep, to_plain_sweep, to_text_sweep
from tunalab.settings.loading import load_config
from tunalab.settings.schema import RunConfig

ROOT = Path(__file__).parents[2]
PLANNED = sorted(path for path in (ROOT / "sweeps").glob("*.yaml") if "# Plan: " in path.read_text())
CARD = Gpu("card", 1e12, 24 * 2**30, hourly=2.0)
MODEL = Totals(trained=1_127_872, frozen=0, in_blocks=0)


def tiny(seed: int = 0, **settings: object) -> RunConfig:
    config = load_config(ROOT / "experiments/smoke.yaml", ROOT / "variants/tuna2.yaml", [f"seed={seed}"])
    return replace(config, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def planned():
    cells = {"one-seed0": tiny(), "one-seed1": tiny(1), "two-seed0": tiny(threads=2)}
    return plan_sweep("smoke", cells, CARD, gpus=4, utilisation=0.5)


def test_gpu_hours_and_price_add_up(planned):
    for cell in planned.cells.values():
        assert cell.gpu_hours == pytest.approx(cell.plan.flops / (1e12 * 0.5) / 3600)
        assert cell.price == 2 * cell.gpu_hours
    assert planned.gpu_hours == sum(cell.gpu_hours for cell in planned.cells.values()) and planned.price == 2 * planned.gpu_hours
    plain = json.loads(json.dumps(to_plain_sweep(planned)))
    assert plain["gpu_hours"] == planned.gpu_hours and list(plain["cells"]) == list(planned.cells)
    assert plain["cells"]["one-seed1"]["seed"] == 1 and plain["cells"]["one-seed0"]["fits"]


def test_seeds_share_a_plan(planned):
    cells = planned.cells
    assert cells["one-seed0"].plan is cells["one-seed1"].plan and cells["one-seed0"].plan is not cells["two-seed0"].plan


def test_the_text_names_every_cell_and_what_is_not_counted(planned):
    text = to_text_sweep(planned)
    assert text.startswith("smoke: 3 runs of smoke, each on 4 x card at 50% of 1 TFLOP/s, $2 per GPU-hour")
    for printed in (
        *planned.cells,
        "ddp",
        "yes",
        "one after another",
        "all at once",
        "on 12 GPUs",
        "3 checkpoints per run: 2 are kept",
        LIMITS,
    ):
        assert printed in text
    small = plan_sweep("smoke", {"one": tiny()}, Gpu("small", 1e12, 2**20, 1.0))
    assert " NO " in to_text_sweep(small) and " unknown " in to_text_sweep(
        plan_sweep("s", {"one": tiny()}, Gpu("GPU", 1e12, None, 1.0))
    )


def test_a_checkpoint_is_what_training_writes():
    """Tuna-2 of figure6 wrote 18,185,306 bytes, and records of 39,505 bytes without evaluations."""
    config = load_config(ROOT / "experiments/scenes.yaml", ROOT / "variants/tuna2.yaml", [])
    kept = storage(config, MODEL)
    assert kept.checkpoint == pytest.approx(18_185_306, rel=0.01) and kept.checkpoints == 3 * kept.checkpoint
    assert kept.record == pytest.approx(39_505, rel=0.1)
    assert 8 * 81_606 < kept.samples < 2 * 8 * 81_606, "of pictures of 72 to 82 kB"
    assert kept.total == kept.checkpoints + kept.record + kept.samples
    assert storage(replace(config, keep_checkpoints=5), MODEL).checkpoints == 6 * kept.checkpoint
    staying = storage(replace(config, checkpoint_keep=[1, 2, 10**15]), MODEL)  # the last is never reached
    assert staying.checkpoints == kept.checkpoints + 2 * kept.checkpoint and kept.points == 0
    for keep, points in (("last", 1), ("all", config.evaluation.points)):
        found = storage(replace(config, evaluation=replace(config.evaluation, keep_points=keep)), MODEL)
        assert found.points == 2 * points * MODEL.trained and found.total == kept.total + found.points
    silent = replace(config, evaluation=replace(config.evaluation, groups=0, easy_vqa=0, sample_prompts=0))
    assert (storage(silent, MODEL).record, storage(silent, MODEL).samples) == (0, 0)


def test_pretrained_weights_are_fetched_once():
    parts = {"front-end: encoder": Count(trained=100), "front-end: vae": Count(frozen=10), "decoder: layers": Count(trained=1000)}
    paper = [load_config(ROOT / "experiments/paper_7b.yaml", ROOT / f"variants/{name}.yaml", []) for name in ("tuna", "tuna2")]
    assert list(downloads(paper[0], parts).values()) == [2000, 400, 40]
    assert downloads(paper[1], parts) == {"Qwen/Qwen2.5-7B-Instruct": 2000}
    assert downloads(tiny(), parts) == {}


def test_the_command_plans_a_sweep_by_its_name_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path))  # lengths assumed: nothing is sampled
    assert main(["plan", "--gpus", "2", "smoke", "--price", "3", "--json", "decoder.layers=1"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert len(plain["cells"]) == 3 and plain["hourly"] == 3 and plain["price"] == pytest.approx(3 * plain["gpu_hours"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "figure7"], "sweeps/figure7.yaml"),
        (["plan", "paper_7b"], "paper_7b is an experiment: `tunalab plan paper_7b VARIANT` (choices: bottleneck, tuna, "),
        (["plan"], "EXPERIMENT VARIANT, or a SWEEP alone, is to be planned, not nothing"),
        (["plan", "a", "b", "c"], "not a b c"),
        (["plan", "smoke", "seed=3"], "seed"),
        (["plan", "scenes", "tuna2", "--price", "-1"], "--price -1.0 is out of range (from 0)"),
        (["plan", "smoke", "--price", "nan"], "--price nan is out of range"),
        (["plan", "smoke", "--gpu-flops", "1e12"], "the price of a GPU is unknown: --price says it"),
    ],
)
def test_mistakes_are_one_line(words, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def header(path: Path) -> tuple[str, list[str]]:
    """The command of a sweep file's plan, and what stands under it."""
    lines = path.read_text().splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("# Plan: ")]
    plan = [line for line in lines[first + 1 :] if line.startswith("#")]
    return lines[first].removeprefix("# Plan: "), [line.removeprefix("#").removeprefix("   ") for line in plan]


def test_sweeps_that_need_gpus_have_their_plan_in_the_header():
    assert [path.stem for path in PLANNED] == ["figure6_paper_1_5b", "figure6_paper_7b", "figure6_public"]


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_a_header_adds_up(path: Path) -> None:
    """Quick, of the header alone: its runs are those of the file, its sums are the sums of its rows."""
    _, plan = header(path)
    rows = [re.split(r"\s{2,}", line) for line in plan if re.match(r"tuna\w*-seed\d", line)]
    sums = re.split(r"\s{2,}", next(line for line in plan if re.match(r"\d+ runs  ", line)))
    assert {row[4] for row in rows} == {"yes"} and f"{len(rows)} runs" == sums[0]

    def number(text: str) -> float:
        return float(text.strip("$").replace(",", ""))

    hourly = float(re.findall(r"\$([\d.]+) per GPU-hour", "\n".join(plan))[0])
    for column in (-1, -2, -3):
        assert sum(number(row[column]) for row in rows) == pytest.approx(number(sums[column]), rel=1e-2)
    assert number(sums[-1]) == pytest.approx(hourly * number(sums[-2]), rel=1e-2)


@pytest.mark.plans
@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_a_header_is_what_the_plan_prints_today(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command, plan = header(path)
    assert command.startswith("tunalab ") and main(command.split()[1:]) == 0
    assert capsys.readouterr().out.splitlines() == plan
