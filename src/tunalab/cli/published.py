"""Commands on images of benchmarks and of several models: `tunalab samples`, `score` and `judge`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import (
    MODEL_HELP,
    add_command,
    add_device,
    add_model_options,
    add_sampling,
    bounds_of,
    load_model,
    request_of,
)
from tunalab.errors import UserError
from tunalab.trained import check_folder

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
    add_sampling(sub, n=None, images="images per prompt, with seeds SEED, SEED+1, ... (default: 4, of edits 1)")
    add_model_options(sub)

    sub = add_command(commands, score, "score images of GenEval, DPG-Bench or any prompts, with models on this machine")
    sub.add_argument("benchmark", choices=("geneval", "dpg", "clip", "hps"))
    images = "images, as `tunalab samples` made them; clip and hps: of any prompts"
    sub.add_argument("images", type=Path, metavar="DIR", help=images)
    data = "evaluation_metadata.jsonl | dpg_bench.csv | clip, hps: JSON lines of image and prompt (default: the images' settings)"
    sub.add_argument("--data", type=Path, metavar="PATH", help=data)
    models = "geneval: Mask2Former of transformers; dpg: VQA model of transformers, or a model of ours; clip, hps: of open_clip"
    sub.add_argument("--model", type=Path, required=True, metavar="FOLDER", help=models)
    clip = "geneval: CLIP of open_clip for colours (official: OpenAI's ViT-L-14, in a file ViT-L-14-quickgelu)"
    sub.add_argument("--clip", type=Path, metavar="FOLDER", help=clip)
    architecture = "open_clip's name of a CLIP whose weights are a file (hps: ViT-H-14)"
    sub.add_argument("--architecture", metavar="NAME", help=architecture)
    sub.add_argument("--cells", type=int, choices=(1, 4), default=4, help="dpg: samples in an image (default: 4)")
    out = "file for the measures; what was found in every image is written beside it"
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.json", help=out)
    sub.add_argument("--record", type=Path, metavar="RUN", help="run directory whose model made the images: add to its record")
    add_device(sub)

    text = "compare images of several models by a judge: any OpenAI-compatible endpoint (TUNALAB_JUDGE_URL, _KEY, _MODEL)"
    sub = add_command(commands, judge, text)
    sub.add_argument("settings", nargs="+", metavar="CANDIDATE", help="run directories, or folders made by `tunalab generate`")
    sub.add_argument("--question", choices=("quality", "diversity"), help="default: both")
    sub.add_argument("--pairwise", action="store_true", help="compare every two candidates, not all at once")
    sub.add_argument("--prompts", type=int, default=100, help="of run directories: held-out captions of scenes (default: 100)")
    sub.add_argument("--n", type=int, default=4, help="of run directories: images per prompt (default: 4)")
    sub.add_argument("--out", type=Path, default=Path("judged"), help="folder for answers and results (default: judged)")
    sub.add_argument("--timeout", type=float, default=120.0, help="seconds per try (default: 120)")
    sub.add_argument("--retries", type=int, default=4, help="after a failed try (default: 4)")
    sub.add_argument("--temperature", type=float, default=0.0, help="of the judge (default: 0)")
    limit = "tokens per answer, with the thoughts of a judge that reasons (default: 4096)"
    sub.add_argument("--max-tokens", type=int, default=4096, help=limit)
    sub.add_argument("--threads", type=int, default=4, help="questions at a time (default: 4)")


def samples(arguments: argparse.Namespace) -> int:
    check_folder(arguments.model)
    from tunalab.interop.samples import SAMPLES, make_items, read_layout
    from tunalab.trained.model import model_config

    if arguments.images is not None and not arguments.images.is_dir():
        raise UserError(f"--images {arguments.images}: no such folder")
    arguments.n = SAMPLES[arguments.benchmark] if arguments.n is None else arguments.n
    request, bounds = request_of(arguments), bounds_of(arguments)
    config = model_config(arguments.model)
    request.sampling(config), request.output_size(config)  # a mistake is an error before the weights are read
    items = read_layout(arguments.benchmark, arguments.data, request.seeds, arguments.images)
    kept = make_items(load_model(arguments), items, request, arguments.out, **bounds)
    there = f", of which {kept} were there" if kept else ""
    print(f"{len(items)} files in {arguments.out}, {items[0].name} to {items[-1].name}{there}")
    return 0


def score(arguments: argparse.Namespace) -> int:
    from tunalab.inference.requests import find_device
    from tunalab.interop.score import score as measure
    from tunalab.records.record import RECORD_FILE

    of = arguments
    device, run = find_device(of.device), of.record
    result = measure(of.benchmark, of.images, of.model, of.out, of.data, of.clip, of.architecture, of.cells, run, device)
    for one in result.measures:
        interval = "" if one.low is None else f" [{one.low:.3f}, {one.high:.3f}]"
        failed = f", {one.failures} images not readable" if one.failures else ""
        print(f"{one.benchmark} {one.metric}: {one.value:.3f}{interval}, n {one.n}{failed}")
    print(f"wrote {of.out}: {result.measures[0].note}")
    if run is not None:
        print(f"wrote {run / RECORD_FILE}")
    return 0


def judge(arguments: argparse.Namespace) -> int:
    for name in ("prompts", "n", "threads", "max_tokens"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}={getattr(arguments, name)} is out of range (from 1)")
    if not 0 <= arguments.temperature <= 2:
        raise UserError(f"--temperature={arguments.temperature:g} is out of range (0 to 2)")
    if arguments.timeout <= 0 or arguments.retries < 0:
        given = f"--timeout={arguments.timeout:g} --retries={arguments.retries}"
        raise UserError(f"{given}: a time above 0 and a count from 0 are needed")
    from tunalab.interop.endpoint import Endpoint
    from tunalab.interop.judge import judge as compare

    of = arguments
    endpoint = Endpoint.from_environment(
        os.environ, of.out / "answers", timeout=of.timeout, retries=of.retries, temperature=of.temperature, max_tokens=of.max_tokens
    )
    questions = [of.question] if of.question else []
    compare(of.settings, endpoint, of.out, questions, of.prompts, of.n, of.pairwise, of.threads)
    return 0
