"""What the data of a run are, before anything is trained: documents, rejects, lengths, pictures, the mix by tokens, digests.

Documents are read as the training stream reads them: through the same readers, buckets, tokenizer, mixer and limits of rejects. So
the first documents of a source are here those that a run of one process reads first.

Shapes: H W C pixels and channels of a picture.
"""

import hashlib
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from scipy.spatial.distance import cdist

from tunalab.data.buckets import Buckets, Fit, Size
from tunalab.data.changes import FILES_AND_IMAGES, data_versions, look_at
from tunalab.data.documents import PREFIX, Corpus, Document, Image, Question, Reject, Text, Unfit
from tunalab.data.mixing import Mixer
from tunalab.data.rejects import RejectLog
from tunalab.data.sequence import TokenSequence, to_sequence
from tunalab.data.sources import build_source, probe
from tunalab.data.stream import check_length
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.settings.loading import digest, sources_of
from tunalab.settings.schema import RunConfig, StageConfig
from tunalab.terminal import progress_bar

LIMIT = 2000  # documents of a source that are read, unless another number is given
EXAMPLES = 4  # of a source
FIRST = 3  # rejects named of each reason
PAIRS = 6  # shown of a benchmark
THUMBNAIL = 8  # cells along a side
ALIKE = 6  # of 255: two pictures look alike if no cell of their thumbnails differs by more


@dataclass(frozen=True)
class Piece:
    """A part of a token sequence: "mark" (a special token), "text" or "image". ``predicted``: the model learns to produce it."""

    kind: str
    text: str
    predicted: bool
    picture: int = -1  # number of an image within the document


@dataclass(frozen=True, eq=False)
class Example:
    """A document as the model gets it. ``place``: where it stands; ``pictures``: each (H, W, 3) uint8."""

    place: str
    kind: str
    pieces: list[Piece]
    pictures: list[np.ndarray]


@dataclass(frozen=True)
class LeftOut:
    """Rejects of one reason. ``broken``, else sound documents that do not fit; ``first``: place and whole reason of some."""

    reason: str
    broken: bool
    count: int
    first: list[tuple[str, str]]


@dataclass
class Source:
    """A source of the mix. ``has``: its documents, None without end; what the others say is of the ``read`` ones.

    ``kinds``, ``buckets``, ``lengths`` (tokens): of usable documents and their pictures; ``longest``: also of the ``too_long``
    ones, which no row has place for. ``sizes``: of pictures in files, as stored (height, width); ``enlarged`` and ``cropped``
    ones are beyond data.max_upscale and data.max_crop. ``files``: number and digest of its files, and of the images they name.
    ``problem``: why a run would stop at it.
    """

    name: str
    has: int | None
    read: int = 0
    broken: int = 0
    unfit: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: list[LeftOut] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    longest: int = 0
    too_long: int = 0
    sizes: list[Size] = field(default_factory=list)
    enlarged: int = 0
    cropped: int = 0
    buckets: Counter[Size] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    version: str = ""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    problem: str = ""

    @property
    def mean(self) -> float:
        """Tokens of a usable document."""
        return statistics.mean(self.lengths) if self.lengths else 0.0


@dataclass(frozen=True)
class Share:
    """Of a source in a stage: its share of the documents (its weight) and of the tokens; the ``documents_read`` of the stage, and
    how often that is each usable one (None without end).
    """

    source: str
    documents: float
    tokens: float
    documents_read: float
    passes: float | None


