"""Commands around the runs: `tunalab components`, `tunalab dashboard` and `tunalab bench`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command, build_components

if TYPE_CHECKING:
    from tunalab.cli.common import Commands


def add(commands: "Commands") -> None:
    sub = add_command(commands, components, "build the tiny tokenizer, VAE and encoder that are not built yet")
    sub.add_argument("--seed", type=int, default=0)
    sub = add_command(commands, dashboard, "open MLflow's page on the runs")
    sub.add_argument("--uri", help="default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    sub.add_argument("--port", type=int, default=5000)
    sub = add_command(commands, bench, "measure training and generation against their slow references")
    sub.add_argument("--only", choices=("training", "generation"))
    sub.add_argument("--out", type=Path, default=Path("results/bench.json"))


def components(arguments: argparse.Namespace) -> int:
    build_components({arguments.seed})
    return 0


def dashboard(arguments: argparse.Namespace) -> int:
    from tunalab.results.dashboard import serve
    from tunalab.results.mlflow_client import default_uri

    return serve(arguments.uri or default_uri(), arguments.port)


def bench(arguments: argparse.Namespace) -> int:
    from tunalab.bench.run import bench as run_bench

    return run_bench(arguments.only, arguments.out)
