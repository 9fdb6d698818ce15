"""Training in a few lines, and what stands around it: the commands on runs are thin calls of these functions.

Imports are inside functions, so that the command line answers a mistake at once.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.files import listed, write_atomically

if TYPE_CHECKING:
    from lightning import Callback

    from tunalab.bench.trial import Trial
    from tunalab.data.documents import Corpus
    from tunalab.data.inspection import DataReport
    from tunalab.fetching import Fetched
    from tunalab.planning.ladder import Cost, Rung
    from tunalab.planning.plan import Plan as RunPlan
    from tunalab.planning.sweep import SweepPlan
    from tunalab.records.record import Record
    from tunalab.settings.schema import RunConfig

RUNS = Path("runs")
STUDY = Path(__file__).parent / "cli" / "study"  # what `tunalab init` copies
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
    from tunalab.training.preflight import check_run

    check_run(config)
    return config


def replayed(file: str | Path, settings: Sequence[str] = ()) -> "RunConfig":
    """The saved configuration of a run, outside of the sweep it was part of. ``settings``: those saved without credentials.

    Raises UserError: the file is none, or a setting would make it another run.
    """
    from tunalab.settings.layers import read_settings
    from tunalab.settings.loading import from_plain, laid_over, to_plain
    from tunalab.training.preflight import check_run

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

    config = load_config(experiment, variant, settings) if file is None else replayed(file, settings)
    from tunalab.training.preflight import open_data  # torch, behind what may be wrong in the settings

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


def attempt(
    config: "RunConfig",
    run_dir: Path,
    lock: IO[str] | None,
    callbacks: "Sequence[Callback]" = (),
    trunk: Path | None = None,
    until: str | None = None,
) -> int:
    """Train; the exit code. ``trunk``, ``until``: as of `tunalab train`.

    Whoever holds the lock of the run writes its history: this process, unless a launcher does.
    """
    from tunalab.records.record import RECORD_FILE, read_head
    from tunalab.settings.timeline import place_of
    from tunalab.sweeps.cells import How, begin, end, holds, read_history, settle
    from tunalab.training.run import train as train_run

    where: dict[str, Any] = {} if trunk is None else {"trunk": trunk}
    where |= {} if until is None else {"until": place_of(until, config)}

    if lock is not None:
        head = read_head(run_dir / RECORD_FILE)
        settle(run_dir, finished=head is not None and head.finished)
        begin(run_dir, "alone", str(os.getpid()))
    try:
        code = train_run(config, run_dir, read_history(run_dir).summary(), callbacks, **where)
    except BaseException as error:
        if lock is not None and holds(run_dir, lock):  # else what is there now is another's
            stopped = isinstance(error, KeyboardInterrupt)  # not by an error of its own: it goes on where it last saved
            end(run_dir, *("stopped", "interrupted") if stopped else ("failed", f"{type(error).__name__}: {error}"))
        raise
    if lock is not None:
        ends: dict[int, How] = {0: "finished", EXIT_STOPPED: "stopped"}
        end(run_dir, ends.get(code, "failed"))
    return code


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

    No weights, no data and no network are needed. ``gpu``: by name, for its rate, memory and price (h100); ``gpu_flops``: FLOPs per
    second in dense bfloat16 instead. ``utilisation``: share of that rate that training reaches. ``sharding``: none, ddp or fsdp2,
    by default the run's. ``sample``: read the run's own data instead of assuming lengths of documents. ``price``: dollars per
    GPU-hour, by default the card's in planning/cards.csv.

    Raises UserError: a file, a setting or a GPU's name is wrong; a GPU of a sweep has no price.
    """
    # Settings first: torch takes seconds to import, and a mistake needs none of it.
    config = None if variant is None else load_config(name, variant, settings)
    configs = cell_configs(name, as_texts(settings)) if config is None else {}
    from tunalab.planning.plan import find_gpu, make_plan
    from tunalab.planning.sweep import plan_sweep

    card = find_gpu(gpu, gpu_flops).priced(price)
    given: dict[str, Any] = {"gpus": gpus, "utilisation": utilisation, "sharding": sharding, "sample": sample}
    if config is not None:
        return make_plan(config, card, **given)
    return plan_sweep(name, configs, card, **given)


def try_steps(name: str, variant: str, settings: Settings = (), row_tokens: Sequence[int] = ()) -> "list[Trial]":
    """A training step of a slice of a run's model on this machine's CPU, for a row of each length (of none: the run's): memory as
    planned and as measured. Random weights, documents of assumed lengths, no network.

    Raises UserError: a file or a setting is wrong, a length that no document fits.
    """
    config = load_config(name, variant, settings)
    from tunalab.bench.trial import try_step

    return [try_step(config, tokens) for tokens in row_tokens or [config.data.row_tokens]]