@dataclass(frozen=True, eq=False)
class Pair:
    """A picture that is held out and one of the training data, by their places. ``distance``: 0 for the same pixels, else the
    largest difference of two cells of their thumbnails, of 255. ``pictures``: both, of the first pairs.
    """

    held_out: str
    training: str
    distance: float
    pictures: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A benchmark. ``unread``: of the ``read`` items those that cannot be read, ``reason`` of the first. ``pictures``: different
    ones, of which the ``same`` are in the training data, and others look ``alike`` (:data:`ALIKE`).
    """

    name: str
    has: int
    read: int
    unread: int
    reason: str
    pictures: int
    same: int
    alike: int
    pairs: list[Pair]


@dataclass(frozen=True, eq=False)
class DataReport:
    """``about``: settings that decide what is read. ``problems``: why a run would stop, a line each; none: it can train.

    ``warnings``: what a run would say, and train on.
    """

    about: dict[str, Any]
    sources: list[Source]
    stages: dict[str, list[Share]]
    held_out: list[HeldOut]
    problems: list[str]
    warnings: list[str] = field(default_factory=list)


def inspect(
    config: RunConfig, tokenizer: Tokenizer, token_pixels: int, held_out: Sequence[Corpus] = (), limit: int = LIMIT
) -> DataReport:
    """Read up to ``limit`` documents of each source of a run, and as many items of each corpus that is ``held_out``.

    ``token_pixels``: image pixels per visual token along a side. Raises UserError: a source cannot be opened, or nothing of what is
    held out can be read. What else would stop a run is a problem of the report.
    """
    names = sorted(sources_of(config.stages))
    watched = Watched.of(config.data)
    corpora = {name: build_source(name, config.data, config.seed, watched) for name in names}
    mixer = Mixer({name: corpus.length for name, corpus in corpora.items()}, config.seed)
    pictures = Pictures()
    sources = [
        _read(corpus, config, tokenizer, token_pixels, mixer, watched, limit, pictures if held_out else None)
        for corpus in corpora.values()
    ]
    versions, looks = data_versions(corpora, config.data, config.revision), look_at(corpora, config.data.full_digests).sources
    for source in sources:
        source.version, look = versions[source.name], looks[source.name.removeprefix(PREFIX)]
        source.files = {
            part: (len(look[part]), digest([look[part][file] for file in sorted(look[part])]))
            for part in FILES_AND_IMAGES
            if look[part]
        }
    about = {
        "experiment": config.experiment,
        "variant": config.variant,
        "seed": config.seed,
        "sizes": [shown(size) for size in watched.sizes],
        "row_tokens": config.data.row_tokens,
        "token_pixels": token_pixels,
        "limit": limit,
        "tokens": {name: stage.tokens for name, stage in config.stages.items()},
    }
    stages = {name: shares(stage, sources) for name, stage in config.stages.items()}
    compared = [_compare(corpus, pictures, corpora, limit) for corpus in held_out]
    return DataReport(about, sources, stages, compared, [source.problem for source in sources if source.problem])


def shown(size: Size) -> str:
    """Height x width, as settings write it."""
    return f"{size[0]}x{size[1]}"


def place(corpus: Corpus, index: int) -> str:
    """File and line of a document where its corpus knows them, else its number."""
    where: Callable[[int], str] | None = getattr(getattr(corpus, "copied", corpus), "where", None)
    return where(index) if where else f"{corpus.name}, document {index}"


def _read(
    corpus: Corpus,
    config: RunConfig,
    tokenizer: Tokenizer,
    token_pixels: int,
    mixer: Mixer,
    watched: "Watched",
    limit: int,
    pictures: "Pictures | None",
) -> Source:
    data, name = config.data, corpus.name
    log = RejectLog(None, data.reject_share, data.unfit_share, {name: corpus.length})
    log.alone = data.workers <= 1
    rejects: dict[tuple[str, bool], list[tuple[int, str]]] = {}
    examples: dict[str, list[Example]] = {}
    # Shards that order themselves have no length, but so many rows.
    has: int | None = getattr(getattr(corpus, "copied", corpus), "rows", corpus.length)
    found = Source(name, has)

    def judge(count: Callable[[], None]) -> None:
        try:
            count()
        except UserError as error:  # a run stops here; what follows is counted all the same
            found.problem = str(error)

    for _ in progress_bar(range(limit if has is None else min(limit, has)), desc=f"read {name}", delay=3):
        pick = mixer.next({name: 1.0})
        watched.asked.clear()
        try:
            document = corpus.document(pick.index)
            dropped = pick.uniform < data.caption_drop and document.kind == "text_to_image"
            sequence = to_sequence(document, tokenizer, token_pixels, dropped)
            found.longest = max(found.longest, len(sequence.ids_L))
            found.too_long += len(sequence.ids_L) > data.row_tokens
            check_length(sequence, data.row_tokens)
        except Reject as reject:
            broken, reason, index = not isinstance(reject, Unfit), str(reject), pick.index
            found.broken, found.unfit = found.broken + broken, found.unfit + (not broken)
            rejects.setdefault((sort_of(reason), broken), []).append((index, reason))
            judge(partial(log.reject, name, index, reason, broken))
        except UserError as error:  # of a corpus from outside
            found.problem = str(error)
            break
        else:
            judge(partial(log.accept, name))
            found.kinds[sequence.kind] += 1
            found.lengths.append(len(sequence.ids_L))
            images = [span.pixels_HWC for span in sequence.spans]
            found.buckets.update((image.shape[0], image.shape[1]) for image in images)
            of_kind = examples.setdefault(sequence.kind, [])
            if len(of_kind) < EXAMPLES and not dropped:
                of_kind.append(Example(place(corpus, pick.index), sequence.kind, pieces(sequence, tokenizer), images))
            if pictures is not None:
                pictures.add(corpus, pick.index, images)
        found.read += 1
        for size, fit in watched.asked:
            found.sizes.append(size)
            found.enlarged += fit.scale > watched.max_upscale
            found.cropped += fit.cropped > watched.max_crop
    if not found.problem:
        judge(partial(probe, corpus))
    if not found.problem and not found.lengths:
        last = f"; last reason: {reason}" if rejects else ""
        found.problem = (
            f"{name}: none of {found.read} documents can be used ({found.broken} broken, {found.unfit} do not fit){last}"
        )
    for (sort, broken), members in sorted(rejects.items(), key=lambda item: (-len(item[1]), min(item[1]))):
        first = [(place(corpus, index), reason) for index, reason in sorted(members)[:FIRST]]
        found.left_out.append(LeftOut(sort, broken, len(members), first))
    of_each = max(1, EXAMPLES // max(1, len(examples)))
    found.examples = [one for kind in sorted(examples) for one in examples[kind][:of_each]]
    return found


# What a reason begins with: names of files, each before a colon.
_PLACES = re.compile(r"^(?:(?:\w+://)?[^:]*[./\\][^:]*: )+")


def sort_of(reason: str) -> str:
    """A reason without the names and numbers of its document, so that those of one sort are counted together."""
    return re.sub(r"\d+(\.\d+)?", "N", _PLACES.sub("", reason))


def pieces(sequence: TokenSequence, tokenizer: Tokenizer) -> list[Piece]:
    """The tokens of a document as text, in order: special tokens by their names, the others decoded, images by their slots."""
    marks = {getattr(tokenizer, role): name for role, name in asdict(tokenizer.specials).items()}
    spans = {span.offset: (number, span) for number, span in enumerate(sequence.spans)}
    ids, found, at = sequence.ids_L.tolist(), list[Piece](), 0
    while at < len(ids):
        if at in spans:
            number, span = spans[at]
            size = shown((span.pixels_HWC.shape[0], span.pixels_HWC.shape[1]))
            found.append(Piece("image", f"image {size}: 1 + {span.length - 1} tokens", span.generate, number))
            at += span.length
            continue
        end, predicted = at + 1, bool(sequence.target_L[at])
        if ids[at] in marks:
            found.append(Piece("mark", marks[ids[at]], predicted))
        else:
            while end < len(ids) and ids[end] not in marks and bool(sequence.target_L[end]) == predicted:
                end += 1
            found.append(Piece("text", tokenizer.decode(ids[at:end]), predicted))
        at = end
    return found


def shares(stage: StageConfig, sources: Sequence[Source]) -> list[Share]:
    """What a stage reads of each of its sources. A mix's weights count documents; long documents have more of the tokens."""
    of_stage = [source for source in sources if stage.mix.get(source.name, 0) > 0]
    if not of_stage:
        return []
    weight = sum(stage.mix[source.name] for source in of_stage)
    mean = sum(stage.mix[source.name] * source.mean for source in of_stage) / weight  # tokens of a document of the mix
    found = []
    for source in of_stage:
        share = stage.mix[source.name] / weight
        read = stage.tokens / mean * share if mean else 0.0
        usable = len(source.lengths) / max(1, source.read)
        passes = read / (source.has * usable) if source.has and usable else None
        found.append(Share(source.name, share, share * source.mean / mean if mean else 0.0, read, passes))
    return found


