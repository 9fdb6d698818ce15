"""Evaluation inside a run, at planned token counts. It leaves the model as it found it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tunalab.data.documents import KINDS, PREFIX, Corpus, Document, Image, Kind, Question, Reject, Text, Unfit
from tunalab.data.drawings import DrawingsCorpus
from tunalab.data.packing import PackedBatch, Placed, collate, fill_row
from tunalab.data.rejects import RejectLog
from tunalab.data.scenes import ScenesCorpus, SceneSettings
from tunalab.data.sequence import to_sequence
from tunalab.data.sources import build_source
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.evaluation.benchmarks import Benchmark, benchmarks, scene_prompts, score
from tunalab.evaluation.measure import LossItems, Score
from tunalab.frontends.contract import signed
from tunalab.frontends.vae import psnr
from tunalab.inference.prompts import answers_and_likelihoods, question_prompt
from tunalab.model import flow
from tunalab.model.objective import draw, flow_loss, noised, to_space
from tunalab.model.unified import UnifiedModel
from tunalab.settings.loading import sources_of
from tunalab.settings.schema import SEED, DataConfig, RunConfig


@contextmanager
def evaluation_mode(model: UnifiedModel) -> Iterator[None]:
    """Evaluation mode and no gradients inside; the mode the model was in afterwards, whatever happens."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


# When a run is evaluated: at token counts, log-spaced, the same for every variant.


# Held-out documents of scenes, or of drawings: the same for every run of the same data settings, packed like training's.

SPLIT = "test"
DOCUMENT_SEED = 0
_CHOOSING_SEED = SEED + 1  # larger than any run's, whose documents of the training split these must not be


def held_out(kind: Kind, count: int, config: RunConfig, split: str = SPLIT) -> tuple[Document, ...]:
    """The first ``count`` documents of a kind, at the levels the run trains on; none of them is ever trained on."""
    data = config.data
    seed = _CHOOSING_SEED if split == "train" else DOCUMENT_SEED
    one, two, three = data.levels
    settings = SceneSettings(data.image_size, (one, two, three), data.questions_per_image, seed, data.placement)
    return _documents(kind, count, split, settings, data.drawings if _drawn(config)[0] == "drawings" else "")


def _drawn(config: RunConfig) -> tuple[str, set[str]]:
    """The family of drawn sources that held-out documents are of ("" for none), and every source that a stage trains on."""
    mixed = sources_of(config.stages)
    families = {name.removeprefix(PREFIX).partition("/")[0] for name in mixed}
    return next((family for family in ("scenes", "drawings") if family in families), ""), mixed


# Kept by the process: a run evaluates many times, and drawing and rendering cost more than the model.
@lru_cache(maxsize=16)
def _documents(kind: Kind, count: int, split: str, settings: SceneSettings, art: str) -> tuple[Document, ...]:
    corpus = DrawingsCorpus(kind, split, settings, art) if art else ScenesCorpus(kind, split, settings)
    return tuple(corpus.document(index) for index in range(count))


def held_out_of(name: str, count: int, data: DataConfig) -> list[Document]:
    """``count`` documents of a source of the user's own, the same ones for every run: drawn over all of it, as files may be sorted.

    Broken and unfit ones are left out, as in training, none is taken twice. Raises UserError: the source cannot be opened, or more
    of its documents are broken or unfit than training would bear (data.reject_share, data.unfit_share).
    """
    corpus = build_source(name, data, DOCUMENT_SEED)
    generator = torch.Generator().manual_seed(DOCUMENT_SEED)
    rows: int | None = getattr(corpus, "rows", corpus.length)  # shards in an order of their own have no length, but rows
    order = range(100 * count) if rows is None else torch.randperm(rows, generator=generator).tolist()
    log = RejectLog(None, data.reject_share, data.unfit_share, {name: rows})
    found: list[Document] = []
    for index in order:
        if len(found) == count:
            break
        try:
            found.append(corpus.document(index))
            log.accept(name)
        except Reject as reject:
            log.reject(name, index, str(reject), fits=not isinstance(reject, Unfit))
    if count and not found:
        raise UserError(f"evaluation.losses: no document of {name} can be read")
    return found