def cell_configs(name: str, settings: list[str]) -> "dict[str, RunConfig]":
    """The configuration of every run of a sweep, by name of the cell. Raises UserError: a file or setting is wrong."""
    from tunalab.settings.layers import find, located, names_of
    from tunalab.sweeps.grid import check_settings, expand, load_sweep, own_settings

    if located("sweeps", name) is None and located("experiments", name):
        raise UserError(f"{name} is an experiment: `tunalab plan {name} VARIANT` (choices: {', '.join(names_of('variants'))})")
    loaded = load_sweep(find("sweeps", name))
    check_settings(loaded, settings)
    return {cell.name: load_config(cell.experiment, cell.variant, own_settings(cell, settings)) for cell in expand(loaded)}


# What a run would read.


def inspect_data(
    experiment: str = "scenes",
    variant: str = "tuna2",
    settings: Settings = (),
    manifests: Sequence[str | Path] = (),
    held_out: Sequence[str | Path] = (),
    limit: int | None = None,
) -> "DataReport":
    """What the data of a run are, before anything is trained: tunalab.analysis.data_page shows it.

    ``manifests``: JSONL files, each a source of the same weight under the default settings; experiment and variant stay out of it.
    ``held_out``: manifests, or files of questions, whose pictures are looked for in the training data, besides those of the run's
    own benchmarks that are files (easy-VQA, and those from outside) and of ``evaluation.losses``. ``limit``: documents of each
    source that are read (by default inspection.LIMIT).

    Raises UserError, one line: a setting or a file is wrong. That a run would stop at its data is a problem of the report.
    """
    config = _manifest_config(manifests, as_texts(settings)) if manifests else load_config(experiment, variant, settings)
    from dataclasses import replace

    from tunalab.data.inspection import LIMIT, inspect
    from tunalab.evaluation.benchmarks import along, out_of_reach
    from tunalab.frontends.components.store import Components
    from tunalab.training.preflight import fitting_space

    compared, absent = _held_out(config, held_out, easy_vqa=not manifests)
    frontend = tuple(sorted(vars(config.frontend).items()))
    space = fitting_space(frontend, config.decoder.width, config.data.image_size, config.components_seed)
    tokenizer = Components(config.components_seed).tokenizer_for(config.decoder)
    report = inspect(config, tokenizer, space.token_pixels, compared, LIMIT if limit is None else limit)
    trained_on = [(one.name, one.same + one.alike) for one in report.held_out if one.same + one.alike]
    copies = [f"{count} pictures of {name} are in the training data, or almost" for name, count in trained_on]
    return replace(report, warnings=[*out_of_reach(config, tokenizer, along(config)), *copies, *absent])


def _held_out(config: "RunConfig", files: Sequence[str | Path], easy_vqa: bool) -> "tuple[list[Corpus], list[str]]":
    """What no training data may show: files given by hand, benchmarks, documents of held-out losses. Lines: what is not here."""
    from tunalab.data.buckets import Buckets
    from tunalab.data.documents import Image
    from tunalab.data.inspection import HeldDocuments, QuestionPictures
    from tunalab.data.manifest import ManifestCorpus
    from tunalab.evaluation import benchmarks, jsonl
    from tunalab.evaluation.along import held_out_of
    from tunalab.settings.schema import BenchmarkConfig

    sizes, evaluation = Buckets.of(config.data), config.evaluation
    found: list[Corpus] = []
    absent: list[str] = []
    for path in map(Path, files):
        if jsonl.holds_questions(path):
            questions, *_ = jsonl.questions("--held-out", BenchmarkConfig(path=str(path)), sizes, None)
            found.append(QuestionPictures(str(path), questions))
        else:
            found.append(ManifestCorpus(path, image_size=sizes.unbounded(), name=str(path)))
    if evaluation.easy_vqa and easy_vqa:
        published = benchmarks.easy_vqa(config.data.image_size, evaluation.easy_vqa)
        found.append(QuestionPictures(benchmarks.EASY_VQA, published.questions))
    for key, chosen in evaluation.benchmarks.items():
        if evaluation.asked == "later" and chosen.path and not Path(chosen.path).exists():
            absent.append(f"evaluation.benchmarks.{key}: {chosen.path} is not here, and is asked later")
        elif benchmarks.is_questions(chosen):
            # Of a file all: the whole of it is asked at the end.
            of = benchmarks.outside(key, config, chosen.limit if chosen.task else None)
            found.append(QuestionPictures(key, of.questions))
    for key, name in evaluation.losses.items():
        documents = held_out_of(name, evaluation.loss_documents, config.data)
        if any(isinstance(segment, Image) for document in documents for segment in document.segments):
            found.append(HeldDocuments(f"evaluation.losses.{key}", documents))
    return found, absent


def _manifest_config(manifests: Sequence[str | Path], settings: Sequence[str]) -> "RunConfig":
    """A run of one stage that reads these manifests in equal parts, named after their files, and settings over it."""
    from tunalab.settings.loading import check, from_plain, laid_over, to_plain
    from tunalab.settings.schema import REVISION, DataConfig, ManifestConfig, RunConfig, StageConfig

    named: dict[str, ManifestConfig] = {}
    for path in manifests:
        name = re.sub(r"\W+", "_", Path(path).stem)
        if name in named:
            raise UserError(f"{path}: another manifest is called {name} too ({named[name].path}); rename one of them")
        named[name] = ManifestConfig(path=str(path))
    mix = {f"manifest/{name}": 1.0 for name in named}
    blank = RunConfig(revision=REVISION, variant="", data=DataConfig(manifests=named), stages={"pretrain": StageConfig(mix=mix)})
    config = from_plain(to_plain(blank))
    for setting in settings:
        config = laid_over(config, setting)
    check(config)
    from tunalab.training.preflight import check_run

    check_run(config)
    return config