@dataclass(frozen=True)
class Watched(Buckets):
    """Buckets that note what they are asked for: the size of each picture as it is stored, and how it fits."""

    asked: list[tuple[Size, Fit]] = field(default_factory=list, compare=False)

    def choose(self, where: str, height: int, width: int, stored: Size | None = None) -> Size:
        self.asked.append((stored or (height, width), self.fit(height, width)))
        return super().choose(where, height, width, stored)


class HeldDocuments:
    """Documents that a held-out loss is of, as a corpus."""

    def __init__(self, name: str, documents: Sequence[Document]) -> None:
        self.name, self.length, self._documents = name, len(documents), documents

    def document(self, index: int) -> Document:
        return self._documents[index]


class QuestionPictures:
    """The questions of a benchmark as a corpus, to be compared with training data."""

    def __init__(self, name: str, questions: Sequence[Question]) -> None:
        self.name, self.length, self._questions = name, len(questions), questions

    def document(self, index: int) -> Document:
        question = self._questions[index]
        return Document("vqa", (Image(question.image_HWC), Text(question.prompt), Text(question.answer, target=True)))


@dataclass(eq=False)
class Pictures:
    """Different pictures, each by a hash of its pixels as the model gets them: where it was first seen (name of the corpus, index
    of the document, number of the picture in it), and its thumbnail.
    """

    seen: dict[bytes, tuple[str, int, int]] = field(default_factory=dict)
    thumbnails: list[np.ndarray] = field(default_factory=list)

    def add(self, corpus: Corpus, index: int, images: Sequence[np.ndarray]) -> None:
        for number, image_HWC in enumerate(images):
            hashed = hashlib.sha256(str(image_HWC.shape).encode() + image_HWC.tobytes()).digest()
            if hashed not in self.seen:
                self.seen[hashed] = (corpus.name, index, number)
                self.thumbnails.append(thumbnail(image_HWC))


