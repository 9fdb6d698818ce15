"""Scores of images of GenEval, DPG-Bench or any prompts, by models that the user brings: `tunalab score`."""

import time
from pathlib import Path
from typing import Any

import torch

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.subject import Subject
from tunalab.evaluation.whole import Evaluated, to_text
from tunalab.files import sha256, write_atomically
from tunalab.inference.requests import find_device
from tunalab.interop.clip import CLIP_SCORE, HPS, Clip, ZeroShotColours, prompted_images, score_fit
from tunalab.interop.dpg import VQA, OwnVQA, TransformersVQA, find_images, read_questions, score_dpg
from tunalab.interop.geneval import Mask2Former, find_samples, read_prompts, score_geneval
from tunalab.interop.outcomes import Outcomes
from tunalab.interop.samples import makers, origin
from tunalab.records.record import RECORD_FILE, add_evaluation, read_record, same_state
from tunalab.settings.loading import completed, plain_hash
from tunalab.trained.model import load

BENCHMARKS = ("geneval", "dpg", "clip", "hps")
HPS_ARCHITECTURE = "ViT-H-14"


def score(
    benchmark: str,
    images: Path,
    model: Path,
    out: Path,
    data: Path | None = None,
    clip: Path | None = None,
    architecture: str | None = None,
    cells: int = 4,
    run: Path | None = None,
    device: torch.device | None = None,
) -> Evaluated:
    """Score the images in a folder; the measures are written to ``out``, and what was found in each image beside it.

    ``benchmark``: geneval (``model``: Mask2Former of transformers; ``clip``: of open_clip, for colours), dpg (a VQA model of
    transformers, or a model of ours; ``cells``: samples in an image, 1 or 4), clip or hps (of open_clip). ``data``: the benchmark's
    own file; of clip and hps JSON lines of image and prompt, by default the images' own settings. ``architecture``: of a CLIP whose
    weights are a file, by open_clip's name. ``run``: run directory whose model made the images, for its record.

    Raises UserError, one line: something is missing or damaged, or the images are of another model than that of ``run``.
    """
    began = time.perf_counter()
    made_by = makers(images)
    if run is not None:
        _check_run(run, images, made_by)
    if data is None and benchmark in ("geneval", "dpg"):
        raise UserError("--data is missing: the benchmark's own file")
    device = device or find_device(None)
    kept = out.with_suffix(".images.jsonl")
    measures: list[Measure]
    if benchmark == "geneval":
        assert data is not None
        prompts = read_prompts(data)
        find_samples(images, prompts)  # what is missing is an error before models are loaded
        detector = Mask2Former(model, device)
        colours = None if clip is None else ZeroShotColours(Clip(clip, architecture, device))
        of = ["geneval", detector.identity, None if colours is None else colours.clip.identity]
        measures = score_geneval(images, prompts, detector, colours, Outcomes(kept, of))
        scorer = detector.name if colours is None else f"{detector.name}, {colours.name}"
    elif benchmark == "dpg":
        assert data is not None
        questions = read_questions(data)
        find_images(images, questions)
        vqa = vqa_of(model, device)
        measures = score_dpg(images, questions, cells, vqa, Outcomes(kept, ["dpg", vqa.identity]))
        scorer = vqa.name
    else:
        prompted, of_hps = prompted_images(images, data), benchmark == "hps"
        fit = Clip(model, architecture or (HPS_ARCHITECTURE if of_hps else None), device, padded=of_hps)
        measures = score_fit(HPS if of_hps else CLIP_SCORE, prompted, fit, Outcomes(kept, ["fit", fit.identity]))
        scorer = fit.name
    settings = {"scorer": scorer, "data": None if data is None else sha256(data)[:12]}
    state = origin(made_by[0]) if len(made_by) == 1 else {}
    result = Evaluated(f"score-{benchmark}", settings, state, time.perf_counter() - began, measures)
    try:
        write_atomically(out, to_text(result))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    if run is not None:
        add_evaluation(run / RECORD_FILE, [result])
    return result


def vqa_of(folder: Path, device: torch.device) -> VQA:
    """A model of transformers where the folder is of its form, else one of ours."""
    if (folder / "config.json").is_file():
        return TransformersVQA(folder, device)
    ours = load(folder, device)
    return OwnVQA(Subject(ours.model, ours.tokenizer, ours.config, folder, ours.origin), ours.identity)


def _check_run(run: Path, images: Path, made_by: list[dict[str, Any]]) -> None:
    """Raises UserError: there is no record, or the images are not of the state of the model that its evaluation is of."""
    record = read_record(run / RECORD_FILE)
    # As it was trained, and as today's settings call the same run.
    of_run = {(record.run.name, of) for of in (record.run.config_hash, plain_hash(completed(record.config)))}
    if len(made_by) != 1 or (made_by[0]["name"], made_by[0]["config_hash"]) not in of_run:
        names = ", ".join(model["name"] for model in made_by) or "no model that they name"
        raise UserError(f"{images} was made by {names}, not by {record.run.name} alone: it cannot go into its record")
    if not all(same_state(result.origin, origin(made_by[0])) for result in record.evaluation):
        raise UserError(f"{run} was evaluated in another state than the one that made {images}: make the images again")
