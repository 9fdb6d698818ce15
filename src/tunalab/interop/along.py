"""GenEval and DPG-Bench along a run: which images a run keeps at its points, and their scores by models of the user's.

    geneval   path: evaluation_metadata.jsonl; scorer: Mask2Former of transformers; clip: of open_clip, for colours. The share of
              right images, as many of each of the six tags as can be: with equally many it is the mean over tags.
    dpg       path: ELLA's folder dpg_bench (prompts/, dpg_bench.csv); scorer: a VQA model of transformers, or a model of ours. The
              share of questions answered yes under the rule of dependencies, all items (interop/dpg.py).

One image a prompt, in few steps: a curve to compare runs by, not the figure of a paper, which `tunalab samples` and `score` make.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from tunalab.errors import UserError
from tunalab.evaluation.generation.along import KeptImages, spread
from tunalab.evaluation.jsonl import subset
from tunalab.evaluation.measure import Score
from tunalab.inference.requests import find_device
from tunalab.interop.clip import Clip, ZeroShotColours
from tunalab.interop.dpg import VQA, YES, Question, counted_right, plain_answer, read_questions
from tunalab.interop.geneval import GenEvalPrompt, Mask2Former, folder_of, metadata_of, read_prompts, sample_of, score_geneval
from tunalab.interop.outcomes import Outcomes, pooled_measure
from tunalab.interop.samples import dpg as dpg_items
from tunalab.interop.samples import keep_text
from tunalab.interop.score import vqa_of
from tunalab.settings.schema import BenchmarkConfig, RunConfig

KEPT = "scored.jsonl"  # beside the images: what was found in each


def geneval(key: str, chosen: BenchmarkConfig, config: RunConfig) -> KeptImages:
    """Raises UserError, one line: the prompts cannot be read, or ask for colours and no CLIP is named."""
    every = read_prompts(Path(chosen.path))
    asked = [every[number] for number in spread([prompt.tag for prompt in every], chosen.limit)]
    if chosen.scorer and not chosen.clip and any(prompt.needs_colour for prompt in asked):
        raise UserError(f"evaluation.benchmarks.{key}.clip is missing: GenEval has questions about colours (a CLIP of open_clip)")
    judge = partial(_geneval_score, prompts=asked, detector=Path(chosen.scorer), clip=Path(chosen.clip) if chosen.clip else None)
    return KeptImages(
        key,
        tuple(prompt.text for prompt in asked),
        len(every),
        chosen.steps,
        files=tuple(f"{folder_of(number)}/samples/{sample_of(0)}" for number in range(len(asked))),
        beside=partial(_write_metadata, prompts=asked),
        judge=judge if chosen.scorer else None,
    )


def _write_metadata(folder: Path, prompts: Sequence[GenEvalPrompt]) -> None:
    for number, prompt in enumerate(prompts):
        keep_text(f"{folder_of(number)}/metadata.jsonl", metadata_of(prompt), folder)


@lru_cache(maxsize=1)
def _detector(folder: Path, clip: Path | None) -> tuple[Mask2Former, ZeroShotColours | None]:
    device = find_device(None)
    return Mask2Former(folder, device), None if clip is None else ZeroShotColours(Clip(clip, None, device))


def _geneval_score(folder: Path, prompts: Sequence[GenEvalPrompt], detector: Path, clip: Path | None) -> Score:
    found, colours = _detector(detector, clip)
    about = ["geneval", found.identity, None if colours is None else colours.clip.identity]
    _, *tags = score_geneval(folder, prompts, found, colours, Outcomes(folder / KEPT, about))
    return Score.from_outcomes([value == 1 for tag in tags for value in tag.items], chance=0.0)


def dpg(key: str, chosen: BenchmarkConfig, config: RunConfig) -> KeptImages:
    """Raises UserError, one line: prompts or questions cannot be read, or are not of one another."""
    folder = Path(chosen.path)
    text_of = {Path(item.name).stem: item.text for item in dpg_items(folder / "prompts", [0], None)}
    questions = read_questions(folder / "dpg_bench.csv")
    both = [item for item in questions if item in text_of]
    if not both:
        raise UserError(f"evaluation.benchmarks.{key}.path={folder}: no item of dpg_bench.csv has a prompt in prompts/")
    chosen_numbers = subset(range(len(both)), chosen.limit)
    asked = {item: questions[item] for number, item in enumerate(both) if number in chosen_numbers}
    return KeptImages(
        key,
        tuple(text_of[item] for item in asked),
        len(both),
        chosen.steps,
        files=tuple(f"{item}.png" for item in asked),
        judge=partial(_dpg_score, questions=asked, scorer=Path(chosen.scorer)) if chosen.scorer else None,
    )


@lru_cache(maxsize=1)
def _vqa(folder: Path) -> VQA:
    return vqa_of(folder, find_device(None))


def _dpg_score(folder: Path, questions: Mapping[str, Sequence[Question]], scorer: Path) -> Score:
    """The interval resamples images: questions of one image are not independent. So the record holds counts, no outcomes."""
    vqa = _vqa(scorer)
    outcomes = Outcomes(folder / KEPT, ["dpg", vqa.identity])
    counts: list[tuple[int, int]] = []
    for item, those in questions.items():
        texts = [question.text for question in those]
        found = outcomes.of(
            folder / f"{item}.png",
            texts,
            lambda pixels_HWC, texts=texts: {"answers": vqa.answers([(pixels_HWC, text) for text in texts])},  # type: ignore[misc]
        )
        if found is None:
            raise UserError(f"{folder / item}.png cannot be read: remove it, and it is made again")
        counts.append((sum(counted_right(those, [plain_answer(one) == YES for one in found["answers"]])), len(those)))
    right, of = (sum(numbers) for numbers in zip(*counts, strict=True))
    score = Score.of(right, of, chance=0.0)
    pooled = pooled_measure("DPG-Bench", "overall", counts, "")
    return score if pooled.low is None or pooled.high is None else replace(score, low=pooled.low, high=pooled.high)
