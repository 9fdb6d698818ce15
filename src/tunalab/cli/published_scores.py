"""`tunalab score`: images of published benchmarks, judged by models that the user brings."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.cli.common import add_command
from tunalab.errors import UserError

if TYPE_CHECKING:
    import torch

    from tunalab.cli.common import Commands
    from tunalab.evaluation.measure import Measure
    from tunalab.evaluation.whole import Evaluated
    from tunalab.interop.dpg import VQA

    Scored = tuple[list[Measure], str]  # and by what

BENCHMARKS = ("geneval", "dpg", "clip", "hps")
HPS_ARCHITECTURE = "ViT-H-14"


def add(commands: "Commands") -> None:
    sub = add_command(commands, score, "score images of GenEval, DPG-Bench or any prompts, with models of this machine")
    sub.add_argument("benchmark", choices=BENCHMARKS)
    sub.add_argument(
        "images", type=Path, metavar="DIR", help="images, as `tunalab samples` made them; clip and hps: of any prompts"
    )
    data = "evaluation_metadata.jsonl | dpg_bench.csv | clip, hps: JSON lines of image and prompt (default: the images tell)"
    sub.add_argument("--data", type=Path, metavar="PATH", help=data)
    models = "geneval: Mask2Former of transformers; dpg: VQA model of transformers, or a model of ours; clip, hps: of open_clip"
    sub.add_argument("--model", type=Path, required=True, metavar="FOLDER", help=models)
    sub.add_argument(
        "--clip",
        type=Path,
        metavar="FOLDER",
        help="geneval: CLIP of open_clip that tells colours (official: OpenAI's ViT-L-14, in a file ViT-L-14-quickgelu)",
    )
    architecture = "of a CLIP whose weights are a file, as open_clip calls it (hps: ViT-H-14)"
    sub.add_argument("--architecture", metavar="NAME", help=architecture)
    sub.add_argument("--cells", type=int, choices=(1, 4), default=4, help="dpg: samples in an image (default: 4)")
    sub.add_argument(
        "--out", type=Path, required=True, metavar="FILE.json", help="measures; beside it what was found in every image"
    )
    sub.add_argument(
        "--record", type=Path, metavar="RUN", help="run directory of the model that made the images: into its record too"
    )
    sub.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")


def score(arguments: argparse.Namespace) -> int:
    import time

    from tunalab.evaluation.whole import Evaluated, to_text
    from tunalab.files import sha256, write_atomically
    from tunalab.inference.orders import find_device
    from tunalab.interop.samples import makers, origin

    began = time.perf_counter()
    made_by = makers(arguments.images)
    if arguments.record is not None:
        _check_run(arguments.record, arguments.images, made_by)
    measures, scorer = SCORERS[arguments.benchmark](arguments, find_device(arguments.device))
    settings = {"scorer": scorer, "data": None if arguments.data is None else sha256(arguments.data)[:12]}
    of = origin(made_by[0]) if len(made_by) == 1 else {}
    result = Evaluated(f"score-{arguments.benchmark}", settings, of, time.perf_counter() - began, measures)
    try:
        write_atomically(arguments.out, to_text(result))
    except OSError as error:
        raise UserError(f"{arguments.out} cannot be written: {error.strerror}") from error
    for measure in measures:
        interval = "" if measure.low is None else f" [{measure.low:.3f}, {measure.high:.3f}]"
        failed = f", {measure.failures} images not readable" if measure.failures else ""
        print(f"{measure.benchmark} {measure.metric}: {measure.value:.3f}{interval}, n {measure.n}{failed}")
    print(f"wrote {arguments.out}: {measures[0].note}")
    if arguments.record is not None:
        _record(arguments.record, result)
    return 0


def _geneval(arguments: argparse.Namespace, device: "torch.device") -> "Scored":
    from tunalab.interop.clip import Clip, ZeroShotColours
    from tunalab.interop.geneval import Mask2Former, find_samples, read_prompts, score_geneval
    from tunalab.interop.outcomes import Outcomes

    prompts = read_prompts(_needed(arguments.data))
    find_samples(arguments.images, prompts)  # what is missing is told before models are loaded
    detector = Mask2Former(arguments.model, device)
    colours = None if arguments.clip is None else ZeroShotColours(Clip(arguments.clip, arguments.architecture, device))
    scorer = ["geneval", detector.identity, None if colours is None else colours.clip.identity]
    measures = score_geneval(arguments.images, prompts, detector, colours, Outcomes(_images_file(arguments), scorer))
    return measures, detector.name if colours is None else f"{detector.name}, {colours.name}"


def _dpg(arguments: argparse.Namespace, device: "torch.device") -> "Scored":
    from tunalab.interop.dpg import find_images, read_questions, score_dpg
    from tunalab.interop.outcomes import Outcomes

    questions = read_questions(_needed(arguments.data))
    find_images(arguments.images, questions)
    vqa = _vqa(arguments.model, device)
    outcomes = Outcomes(_images_file(arguments), ["dpg", vqa.identity])
    return score_dpg(arguments.images, questions, arguments.cells, vqa, outcomes), vqa.name


def _fit(arguments: argparse.Namespace, device: "torch.device") -> "Scored":
    from tunalab.interop.clip import CLIP_SCORE, HPS, Clip, prompted_images, score_fit
    from tunalab.interop.outcomes import Outcomes

    images = prompted_images(arguments.images, arguments.data)
    of_hps = arguments.benchmark == "hps"
    architecture = arguments.architecture or (HPS_ARCHITECTURE if of_hps else None)
    clip = Clip(arguments.model, architecture, device, padded=of_hps)
    outcomes = Outcomes(_images_file(arguments), ["fit", clip.identity])
    return score_fit(HPS if of_hps else CLIP_SCORE, images, clip, outcomes), clip.name


SCORERS = {"geneval": _geneval, "dpg": _dpg, "clip": _fit, "hps": _fit}


def _vqa(folder: Path, device: "torch.device") -> "VQA":
    """One of transformers where the folder is of its form, else a model of ours."""
    from tunalab.interop.dpg import OwnVQA, TransformersVQA

    if (folder / "config.json").is_file():
        return TransformersVQA(folder, device)
    from tunalab.evaluation.subject import Subject
    from tunalab.trained.model import load

    loaded = load(folder, device)
    return OwnVQA(Subject(loaded.model, loaded.tokenizer, loaded.config, folder, loaded.origin), loaded.identity)


def _needed(data: Path | None) -> Path:
    if data is None:
        raise UserError("--data is missing: the benchmark's own file")
    return data


def _images_file(arguments: argparse.Namespace) -> Path:
    out: Path = arguments.out
    return out.with_suffix(".images.jsonl")


def _check_run(run: Path, images: Path, made_by: list[dict[str, Any]]) -> None:
    """Raises UserError: there is no record, or the images are not of the state of the model that its evaluation is of."""
    from tunalab.interop.samples import origin
    from tunalab.records.record import RECORD_FILE, read_record, same_state
    from tunalab.settings.loading import completed, plain_hash

    record = read_record(run / RECORD_FILE)
    # As it was trained, and as today's settings call the same run.
    of_run = {(record.run.name, of) for of in (record.run.config_hash, plain_hash(completed(record.config)))}
    if len(made_by) != 1 or (made_by[0]["name"], made_by[0]["config_hash"]) not in of_run:
        names = ", ".join(model["name"] for model in made_by) or "no model that they name"
        raise UserError(f"{images} was made by {names}, not by {record.run.name} alone: it cannot go into its record")
    if not all(same_state(result.origin, origin(made_by[0])) for result in record.evaluation):
        raise UserError(f"{run} was evaluated in another state than the one that made {images}: make the images again")


def _record(run: Path, result: "Evaluated") -> None:
    from tunalab.records.record import RECORD_FILE, add_evaluation

    add_evaluation(run / RECORD_FILE, [result])
    print(f"wrote {run / RECORD_FILE}")
