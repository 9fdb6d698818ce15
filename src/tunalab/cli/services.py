"""Commands around the runs: `tunalab components`, `tunalab dashboard` and `tunalab bench`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.bench import GPU_PARTS, PARTS
from tunalab.cli.common import add_command, build_components
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands


def add(commands: "Commands") -> None:
    sub = add_command(commands, components, "build the tiny tokenizer, VAE and encoder that are not built yet")
    sub.add_argument("--seed", type=int, default=0)
    sub = add_command(commands, dashboard, "open MLflow's page on the runs")
    sub.add_argument("--uri", help="default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    sub.add_argument("--port", type=int, default=5000)
    sub = add_command(commands, bench, "measure training and generation against their slow references, and what the sweep took")
    sub.add_argument("--gpu", action="store_true", help="instead: a training step at full scale on a CUDA device")
    sub.add_argument("--only", metavar="PART", help=f"of: {', '.join(PARTS)}; with --gpu: {', '.join(GPU_PARTS)}")
    sub.add_argument("--records", type=Path, default=Path("results/mask_ratio"), help="of the sweep")
    sub.add_argument(
        "--out", type=Path, help="file for the figures; default: results/bench.json (bench_gpu.json), with --only none"
    )


def components(arguments: argparse.Namespace) -> int:
    build_components({arguments.seed})
    return 0


def dashboard(arguments: argparse.Namespace) -> int:
    from tunalab.results.dashboard import serve
    from tunalab.results.mlflow_client import default_uri

    return serve(arguments.uri or default_uri(), arguments.port)


def bench(arguments: argparse.Namespace) -> int:
    from tunalab.bench.gpu import bench_gpu
    from tunalab.bench.run import bench as run_bench

    parts = GPU_PARTS if arguments.gpu else PARTS
    if arguments.only not in (None, *parts):
        raise UserError(f"--only {arguments.only} is not known (choices{' with --gpu' * arguments.gpu}: {', '.join(parts)})")
    name = "bench_gpu.json" if arguments.gpu else "bench.json"
    out = arguments.out or (None if arguments.only else Path("results") / name)
    return bench_gpu(arguments.only, out) if arguments.gpu else run_bench(arguments.only, out, arguments.records)
