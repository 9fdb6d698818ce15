"""Commands around the runs: `tunalab init`, `components`, `drawings`, `dashboard`, `mlflow-sync`, `bench` and `verify`."""

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.bench import GPU_PARTS, PARTS
from tunalab.cli.common import add_command
from tunalab.errors import UserError
from tunalab.library import RUNS, start_study, sync_mlflow
from tunalab.verification import CHECKS

if TYPE_CHECKING:
    from tunalab.cli.common import Commands


def add(commands: "Commands") -> None:
    sub = add_command(commands, init, "make a folder to start from: an experiment, a variant, a sweep, a Makefile")
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="new, or empty")
    sub = add_command(
        commands, components, "list and verify the tiny tokenizer, VAEs and encoders; `components train`: train others"
    )
    sub.add_argument("action", nargs="?", choices=["train"], help="default: list and verify")
    sub.add_argument("settings", nargs="*", metavar="PART.KEY=VALUE", help="of the recipe: encoder.width=192 vae.steps=9000")
    sub.add_argument("--collection", default="own", help="folder in TUNALAB_COMPONENTS, by default ./components (default: own)")
    sub.add_argument(
        "--parts", nargs="+", default=["vae", "encoder"], metavar="PART", help="of tokenizer, vae, encoder (default: the last two)"
    )
    sub.add_argument("--seed", type=int, help="of weights and of the images that are seen (default: as the recipe says, 0)")
    text = "of what training shows of this folder's art, instead of scenes (`tunalab drawings` makes it)"
    sub.add_argument("--drawings", type=Path, metavar="FOLDER", help=text)
    sub = add_command(
        commands, drawings, "make the art of the drawings corpus from packages of npm; each file's digest is compared"
    )
    sub.add_argument("--to", type=Path, metavar="FOLDER", default=Path("drawings"), help="default: drawings")
    sub.add_argument(
        "--from", type=Path, metavar="FOLDER", dest="packages", help="where the packages lie; nothing is downloaded then"
    )
    default = "default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    sub = add_command(commands, dashboard, "open MLflow's page with a comparison of the runs")
    sub.add_argument("--uri", help=default)
    sub.add_argument("--port", type=int, default=5000, help="default: 5000")
    host = "address to listen at; any other than the default shows the runs to everybody who reaches it, without a password"
    sub.add_argument("--host", default="127.0.0.1", help=f"{host} (default: 127.0.0.1, this machine alone)")
    sub = add_command(commands, mlflow_sync, "add to MLflow what it lacks of runs that trained without it")
    sub.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR", help=f"default: every run directory below {RUNS}/")
    sub.add_argument("--records", type=Path, metavar="FOLDER", help="instead of run directories: a folder of records (*.json)")
    sub.add_argument("--uri", help=default)
    sub.add_argument("--experiment", help="in MLflow (default: that of each run's settings)")
    sub = add_command(commands, bench, "measure training and generation against slow references, and the cost of the sweep")
    sub.add_argument("--gpu", action="store_true", help="measure a training step at full scale on a CUDA device instead")
    sub.add_argument("--only", metavar="PART", help=f"one of: {', '.join(PARTS)}; with --gpu: {', '.join(GPU_PARTS)}")
    sub.add_argument("--records", type=Path, default=Path("results/mask_ratio"), help="of the sweep (default: %(default)s)")
    out = "file for the figures (default: results/bench.json or bench_gpu.json; with --only: none)"
    sub.add_argument("--out", type=Path, help=out)
    sub = add_command(commands, verify, "measure how reliable scorers, the parser of scenes and chance levels are")
    takes = "default: all, half an hour, most of it for parser and chance"
    sub.add_argument("checks", nargs="*", metavar="CHECK", help=f"of: {', '.join(CHECKS)} ({takes})")
    out = "folder for the tables; chance also writes the file in the package that evaluations read"
    sub.add_argument("--out", type=Path, default=Path("results/verification"), help=out)


def init(arguments: argparse.Namespace) -> int:
    for path in start_study(arguments.folder):
        print(f"wrote {path}")
    folder = str(arguments.folder)
    print(f"`cd {shlex.quote(f'./{folder}' if folder.startswith('-') else folder)}`, then `make plan` and `make train`")
    return 0


def components(arguments: argparse.Namespace) -> int:
    from tunalab.data.drawings import caption_source, load_art
    from tunalab.frontends.components.build import Recipe, train_components
    from tunalab.frontends.components.store import collections, components_root

    if arguments.action == "train":
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", arguments.collection):
            raise UserError(f"--collection {arguments.collection!r} is no name of a folder (letters, digits, '.', '_', '-')")
        parts = [word for word in arguments.parts if "=" not in word]
        settings = [*arguments.settings, *(word for word in arguments.parts if "=" in word)]  # behind --parts
        recipe = Recipe().changed(settings)
        recipe = recipe if arguments.seed is None else recipe.seeded(arguments.seed)
        folder = components_root() / arguments.collection
        if arguments.drawings:
            art = load_art(str(arguments.drawings))
            train_components(folder, parts, recipe, captions=caption_source(art), art=art.fingerprint)
        else:
            train_components(folder, parts, recipe)
    for name, collection in collections().items():
        for component in map(collection.component, collection.index):
            path = component.verified()
            quality = "  ".join(f"{key}={value}" for key, value in component.entry.get("quality", {}).items())
            print(f"{name}: {component.name:<20} {path.name}  {quality}")
    return 0


def drawings(arguments: argparse.Namespace) -> int:
    from tunalab.data.drawings.making import make

    counts = make(arguments.to, arguments.packages)
    print(f"{arguments.to}: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    return 0


def dashboard(arguments: argparse.Namespace) -> int:
    from tunalab.tracking.client import default_uri
    from tunalab.tracking.dashboard import serve

    return serve(arguments.uri or default_uri(), arguments.port, arguments.host)


def mlflow_sync(arguments: argparse.Namespace) -> int:
    return int(sync_mlflow(arguments.runs, arguments.records, arguments.uri, arguments.experiment) > 0)


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
