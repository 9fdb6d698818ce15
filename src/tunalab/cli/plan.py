"""`tunalab plan`: what a run, or every run of a sweep, would cost, before anything is downloaded."""

import argparse
import json
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command
from tunalab.errors import UserError
from tunalab.library import run_config

if TYPE_CHECKING:
    from tunalab.cli.common import Commands


def add(commands: "Commands") -> None:
    text = (
        "parameters, FLOPs, memory and days of a run, or GPU-hours, storage and price of a sweep; no weights, no data, no network"
    )
    sub = add_command(commands, plan, text)
    words = "a file of experiments/ and one of variants/, or a file of sweeps/ alone; then settings over them"
    sub.add_argument("settings", nargs="*", metavar="EXPERIMENT VARIANT | SWEEP [key=value]", help=words)
    sub.add_argument("--gpus", type=int, default=1, help="of a run; default: 1")
    sub.add_argument("--gpu", help="by name, for its rate and memory (a100, h100, h200, ...); default: h100")
    sub.add_argument("--gpu-flops", type=float, help="FLOPs a second in dense bfloat16, in the place of a named GPU's")
    sub.add_argument("--utilisation", type=float, default=0.4, help="share of that rate that training reaches; default: 0.4")
    sub.add_argument("--sharding", choices=("none", "ddp", "fsdp2"), help="default: distribution.strategy of the experiment")
    sub.add_argument("--price", type=float, help="of a sweep: dollars a GPU-hour; default: 2.5, a round figure for a rented H100")
    sub.add_argument("--sample", action="store_true", help="read the run's own data instead of assuming lengths of documents")
    sub.add_argument("--json", action="store_true", help="everything as JSON")


def plan(arguments: argparse.Namespace) -> int:
    names = [word for word in arguments.settings if "=" not in word]
    settings = [word for word in arguments.settings if "=" in word]
    if len(names) not in (1, 2):
        raise UserError(f"EXPERIMENT VARIANT, or a SWEEP alone, is to be planned, not {' '.join(names) or 'nothing'}")
    return _sweep(names[0], settings, arguments) if len(names) == 1 else _run(names[0], names[1], settings, arguments)


def _run(experiment: str, variant: str, settings: list[str], arguments: argparse.Namespace) -> int:
    if arguments.price is not None:
        raise UserError("--price is for a sweep: `tunalab plan SWEEP`")
    config = run_config(experiment, variant, settings)
    from tunalab.planning.plan import find_gpu, make_plan, to_plain, to_text

    made = make_plan(
        config,
        find_gpu(arguments.gpu, arguments.gpu_flops),
        gpus=arguments.gpus,
        utilisation=arguments.utilisation,
        sharding=arguments.sharding,
        sample=arguments.sample,
    )
    print(json.dumps(to_plain(made), indent=1) if arguments.json else to_text(made))
    return 0


def _sweep(name: str, settings: list[str], arguments: argparse.Namespace) -> int:
    from tunalab.library import cell_config
    from tunalab.settings.layers import find, located
    from tunalab.sweeps.grid import check_settings, expand, load_sweep

    if located("sweeps", name) is None and located("experiments", name):
        raise UserError(f"{name} is an experiment: `tunalab plan {name} VARIANT`")
    loaded = load_sweep(find("sweeps", name))
    check_settings(loaded, settings)
    configs = {cell.name: cell_config(cell, settings) for cell in expand(loaded)}
    from tunalab.planning.plan import find_gpu
    from tunalab.planning.sweep import PRICE, plan_sweep, to_plain_sweep, to_text_sweep

    planned = plan_sweep(
        loaded.name,
        configs,
        find_gpu(arguments.gpu, arguments.gpu_flops),
        gpus=arguments.gpus,
        utilisation=arguments.utilisation,
        sharding=arguments.sharding,
        sample=arguments.sample,
        hourly=PRICE if arguments.price is None else arguments.price,
    )
    print(json.dumps(to_plain_sweep(planned), indent=1) if arguments.json else to_text_sweep(planned))
    return 0