def ladder() -> "list[tuple[Rung, Cost]]":
    """Every rung from a laptop to a cluster (docs/ladder.md) with what it costs. It takes a minute or two; nothing is trained."""
    from tunalab.planning.ladder import Cost, rungs
    from tunalab.planning.sweep import estimate

    def cost(rung: "Rung") -> "Cost":
        if not rung.cores:
            return Cost.of(plan(rung.name, rung.variant, gpu=rung.gpu, gpus=rung.gpus, utilisation=rung.utilisation))
        configs = list(cell_configs(rung.name, []).values())
        minutes = {config.variant: estimate(config)["minutes"] for config in configs}  # seeds differ by a few per cent
        return Cost(len(configs), 60 * sum(minutes[config.variant] for config in configs) / rung.cores, None)

    return [(rung, cost(rung)) for rung in rungs()]


# Around the runs.


def fetch(
    name: str,
    variants: Sequence[str] = (),
    to: str | Path = "fetched",
    settings: Settings = (),
    limit: int | None = None,
    benchmarks: Sequence[str] = (),
) -> "Fetched":
    """Everything that runs of an experiment (or of a sweep, then without ``variants``) take from the Hub, into the folder ``to``.

    ``variants``: by default those that the experiment gives a front-end of its own, else all. ``limit``: the first so many shards
    of every address. ``benchmarks``: published ones by name, or ["all"], as plain folders for `tunalab evaluate`. What is there
    already is not fetched again; every file is compared once with the digest that the Hub states.

    Raises UserError: a name is not known, the Hub is out of reach, the folder cannot be written or is too small, a file is damaged.
    """
    from tunalab.settings.layers import located

    if not variants and located("experiments", name) is None and located("sweeps", name) is not None:
        configs = list(cell_configs(name, as_texts(settings)).values())
    else:
        configs = [load_config(name, variant, settings) for variant in variants or _variants_of(name)]
    from tunalab.evaluation.published import BENCHMARKS
    from tunalab.fetching import fetch as bring

    return bring(configs, Path(to), limit, list(BENCHMARKS) if list(benchmarks) == ["all"] else benchmarks)


def _variants_of(experiment: str) -> list[str]:
    from tunalab.settings.layers import find, names_of, read_experiment

    given = read_experiment(find("experiments", experiment)).variants
    scaled = [variant for variant, layers in given.items() if any("frontend" in layer.settings for layer in layers)]
    return scaled or list(names_of("variants"))


def start_study(folder: str | Path) -> list[Path]:
    """Write the files of a study to start from into a new folder. Raises UserError: something is there already."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or listed(folder)):
        raise UserError(f"{folder} is {'a folder that is not empty' if folder.is_dir() else 'a file'}: name a new folder")
    written = []
    for file in (path for path in listed(STUDY, "**/*") if path.is_file()):
        copy = folder / file.relative_to(STUDY)
        write_atomically(copy, file.read_bytes())
        written.append(copy)
    return written


def sync_mlflow(
    runs: Sequence[Path] = (), records: Path | None = None, uri: str | None = None, experiment: str | None = None
) -> int:
    """Add to MLflow what it lacks of run directories (by default all below runs/), or of a folder of ``records``.

    ``uri``: by default each run directory's own (tracking.uri), of records that of the environment. One line per run is printed.
    Returns how many could not be added. Raises UserError: there are none, or MLflow does not answer at ``uri``.
    """
    if records is not None and runs:
        raise UserError(f"--records {records} or run directories ({runs[0]}), not both")
    for path in runs:
        if not path.is_dir():  # before a store is opened: opening a database makes it
            raise UserError(f"{path}: there is no such run directory")
    from tunalab.sweeps.cells import take_lock
    from tunalab.tracking.client import full_uri
    from tunalab.tracking.sync import Kept, check_answer, run_directories, sync

    paths = listed(records, "*.json") if records is not None else runs or run_directories(RUNS)
    if not paths:
        raise UserError(f"no records (*.json) in {records}" if records else f"no run directory below {RUNS}/")
    wrong, answering = 0, {uri} if uri else set()
    if uri:
        check_answer(uri)
    for path in paths:
        try:
            lock = nullcontext() if records is not None else take_lock(path)
            if lock is None:
                print(f"{path}: is being trained and logs itself")
                continue
            with lock:
                kept = Kept.of_record(path) if records is not None else Kept.of_run_dir(path)
                own = "" if records is not None else str(kept.record.config["tracking"]["uri"])
                to = uri or full_uri(own)
                if to not in answering:
                    check_answer(to)
                    answering.add(to)
                added = sync(to, experiment, kept)
        except UserError as error:
            wrong += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        print(f"{path}: {added} added" if added else f"{path}: nothing to add")
    return wrong
