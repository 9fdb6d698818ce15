"""Runs, sweeps and records in a few lines: what `tunalab train`, `sweep`, `figure` and `table` are thin calls of.

Imports are inside functions, so that the command line answers a mistake at once.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.redaction import hand_over, redacted

if TYPE_CHECKING:
    from lightning import Callback

    from tunalab.collection import Records
    from tunalab.planning.plan import Plan as RunPlan
    from tunalab.planning.sweep import SweepPlan
    from tunalab.records.record import Record
    from tunalab.settings.schema import RunConfig, TrackingConfig
    from tunalab.sweeps.grid import Cell, Resolved, Sweep
    from tunalab.sweeps.launcher import Launch

RUNS = Path("runs")
LOCK_HELD = "TUNALAB_RUN_LOCK_HELD"  # set by the sweep driver, whose lock on the run directory its cells inherit
Settings = Mapping[str, Any] | Sequence[str]
Progress = Callable[[int, int, dict[str, float]], object]


# One run.


def train(
    experiment: str = "scenes",
    variant: str = "tuna2",
    settings: Settings = (),
    run_dir: str | Path | None = None,
    progress: Progress | None = None,
    callbacks: "Sequence[Callback]" = (),
    config: str | Path | None = None,
) -> "Record":
    """Train a run, or go on with it, in this process, and return its record; of a run that is finished, what is on disk.

    ``experiment`` and ``variant``: names of files in experiments/ and variants/, or paths of YAML files. ``settings`` lie over
    them: {"seed": 1, "data.rows": 2}, or ["seed=1", ...] as on the command line. ``run_dir``: by default
    runs/<experiment>/<variant>-seed<seed>. ``progress``: called after every step with the tokens read so far, the tokens of the
    budget, and the step's losses, gradient norm and learning rate. ``callbacks``: further ones of Lightning's. ``config``: the
    saved config.yaml of a run, which is trained once more, in a directory of its own; experiment and variant stay out of it.

    Raises UserError, one line: a setting is wrong, a component or source is missing, the directory holds a run with other
    settings or belongs to another process. NonFiniteLoss: the run stopped before the step it would spoil. KeyboardInterrupt: it
    was stopped and has saved; the same call goes on.
    """
    import torch

    from tunalab.records.record import RECORD_FILE, read_record
    from tunalab.training.module import NonFiniteLoss

    run, folder, lock = prepared(experiment, variant, as_texts(settings), run_dir, config)
    threads = torch.get_num_threads()
    try:
        with lock as held:
            code = attempt(run, folder, held, [*([_progressing(progress)] if progress else []), *callbacks])
    finally:
        torch.set_num_threads(threads)
    if code == EXIT_STOPPED:
        raise KeyboardInterrupt(f"{folder}: stopped; the same call goes on")
    if code:
        raise NonFiniteLoss(f"{folder}: the loss is not finite; the last checkpoint is kept")
    return read_record(folder / RECORD_FILE)


def _progressing(progress: Progress) -> "Callback":
    from lightning import Callback

    from tunalab.settings.loading import budget

    class Progressing(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            losses = {name: float(value) for name, value in outputs.items()}
            progress(pl_module.progress.tokens, budget(pl_module.config), losses)

    return Progressing()


def as_texts(settings: Settings) -> list[str]:
    """Settings as on the command line. Raises UserError: one text instead of a list, or a value that no setting has."""
    if isinstance(settings, str):
        raise UserError(f"settings={settings!r} is one text: give a mapping, or a list of key=value")
    if not isinstance(settings, Mapping):
        return list(settings)
    return [f"{key}={_as_text(key, value)}" for key, value in settings.items()]


def _as_text(key: str, value: Any) -> str:
    if isinstance(value, str | Path):
        text = str(value)
        return json.dumps(text, ensure_ascii=False) if text[:1] in ("[", "{", '"', "'") else text
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"setting {key}: {value!r} is no number, text, list or mapping of these") from error


def load_config(experiment: str = "scenes", variant: str = "tuna2", settings: Settings = ()) -> "RunConfig":
    """The configuration of a run that can begin, as far as that is known without reading its data; arguments as for :func:`train`.

    Raises UserError: a file, a key or a value is wrong.
    """
    from tunalab.settings.layers import run_files
    from tunalab.settings.loading import load_config

    texts = as_texts(settings)
    check_named(texts)
    config = load_config(*run_files(experiment, variant), texts)
    from tunalab.training.run import check_run

    check_run(config)
    return config


def replayed(file: str | Path, settings: Sequence[str] = ()) -> "RunConfig":
    """The saved configuration of a run, outside of the sweep it was part of. ``settings``: those saved without credentials.

    Raises UserError: the file is none, or a setting would make it another run.
    """
    from tunalab.settings.layers import read_settings
    from tunalab.settings.loading import from_plain, laid_over, to_plain
    from tunalab.training.run import check_run

    plain = read_settings(Path(file))
    if "variant" not in plain:
        raise UserError(f"{file} is not the saved configuration of a run: use --experiment and --variant")
    config = from_plain(plain)
    for setting in settings:
        whole = laid_over(config, setting)
        if to_plain(whole) != to_plain(config) or whole == config:
            raise UserError(f"--config {file} replays a run as it was: leave out '{setting}'")
        config = whole
    config.tracking.sweep = config.tracking.parent_run = ""
    check_run(config)
    return config


def prepared(
    experiment: str,
    variant: str,
    settings: list[str],
    run_dir: str | Path | None = None,
    file: str | Path | None = None,
    locks: bool = True,
) -> "tuple[RunConfig, Path, AbstractContextManager[IO[str] | None]]":
    """Configuration, directory and lock of a run, of the saved configuration ``file`` if there is one.

    The directory is for this process alone; None is locked where a launcher holds it, or another process for all (not ``locks``).

    Raises UserError: a setting is wrong, data is missing, or the directory is another process's.
    """
    from tunalab.settings.loading import config_hash
    from tunalab.training.run import open_data

    config = load_config(experiment, variant, settings) if file is None else replayed(file, settings)
    own = f"{config.variant}-seed{config.seed}" + (f"+{config_hash(config)}" if file is not None else "")
    folder = Path(run_dir) if run_dir is not None else RUNS / config.experiment / own
    open_data(config)  # before anything is built: a missing column is known in seconds
    if not locks or os.environ.get(LOCK_HELD):
        return config, folder, nullcontext()
    from tunalab.sweeps.cells import take_lock
    from tunalab.training.claiming import check_places

    check_places(folder)
    lock = take_lock(folder)
    if lock is None:
        raise UserError(f"{folder} is being trained by another process")
    return config, folder, lock


def check_named(settings: list[str]) -> None:
    """Raises UserError: a setting would give a run the name of another experiment or variant."""
    for setting in settings:
        if setting.split("=")[0] in ("experiment", "variant"):
            raise UserError(f"setting '{setting}' would only relabel the run: use --{setting.split('=')[0]} NAME")


def attempt(config: "RunConfig", run_dir: Path, lock: IO[str] | None, callbacks: "Sequence[Callback]" = ()) -> int:
    """Train; the exit code. Whoever holds the lock of the run writes its history: this process, unless a launcher does."""
    from tunalab.records.record import RECORD_FILE, read_head
    from tunalab.sweeps.cells import How, begin, end, holds, read_history, settle
    from tunalab.training.run import train as train_run

    if lock is not None:
        head = read_head(run_dir / RECORD_FILE)
        settle(run_dir, finished=head is not None and head.finished)
        begin(run_dir, "alone", str(os.getpid()))
    try:
        code = train_run(config, run_dir, read_history(run_dir).summary(), callbacks)
    except BaseException as error:
        if lock is not None and holds(run_dir, lock):  # else what is there now is another's
            stopped = isinstance(error, KeyboardInterrupt)  # not by an error of its own: it goes on where it last saved
            end(run_dir, *("stopped", "interrupted") if stopped else ("failed", f"{type(error).__name__}: {error}"))
        raise
    if lock is not None:
        ends: dict[int, How] = {0: "finished", EXIT_STOPPED: "stopped"}
        end(run_dir, ends.get(code, "failed"))
    return code


def build_tokenizer() -> None:
    """Build the tiny tokenizer, which takes seconds, if it is not built yet."""
    from tunalab.frontends.components.build import build_components as build
    from tunalab.frontends.components.settings import ComponentSettings
    from tunalab.frontends.components.store import components_root, folder_of, is_built

    if not is_built(folder_of(components_root(), "tokenizer", ComponentSettings().tokenizer)):
        build(names=("tokenizer",))


def build_components(seeds: set[int]) -> None:
    """Build what of each seed's components is not built yet."""
    from tunalab.frontends.components.build import build_components as build
    from tunalab.frontends.components.settings import ComponentSettings

    for seed in sorted(seeds):
        build(ComponentSettings.seeded(seed))


