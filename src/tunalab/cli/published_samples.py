"""`tunalab samples`: images of the published benchmarks' prompts, in the layouts that their own scripts read."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import (
    MODEL_HELP,
    add_command,
    add_model_options,
    add_sampling,
    bounds_of,
    load_model,
    request_of,
)
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands

BENCHMARKS = ("geneval", "dpg", "imgedit", "gedit")


def add(commands: "Commands") -> None:
    sub = add_command(commands, samples, "make the images of a published benchmark, in the layout that its own scripts read")
    sub.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    sub.add_argument("benchmark", choices=BENCHMARKS)
    data = "evaluation_metadata.jsonl | folder of <item_id>.txt | ImgEdit's JSON | GEdit's Parquet, folder of it, or JSON lines"
    sub.add_argument("--data", type=Path, required=True, metavar="PATH", help=data)
    sub.add_argument("--images", type=Path, metavar="DIR", help="folder of the images to edit (default: that of --data)")
    add_sampling(sub, n=None, images="images a prompt, of seeds SEED, SEED+1, ... (default: 4, of edits 1)")
    add_model_options(sub)


def samples(arguments: argparse.Namespace) -> int:
    from tunalab.inference.orders import Manner, input_buckets
    from tunalab.interop.samples import SAMPLES, make_items, read_layout
    from tunalab.trained.model import model_config

    if arguments.images is not None and not arguments.images.is_dir():
        raise UserError(f"--images {arguments.images}: no such folder")
    arguments.n = SAMPLES[arguments.benchmark] if arguments.n is None else arguments.n
    request, bounds = request_of(arguments), bounds_of(arguments)
    config = model_config(arguments.model)
    sampling, size = request.sampling(config), request.output_size(config)
    items = read_layout(arguments.benchmark, arguments.data, request.seeds, arguments.images)
    loaded = load_model(arguments)
    kept = make_items(
        loaded.model,
        loaded.tokenizer,
        loaded.config.objective,
        Manner(loaded.identity, size, sampling, loaded.precision),
        input_buckets(config.data, arguments.size),
        items,
        arguments.out,
        **bounds,
    )
    there = f", of which {kept} were there" if kept else ""
    print(f"{len(items)} files in {arguments.out}, {items[0].name} to {items[-1].name}{there}")
    return 0
