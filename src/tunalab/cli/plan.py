"""`tunalab plan`: what a run would cost, before anything is downloaded."""

import argparse
import json
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command, add_settings, run_config

if TYPE_CHECKING:
    from tunalab.cli.common import Commands


def add(commands: "Commands") -> None:
    sub = add_command(commands, plan, "parameters, FLOPs, memory and days of a run; no weights, no data, no network")
    sub.add_argument("experiment", help="a file of experiments/")
    sub.add_argument("variant", help="a file of variants/")
    sub.add_argument("--gpus", type=int, default=1, help="default: 1")
    sub.add_argument("--gpu", help="by name, for its rate and memory (a100, h100, h200, ...); default: h100")
    sub.add_argument("--gpu-flops", type=float, help="FLOPs a second in dense bfloat16, in the place of a named GPU's")
    sub.add_argument("--utilisation", type=float, default=0.4, help="share of that rate that training reaches; default: 0.4")
    sub.add_argument("--sharding", choices=("none", "ddp", "fsdp2"), help="default: distribution.strategy of the experiment")
    sub.add_argument("--sample", action="store_true", help="read the run's own data instead of assuming lengths of documents")
    sub.add_argument("--json", action="store_true", help="everything as JSON")
    add_settings(sub)


def plan(arguments: argparse.Namespace) -> int:
    config = run_config(arguments.experiment, arguments.variant, arguments.settings)
    from tunalab.planning.hardware import find_gpu
    from tunalab.planning.plan import make_plan
    from tunalab.planning.report import to_plain, to_text

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