# A sweep: the runs of a file of sweeps/, each a process of its own.


def sweep(
    name: str,
    variant: str | None = None,
    settings: Settings = (),
    parallel: int | None = None,
    launch: str | None = None,
    retries: int | None = None,
    retry: bool = False,
) -> "Records":
    """Train every run of a sweep that is not finished, draw its figures into runs/<sweep>, and return the records of all.

    ``name``: a file of sweeps/. ``variant``: this front-end alone. ``settings`` as for :func:`train`. ``parallel``: runs at a
    time, by default the launch file's, or as many as there are cores. ``launch``: a file of sweeps/launch/, by default processes of
    this machine. ``retries``: starts again of a run that was killed without progress (3). ``retry``: start runs again that have
    failed as often as they may.

    Raises UserError: a file or setting is wrong, data is missing, or runs have failed, whose names and reasons are printed.
    KeyboardInterrupt: it was stopped, every run has saved; the same call goes on.
    """
    from tunalab.collection import Records
    from tunalab.sweeps.cells import collect

    check_counts("", parallel, retries)
    plan = plan_sweep(name, variant, as_texts(settings))
    code = run_sweep(plan, read_launch_named(launch), parallel, retries, retry)
    if code == EXIT_STOPPED:
        raise KeyboardInterrupt(f"sweep {name}: stopped; the same call goes on")
    if code:
        raise UserError(f"sweep {name}: not every run is finished (the table above says why); the same call goes on")
    return Records(collect(plan.cells, plan.hash, plan.sweep.records), RUNS / plan.sweep.name)


