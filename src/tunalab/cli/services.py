"""Commands around the runs: `tunalab init`, `tunalab components`, `tunalab dashboard`, `tunalab mlflow-sync`,
`tunalab bench` and `tunalab verify`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.bench import GPU_PARTS, PARTS
from tunalab.cli.common import add_command
from tunalab.errors import UserError
from tunalab.files import listed, write_atomically
from tunalab.library import RUNS, build_components
from tunalab.verification import CHECKS

if TYPE_CHECKING:
    from tunalab.cli.common import Commands

STUDY = Path(__file__).parent / "study"  # what `tunalab init` copies


def add(commands: "Commands") -> None:
    sub = add_command(commands, init, "make a folder to start from: an experiment, a variant, a sweep, a Makefile")
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="new, or empty")
    sub = add_command(commands, components, "build the tiny tokenizer, VAE and encoder that are not built yet")
    sub.add_argument("--seed", type=int, default=0)
    default = "default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    sub = add_command(commands, dashboard, "open MLflow's page on a comparison of the runs")
    sub.add_argument("--uri", help=default)
    sub.add_argument("--port", type=int, default=5000)
    alone = "address to listen at; any other than the default shows the runs to whoever reaches it, without a password"
    sub.add_argument("--host", default="127.0.0.1", help=f"{alone} (default: 127.0.0.1, this machine alone)")
    sub = add_command(commands, mlflow_sync, "bring to MLflow what it lacks of runs that trained without it")
    sub.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR", help=f"default: every run directory below {RUNS}/")
    sub.add_argument("--records", type=Path, metavar="FOLDER", help="instead: the records (*.json) of a folder, made anywhere")
    sub.add_argument("--uri", help=default)
    sub.add_argument("--experiment", help="in MLflow; default: that of each run's settings")
    sub = add_command(commands, bench, "measure training and generation against their slow references, and what the sweep took")
    sub.add_argument("--gpu", action="store_true", help="instead: a training step at full scale on a CUDA device")
    sub.add_argument("--only", metavar="PART", help=f"of: {', '.join(PARTS)}; with --gpu: {', '.join(GPU_PARTS)}")
    sub.add_argument("--records", type=Path, default=Path("results/mask_ratio"), help="of the sweep")
    sub.add_argument(
        "--out", type=Path, help="file for the figures; default: results/bench.json (bench_gpu.json), with --only none"
    )
    sub = add_command(commands, verify, "measure what the scorers, the parser of scenes and chance levels are worth")
    takes = "default: all, half an hour, of which parser and chance take most"
    sub.add_argument("checks", nargs="*", metavar="CHECK", help=f"of: {', '.join(CHECKS)} ({takes})")
    out = "folder for the tables; chance also writes the file in the package that evaluations read"
    sub.add_argument("--out", type=Path, default=Path("results/verification"), help=out)


def init(arguments: argparse.Namespace) -> int:
    """Raises UserError: something stands there already."""
    folder = arguments.folder
    if folder.exists() and (not folder.is_dir() or listed(folder)):
        raise UserError(f"{folder} is {'a folder that is not empty' if folder.is_dir() else 'a file'}: name a new folder")
    for file in (path for path in listed(STUDY, "**/*") if path.is_file()):
        copy = folder / file.relative_to(STUDY)
        write_atomically(copy, file.read_bytes())
        print(f"wrote {copy}")
    print(f"`cd {folder}`, then `make plan` and `make train`")
    return 0


def components(arguments: argparse.Namespace) -> int:
    build_components({arguments.seed})
    return 0


def dashboard(arguments: argparse.Namespace) -> int:
    from tunalab.tracking.client import default_uri
    from tunalab.tracking.dashboard import serve

    return serve(arguments.uri or default_uri(), arguments.port, arguments.host)


def mlflow_sync(arguments: argparse.Namespace) -> int:
    if arguments.records is not None and arguments.runs:
        raise UserError(f"--records {arguments.records} or run directories ({arguments.runs[0]}), not both")
    for path in arguments.runs:
        if not path.is_dir():  # before a store is asked: asking a database makes it
            raise UserError(f"{path}: there is no such run directory")
    from tunalab.sweeps.cells import take_lock
    from tunalab.tracking.client import default_uri
    from tunalab.tracking.sync import Kept, check_answer, run_directories, sync

    paths = arguments.runs or run_directories(RUNS)
    if arguments.records is not None:
        paths = listed(arguments.records, "*.json")
    if not paths:
        raise UserError(f"no records (*.json) in {arguments.records}" if arguments.records else f"no run directory below {RUNS}/")
    uri, wrong = arguments.uri or default_uri(), 0
    check_answer(uri)
    for path in paths:
        try:
            if arguments.records is not None:
                added = sync(uri, arguments.experiment, Kept.of_record(path))
            else:
                kept = Kept.of_run_dir(path)
                lock = take_lock(path)
                if lock is None:
                    print(f"{path}: is being trained and logs itself")
                    continue
                with lock:
                    added = sync(uri, arguments.experiment, kept)
        except UserError as error:
            wrong += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        print(f"{path}: {added} added" if added else f"{path}: nothing to add")
    return int(wrong > 0)


def bench(arguments: argparse.Namespace) -> int:
    from tunalab.bench.gpu import bench_gpu
    from tunalab.bench.run import bench as run_bench

    parts = GPU_PARTS if arguments.gpu else PARTS
    if arguments.only not in (None, *parts):
        raise UserError(f"--only {arguments.only} is not known (choices{' with --gpu' * arguments.gpu}: {', '.join(parts)})")
    name = "bench_gpu.json" if arguments.gpu else "bench.json"
    out = arguments.out or (None if arguments.only else Path("results") / name)
    return bench_gpu(arguments.only, out) if arguments.gpu else run_bench(arguments.only, out, arguments.records)


def verify(arguments: argparse.Namespace) -> int:
    from tunalab.verification import verify as run_checks

    for path in run_checks(arguments.checks, arguments.out):
        print(path)
    return 0
