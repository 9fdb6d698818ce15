"""A checkout to give commands in, where training takes no time: a run writes its configuration and a record at once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunalab.errors import UserError
from tunalab.evaluation.measure import Score
from tunalab.library import LOCK_HELD
from tunalab.records.record import CONFIG_FILE, RECORD_FILE, Point, Record, RunInfo, Totals, write_record
from tunalab.settings.layers import read_yaml
from tunalab.settings.loading import config_hash, from_plain, to_plain, to_yaml
from tunalab.settings.schema import RunConfig
from tunalab.training.claiming import END_FILE

ROOT = Path(__file__).parents[2]
SWEEP = """\
experiment: smoke
variants: [tuna2]
seeds: [0]
overrides: {tracking.enabled: false}
factors: {objective.masking.ratio: [0.0, 0.5]}
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped experiments and variants, a sweep of two runs (``small``), and an empty place for everything that is written."""
    for name in ("experiments", "variants"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "small.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "components"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv(LOCK_HELD, "1")  # as under a sweep; put back afterwards
    return tmp_path


@pytest.fixture
def trained(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Directories in the order in which runs were trained, no trunks; those of other settings are refused, as they really are."""
    done: list[Path] = []

    def train(
        config: RunConfig,
        run_dir: Path,
        attempts: dict[str, int],
        callbacks: object = (),
        trunk: object = None,
        until: object = None,
    ) -> int:
        saved = run_dir / CONFIG_FILE
        if saved.exists() and config_hash(from_plain(read_yaml(saved))) != config_hash(config):
            raise UserError(f"{run_dir} holds a run with other settings")
        run_dir.mkdir(parents=True, exist_ok=True)
        saved.write_text(to_yaml(config))
        if until is not None:
            (run_dir / END_FILE).write_text("{}")
            return 0
        write_record(run_dir / RECORD_FILE, record_of(config, run_dir.name))
        done.append(run_dir)
        return 0

    def draw(name: str, records: list[Record], folder: Path, command: str) -> list[Path]:
        (folder / f"{name}.png").write_text(f"{command}: {len(records)} records")
        return [folder / f"{name}.png"]

    monkeypatch.setattr("tunalab.training.run.train", train)
    monkeypatch.setattr("tunalab.analysis.figures.draw", draw)  # what it draws is tests/analysis/test_figures.py's
    monkeypatch.setattr("tunalab.sweeps.local.subprocess.Popen", InProcess)
    return done


class InProcess:
    """A cell's command, carried out here: `python -m tunalab ...` without a second of imports."""

    pid = 4711

    def __init__(self, argv: list[str], **_: object) -> None:
        from tunalab.cli import main

        self.returncode = main(argv[3:])

    def poll(self) -> int:
        return self.returncode


def record_of(config: RunConfig, name: str) -> Record:
    ratio = config.objective.masking.ratio
    scores = {kind: Score.of(60, 100, 0.25) for kind in ("count",)}
    points = [Point(tokens, 1, 1, 1.0, 1.0, scores) for tokens in (1000, 2000)]
    tracked = config.tracking.sweep or None
    run = RunInfo(name, config.experiment, config.variant, config.seed, ratio, tracked, config_hash(config), True)
    return Record(run, to_plain(config), {}, {"trainable": 1}, {}, Totals(2000, 1, 1, 1.0, 1.0, 1), points)


@pytest.fixture
def saved_record() -> Callable[[RunConfig, str], Record]:
    return record_of