def with_held_out(sources: Mapping[str, Corpus], config: RunConfig) -> dict[str, Corpus]:
    """Those that a run trains on, and those that its own held-out losses are of."""
    return {**sources, **{name: build_source(name, config.data, DOCUMENT_SEED) for name in config.evaluation.losses.values()}}


def pictured(config: RunConfig, count: int) -> Sequence[Document]:
    """``count`` held-out documents with an image to generate: drawn ones where a stage trains on such, else the user's own."""
    if _drawn(config)[0]:
        return held_out("text_to_image", count, config)
    own = [document for name in config.evaluation.losses.values() for document in held_out_of(name, count, config.data)]
    return [document for document in own if any(isinstance(one, Image) and one.generate for one in document.segments)][:count]


def prompt_of(document: Document) -> str:
    """The first text of a document: the prompt of a text_to_image one."""
    return next(segment.text for segment in document.segments if isinstance(segment, Text))


def pack(
    documents: Sequence[Document], tokenizer: Tokenizer, token_pixels: int, data: DataConfig
) -> list[tuple[PackedBatch, list[int]]]:
    """Batches of packed rows, each with the numbers of its documents in the order of the batch's document ids."""
    waiting = [Placed(n, to_sequence(document, tokenizer, token_pixels)) for n, document in enumerate(documents)]
    row_tokens = max([data.row_tokens, *(placed.length for placed in waiting)])
    rows = []
    while waiting:
        rows.append(fill_row(waiting, row_tokens))
    packed = []
    for first in range(0, len(rows), data.rows):
        chosen = rows[first : first + data.rows]
        numbers = [placed.position for row in chosen for placed in row]
        packed.append((collate(chosen, row_tokens, tokenizer.pad), numbers))
    return packed


# Held-out losses by kind of document, on fixed documents with fixed draws, nothing masked.
#
# Shapes: D documents, N images, K labelled tokens.

DRAW_SEED = 1  # never the run's
SHORT = 8  # predicted tokens of an answer to a question, its end included; most descriptions of a picture have more


def trained_kinds(config: RunConfig) -> list[Kind]:
    """Kinds of documents of scenes that some stage trains on; of drawings where none trains on scenes."""
    family, mixed = _drawn(config)
    return [kind for kind in KINDS if f"{family}/{kind}" in mixed]


def held_out_losses(model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig) -> dict[str, float]:
    """``text/<kind>``: nats a predicted token; ``short/<kind>``: of the tokens of short answers and captions alone (``SHORT``),
    where there are longer ones too. ``flow/<kind>``: as in training, averaged over visual tokens.

    For every kind of drawn document in the run's stages, and the sources of ``evaluation.losses`` under their names; a loss that
    there are no targets for is left out.
    """
    return held_out_measures(model, tokenizer, config)[0]