def check_counts(prefix: str, parallel: int | None, retries: int | None) -> None:
    for name, value, least in (("parallel", parallel, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise UserError(f"{prefix}{name} {value} is out of range (from {least})")


def read_launch_named(name: str | None) -> "Launch":
    from tunalab.settings.layers import find
    from tunalab.sweeps.launcher import LocalLaunch, read_launch

    return read_launch(find("sweeps/launch", name)) if name else LocalLaunch()


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep under further ``settings``, of one ``variant`` or all. ``resolved``: by name of the cell."""

    name: str
    variant: str | None
    settings: list[str]
    sweep: "Sweep"
    cells: "list[Cell]"
    resolved: "dict[str, Resolved]"

    def hash(self, cell: "Cell") -> str:
        return self.resolved[cell.name].hash

    def checked(self) -> "dict[str, RunConfig]":
        """The configurations by name of the cell. Raises UserError: one is of a run that could not begin."""
        from tunalab.training.run import check_run

        configs = {name: resolved.config for name, resolved in self.resolved.items()}
        for config in configs.values():
            check_run(config)
        return configs

    @property
    def command(self) -> str:
        flags = [f"--variant {self.variant}"] if self.variant else []
        return redacted(" ".join(["tunalab sweep", self.name, *flags, *self.settings]))


def plan_sweep(name: str, variant: str | None, settings: list[str]) -> Plan:
    """Raises UserError: a file or setting is wrong, or two cells are the same run."""
    from tunalab.settings.layers import find, run_files
    from tunalab.sweeps.cells import is_finished
    from tunalab.sweeps.grid import check_distinct, check_settings, expand, load_sweep, own_directory, resolve, with_settings

    loaded = load_sweep(find("sweeps", name))
    cells = expand(loaded, variant, RUNS)
    check_named(settings)
    resolved = resolve(cells, settings, run_files)
    check_settings(loaded, settings)
    check_distinct(loaded.name, {name: one.hash for name, one in resolved.items()})
    if settings:
        plain = resolve(cells, [], run_files)
        if any(one.hash != plain[name].hash for name, one in resolved.items()):
            loaded = with_settings(loaded, settings)
            cells = expand(loaded, variant, RUNS)
            print(f"settings of the command line: the runs are in {RUNS / loaded.name}")
    done = {cell.name for cell in cells if is_finished(cell, resolved[cell.name].hash, loaded.records)}
    moved = {cell.name: own_directory(cell, resolved[cell.name].hash) for cell in cells if cell.name not in done}
    apart = [cell for cell in cells if moved.get(cell.name, cell) != cell]
    if apart:
        first, where = apart[0].run_dir, moved[apart[0].name].run_dir
        print(f"{len(apart)} directories hold runs of other settings and stay as they are: {first} goes to {where}, and so on")
    return Plan(name, variant, settings, loaded, [moved.get(cell.name, cell) for cell in cells], resolved)


def run_sweep(plan: Plan, launch: "Launch", parallel: int | None = None, retries: int | None = None, retry: bool = False) -> int:
    """Train what is not finished, write figures and tables of what is; the exit code: 0, 1 of failures, 75 when it was stopped."""
    from tunalab.sweeps.cells import RETRIES, collect, forgive, is_finished, publish, read_history
    from tunalab.sweeps.grid import own_settings
    from tunalab.sweeps.launcher import Work, launcher
    from tunalab.training.run import open_data

    cells, configs = plan.cells, plan.checked()
    threads = max(config.threads for config in configs.values())
    if not all(is_finished(cell, plan.hash(cell), plan.sweep.records) for cell in cells):
        for name in {_reads(one.plain): name for name, one in plan.resolved.items()}.values():
            open_data(configs[name])
        build_components({config.components_seed for config in configs.values()})
    for cell in cells:
        if retry and read_history(cell.run_dir).in_vain():
            forgive(cell.run_dir)
    with _tracked(plan.sweep.name, next(iter(configs.values())).tracking) as tracked, _lock_held():

        def command(cell: "Cell") -> list[str]:
            settings = [*own_settings(cell, plan.settings), f"tracking.sweep={cell.sweep}"]
            settings += [f"tracking.parent_run={tracked.parent}"] if tracked.parent else []
            settings = hand_over(settings, os.environ)
            names = ["--experiment", cell.experiment, "--variant", cell.variant, "--run-dir", str(cell.run_dir)]
            return [sys.executable, "-m", "tunalab", "train", *names, *settings]

        hashes = {cell.name: plan.hash(cell) for cell in cells}
        tokens = {cell.name: plan.resolved[cell.name].tokens for cell in cells}
        again = RETRIES if retries is None else retries
        work = Work(cells, command, hashes, plan.sweep.records, lambda cell: tokens[cell.name], again)
        result = launcher(launch, threads, parallel).run(work)
        tracked.exit_code = result.exit_code
    print(result.table())
    if plan.sweep.records:
        publish(cells, plan.hash, plan.sweep.records)
    found = collect(cells, plan.hash, plan.sweep.records)
    if found:
        written = _write_results(found, plan.sweep, plan.command)
        if tracked.parent:
            from tunalab.tracking.tracker import log_files

            log_files(tracked.uri, tracked.parent, written)
    return result.exit_code


def _reads(plain: dict[str, Any]) -> str:
    """The same for two runs, by their plain configurations, that read the same files."""
    from tunalab.settings.loading import digest

    mixes = [sorted(name for name, weight in stage["mix"].items() if weight > 0) for stage in plain["stages"].values()]
    return digest([plain["data"], mixes, plain["evaluation"]["easy_vqa"] > 0, plain["evaluation"]["benchmarks"]])


@contextmanager
def _lock_held() -> Iterator[None]:
    before = os.environ.get(LOCK_HELD)
    os.environ[LOCK_HELD] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[LOCK_HELD]


@dataclass
class _Tracked:
    parent: str | None = None
    exit_code: int = 1
    uri: str = ""


@contextmanager
def _tracked(sweep_name: str, tracking: "TrackingConfig") -> Iterator[_Tracked]:
    """The sweep's parent run in MLflow: finished, failed, or killed where the sweep was stopped and can go on."""
    if not tracking.enabled:
        yield _Tracked()
        return
    from tunalab.tracking.client import full_uri
    from tunalab.tracking.tracker import End, end_sweep, prepare, start_sweep

    uri = full_uri(tracking.uri)
    prepare(uri, tracking.experiment)
    tracked = _Tracked(start_sweep(uri, tracking.experiment, sweep_name), uri=uri)
    ends: dict[int, End] = {0: "FINISHED", EXIT_STOPPED: "KILLED"}
    try:
        yield tracked
    finally:
        end_sweep(uri, tracked.parent, ends.get(tracked.exit_code, "FAILED"))


def _write_results(found: "list[Record]", sweep: "Sweep", call: str) -> list[Path]:
    """Curves, the sweep's figures and tables, of whatever is finished. What cannot be drawn is printed, and ends no sweep.

    Returns what is written.
    """
    from tunalab.analysis.figures import draw
    from tunalab.analysis.tables import write_tables

    folder = RUNS / sweep.name
    # Figure 6 is the curves, under the name the paper gave it.
    names = [*([] if "figure6" in sweep.figures or "curves" in sweep.figures else ["curves"]), *sweep.figures]
    steps: list[Callable[[], list[Path]]] = [partial(draw, name, found, folder, call) for name in names]
    steps.append(partial(write_tables, found, folder, call))
    written = []
    for step in steps:
        try:
            paths = step()
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
            continue
        written += paths
        print("\n".join(f"wrote {path}" for path in paths))
    return written


# What a run or a sweep would cost.


def plan(
    name: str,
    variant: str | None = None,
    settings: Settings = (),
    gpus: int = 1,
    gpu: str | None = None,
    gpu_flops: float | None = None,
    utilisation: float = 0.4,
    sharding: str | None = None,
    sample: bool = False,
    price: float | None = None,
) -> "RunPlan | SweepPlan":
    """What a run costs (``name`` of an experiment, with a ``variant``), or every run of a sweep (``name`` alone).

    No weights, no data and no network are needed. ``gpu``: by name, for its rate and memory (h100); ``gpu_flops``: FLOPs per
    second in dense bfloat16 instead. ``utilisation``: share of that rate that training reaches. ``sharding``: none, ddp or fsdp2,
    by default the run's. ``sample``: read the run's own data instead of assuming lengths of documents. ``price``: dollars per
    GPU-hour of a sweep.

    Raises UserError: a file, a setting or a GPU's name is wrong.
    """
    from tunalab.planning.plan import find_gpu, make_plan
    from tunalab.planning.sweep import PRICE, plan_sweep

    given: dict[str, Any] = {"gpus": gpus, "utilisation": utilisation, "sharding": sharding, "sample": sample}
    if variant is not None:
        if price is not None:
            raise UserError("--price is for a sweep: `tunalab plan SWEEP`")
        return make_plan(load_config(name, variant, settings), find_gpu(gpu, gpu_flops), **given)
    configs = cell_configs(name, as_texts(settings))
    return plan_sweep(name, configs, find_gpu(gpu, gpu_flops), hourly=PRICE if price is None else price, **given)


def cell_configs(name: str, settings: list[str]) -> "dict[str, RunConfig]":
    """The configuration of every run of a sweep, by name of the cell. Raises UserError: a file or setting is wrong."""
    from tunalab.settings.layers import find, located
    from tunalab.sweeps.grid import check_settings, expand, load_sweep, own_settings

    if located("sweeps", name) is None and located("experiments", name):
        raise UserError(f"{name} is an experiment: `tunalab plan {name} VARIANT`")
    loaded = load_sweep(find("sweeps", name))
    check_settings(loaded, settings)
    return {cell.name: load_config(cell.experiment, cell.variant, own_settings(cell, settings)) for cell in expand(loaded)}