def thumbnail(image_HWC: np.ndarray) -> np.ndarray:
    """Mean colours of a few cells, as one row of numbers: a picture saved again, or at another size, has almost the same."""
    cells = PillowImage.fromarray(image_HWC).resize((THUMBNAIL, THUMBNAIL), PillowImage.Resampling.BOX)
    return np.asarray(cells).reshape(-1)


def _compare(held_out: Corpus, training: Pictures, corpora: Mapping[str, Corpus], limit: int) -> HeldOut:
    assert held_out.length is not None
    pictures, unread, reason = Pictures(), 0, ""
    read = min(limit, held_out.length)
    for index in progress_bar(range(read), desc=f"read {held_out.name}", delay=3):
        try:
            pictures.add(held_out, index, _images(held_out, index))
        except Reject as reject:
            unread, reason = unread + 1, reason or f"{place(held_out, index)}: {reject}"
    if not pictures.seen:
        raise UserError(
            f"{held_out.name}: none of {read} items has a picture that can be read{reason and f'; the first: {reason}'}"
        )
    places, known = list(training.seen.values()), {hashed: number for number, hashed in enumerate(training.seen)}
    thumbnails = np.array(training.thumbnails)
    pairs: list[tuple[float, tuple[str, int, int], tuple[str, int, int]]] = []
    for (hashed, where), cells in zip(pictures.seen.items(), pictures.thumbnails, strict=True):
        if hashed in known:
            pairs.append((0.0, where, places[known[hashed]]))
        elif places:
            apart = cdist([cells], thumbnails, "chebyshev")[0]
            if apart.min() <= ALIKE:
                pairs.append((float(apart.min()), where, places[int(apart.argmin())]))
    every = {**corpora, held_out.name: held_out}
    documents = sorted({where[:2] for _, *two in pairs for where in two})
    named = {(name, index): place(every[name], index) for name, index in documents}

    def both(*two: tuple[str, int, int]) -> list[np.ndarray]:
        return [_images(every[name], index)[number] for name, index, number in two]

    found = [
        Pair(named[one[:2]], named[other[:2]], distance, both(one, other) if number < PAIRS else [])
        for number, (distance, one, other) in enumerate(sorted(pairs, key=lambda pair: pair[0]))
    ]
    same = len(pictures.seen.keys() & known.keys())
    return HeldOut(held_out.name, held_out.length, read, unread, reason, len(pictures.seen), same, len(pairs) - same, found)


def _images(corpus: Corpus, index: int) -> list[np.ndarray]:
    return [segment.pixels_HWC for segment in corpus.document(index).segments if isinstance(segment, Image)]