@torch.no_grad()
def held_out_measures(
    model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig
) -> tuple[dict[str, float], dict[str, LossItems]]:
    """:func:`held_out_losses`, and those of text by document: all runs are asked the same documents, and differences of losses have
    an error over them too.
    """
    count, split = config.evaluation.loss_documents, config.evaluation.loss_split
    of: dict[str, Sequence[Document]] = {kind: held_out(kind, count, config, split) for kind in trained_kinds(config)}
    of |= {key: held_out_of(name, count, config.data) for key, name in config.evaluation.losses.items()}
    # One document of each in turn: packed together, no batch is without images unless all are.
    turns = (zip(of, group, strict=True) for group in zip_longest(*of.values()))
    named = [(name, document) for turn in turns for name, document in turn if document is not None]
    if not named:
        return {}, {}
    names, documents = [*of], [document for _, document in named]
    # Held-out images are clean: the light noise of training is an augmentation.
    objective = replace(config.objective, understanding_noise=0.0)
    device = model.mask_token.token_D.device
    space = model.frontend.space
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    nats = np.zeros((2, len(documents)))  # of all answers, and of the short ones
    tokens = np.zeros((2, len(documents)), dtype=int)
    for cpu_batch, numbers in pack(documents, tokenizer, space.token_pixels, config.data):
        batch = cpu_batch.to(device)
        name_D = torch.tensor([names.index(named[number][0]) for number in numbers], device=device)
        draws = draw(batch, objective, DRAW_SEED, space, masking=False)
        x = to_space(model, batch)
        x_t = noised(batch, x, draws.noise_nChw, draws.t_N, objective.noise_scale)
        output = model(batch, x_t, draws.t_N, draws.mask_nT)
        error_K = F.cross_entropy(output.logits_KV, batch.label_K, reduction="none").double().cpu().numpy()
        document_K = np.array(numbers)[cpu_batch.document_BL.flatten()[cpu_batch.logit_K].numpy()]
        for at, chosen_K in enumerate((np.full(len(error_K), True), _in_short_answers(cpu_batch.logit_K.numpy(), document_K))):
            np.add.at(nats[at], document_K[chosen_K], error_K[chosen_K])
            np.add.at(tokens[at], document_K[chosen_K], 1)
        name_N = name_D[batch.document_of_images()]
        for number, name in enumerate(names):
            part = flow_loss(output.prediction_mChw, x, batch, draws, objective, name_N == number)
            sums[f"flow/{name}"] += part.sum.item()
            counts[f"flow/{name}"] += part.count
    items: dict[str, LossItems] = {}
    for name in names:
        mine = np.array([other == name for other, _ in named])
        for at, sort in enumerate(("text", "short")):
            key = f"{sort}/{name}"
            sums[key], counts[key] = float(nats[at, mine].sum()), int(tokens[at, mine].sum())
            if sort == "short" and counts[key] == counts[f"text/{name}"]:
                counts[key] = 0  # no longer ones
            if counts[key]:
                items[key] = LossItems.of(nats[at, mine], tokens[at, mine])
    return {name: sums[name] / counts[name] for name in sorted(counts) if counts[name]}, items


def _in_short_answers(logit_K: np.ndarray, document_K: np.ndarray) -> np.ndarray:
    """Which predicted tokens belong to an answer of at most ``SHORT``: (K,). The tokens of an answer follow each other."""
    begins = np.flatnonzero(np.diff(logit_K, prepend=-2) != 1)
    begins = np.union1d(begins, np.flatnonzero(np.diff(document_K, prepend=-1)))  # answers of two documents may touch
    lengths = np.diff(begins, append=len(logit_K))
    found: np.ndarray = np.repeat(lengths <= SHORT, lengths)
    return found


# One-step reconstruction: how near, in pixels, the model's clean prediction from x_t is to the image.
#
# In pixels after ``from_space`` because squared errors of different target spaces cannot be compared.
#
# Shapes: N images, C H W of an image.

NOISE_SEED = 2  # never the run's


@torch.no_grad()
def one_step_psnr(model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig) -> dict[str, float]:
    """Flow time t -> dB, the mean over images, for held-out documents with fixed noise (``pictured``)."""
    space = model.frontend.space
    times = config.evaluation.psnr_times
    documents = pictured(config, config.evaluation.psnr_images)
    found: dict[float, list[Tensor]] = {t: [] for t in times}
    objective = replace(config.objective, understanding_noise=0.0)
    for cpu_batch, _ in pack(documents, tokenizer, space.token_pixels, config.data) if documents else []:
        batch = cpu_batch.to(model.mask_token.token_D.device)
        draws = draw(batch, objective, NOISE_SEED, space, masking=False)
        x = to_space(model, batch)
        for t in times:
            t_N = torch.full_like(draws.t_N, t)
            x_t = noised(batch, x, draws.noise_nChw, t_N, objective.noise_scale)
            predictions = model(batch, x_t, t_N, draws.mask_nT).prediction_mChw
            for group, t_n, noisy, prediction in zip(batch.groups, batch.by_group(t_N), x_t, predictions, strict=True):
                clean = flow.clean(prediction, noisy, t_n, objective.prediction)
                image_nCHW = signed(group.pixels_nHWC.permute(0, 3, 1, 2))
                found[t].append(psnr(model.frontend.from_space(clean), image_nCHW))
    return {f"{t:g}": torch.cat(values).mean().item() for t, values in found.items() if values}


# Everything that is measured at a point of a run, in the form its record keeps.


def evaluate(model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig) -> dict[str, Any]:
    """``benchmarks`` (name -> fields of a Score), ``losses`` (name -> nats or squared error), ``loss_items`` (name -> fields of
    LossItems), ``one_step_psnr`` (t -> dB).

    The model's training mode is restored. Raises UserError when a benchmark's data is missing.
    """
    with evaluation_mode(model):
        scores = asked(model, tokenizer, benchmarks(config), config.evaluation.max_answer_tokens)
        scores |= {one.name: one.ask(model, tokenizer, config) for one in scene_prompts(config)}
        losses, items = held_out_measures(model, tokenizer, config)
        return {
            "benchmarks": {name: asdict(one) for name, one in scores.items()},
            "losses": losses,
            "loss_items": {name: asdict(one) for name, one in items.items()},
            "one_step_psnr": one_step_psnr(model, tokenizer, config),
        }


def asked(model: UnifiedModel, tokenizer: Tokenizer, chosen: Sequence[Benchmark], max_tokens: int) -> dict[str, Score]:
    """Scores by name. ``max_tokens``: limit of replies to benchmarks that have none of their own."""
    scores: dict[str, Score] = {}
    for limit in dict.fromkeys(benchmark.max_tokens for benchmark in chosen):
        alike = [benchmark for benchmark in chosen if benchmark.max_tokens == limit]
        questions = [question for benchmark in alike for question in benchmark.questions]
        scores |= scored(alike, *answers_and_margins(model, tokenizer, questions, limit or max_tokens))
    return {benchmark.name: scores[benchmark.name] for benchmark in chosen}


def answers_and_margins(
    model: UnifiedModel, tokenizer: Tokenizer, questions: Sequence[Question], max_tokens: int
) -> tuple[list[str], list[float | None]]:
    """All questions are asked at once: larger batches of equal length.

    The margin is the log-likelihood of the best right option less that of the best wrong one, in nats; None without options.
    """
    prompts = [question_prompt(tokenizer, model.frontend.space, question.image_HWC, question.prompt) for question in questions]
    encoded = {text: tokenizer.encode(text) for text in {option for question in questions for option in question.options}}
    options = [[encoded[option] for option in question.options] for question in questions]
    answers, likelihoods = answers_and_likelihoods(model, prompts, options, max_tokens, tokenizer.eos)
    decoded = {ids: tokenizer.decode(ids) for ids in {tuple(ids) for ids in answers}}  # most answers are given many times
    return [decoded[tuple(ids)] for ids in answers], [margin(*pair) for pair in zip(questions, likelihoods, strict=True)]


def margin(question: Question, likelihoods: Sequence[float]) -> float | None:
    """``likelihoods``: of the question's options, in nats."""
    if not question.options:
        return None
    right = {question.answer, *question.also}
    sides: dict[bool, list[float]] = {True: [], False: []}
    for option, value in zip(question.options, likelihoods, strict=True):
        sides[option in right].append(value)
    return max(sides[True]) - max(sides[False])


def scored(chosen: Sequence[Benchmark], answers: Sequence[str], margins: Sequence[float | None] = ()) -> dict[str, Score]:
    """Scores of the answers to all questions of some benchmarks, in order."""
    scores, first = {}, 0
    for benchmark in chosen:
        last = first + len(benchmark.questions)
        scores[benchmark.name] = score(benchmark, answers[first:last], margins[first:last] or None)
        first = last
    return scores
