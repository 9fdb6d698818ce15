"""Documents and questions: what corpora and benchmarks yield, before any tokenizer or front-end.

A document is a sequence of text and image segments in reading order. Its layout (facts of the
published recipe):

    text_to_image   bos prompt boi [time][patches] eoi eos
    caption, vqa    bos boi [time][patches] eoi prompt answer eos (prompt answer eos ...)
    edit            bos boi [source] eoi instruction boi [target] eoi eos
    text            bos text eos      (conversations: prompt answer eos, repeated)

With ``decoder.chat`` prompts and answers stand in the turns of a chat (sequence.py). Where a
prompt or an instruction of the user's data names the place of an image within its text, the image
stands there.

A copy is an edit without an instruction, for fine-tuning before reconstructions are measured:

    bos boi [image] eoi boi [the same image, noised] eoi eos
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from tunalab.redaction import redacted

Kind = Literal["caption", "vqa", "text_to_image", "edit", "text"]
KINDS: tuple[Kind, ...] = ("caption", "vqa", "text_to_image", "edit", "text")
IMAGES_PER_DOCUMENT = 8  # at most: the noise of an image is drawn by its number within the document

REASON_CHARACTERS = 500  # of a reject


@dataclass(frozen=True)
class Text:
    """A run of text. ``target``: its tokens are predicted (next-token loss), and it is closed by eos."""

    text: str
    target: bool = False


@dataclass(frozen=True, eq=False)
class Image:
    """An RGB image, ``pixels_HWC`` uint8. ``generate``: it is a flow-matching target, otherwise it is only looked at."""

    pixels_HWC: np.ndarray
    generate: bool = False


@dataclass(frozen=True, eq=False)
class Document:
    """One training sample: its kind and its segments in reading order."""

    kind: Kind
    segments: tuple[Text | Image, ...]


class Reject(Exception):
    """A document that cannot be built (broken line, unreadable image): counted, logged with this reason, skipped.

    The reason is one line of some length, whatever of the data it quotes.
    """

    def __init__(self, reason: str = "") -> None:
        line, half = redacted(printed(reason)), REASON_CHARACTERS // 2 - 2
        # Its middle goes: a reason begins with where it is and ends with what is wrong.
        super().__init__(line if len(line) <= REASON_CHARACTERS else f"{line[:half]}...{line[-half:]}")


def printed(text: str) -> str:
    """On one line: line ends, and what a terminal takes for commands, as Python writes them."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class Unfit(Reject):
    """A sound document that these settings have no place for (too small an image, too long a text): it is nobody's fault."""


class Corpus(Protocol):
    """A source of documents: a pure function of the index.

    ``length`` is None for a corpus without end. ``document`` raises :class:`Reject` for a broken item. A corpus of files may have
    a ``fingerprint``: text that differs when an index means another document (:func:`fingerprint_of`).
    """

    name: str

    @property
    def length(self) -> int | None: ...

    def document(self, index: int) -> Document: ...


def fingerprint_of(corpus: Corpus) -> str | None:
    """What a checkpoint keeps of a corpus, to notice files that were added or changed; None for one that tells nothing."""
    found: str | None = getattr(corpus, "fingerprint", None)
    return found


@dataclass(frozen=True, eq=False)
class Question:
    """One item of a benchmark.

    ``image_HWC`` is RGB uint8. Questions with the same ``group`` count as one item that is right only if all of them
    are; a benchmark without groups gives every question a number of its own. ``options``: every answer that the prompt leaves open,
    the right one among them; empty where they are not a few. ``also``: other answers that are right.
    """

    image_HWC: np.ndarray
    prompt: str
    answer: str
    group: int
    options: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


PREFIX = "copy/"  # of the name of a source whose images are copied


class CopyCorpus:
    """The first image of every document of another corpus, under its name behind ``copy/``. Raises Unfit for one without image."""

    def __init__(self, corpus: Corpus) -> None:
        self.name = f"{PREFIX}{corpus.name}"
        self.fingerprint = fingerprint_of(corpus)
        self.copied = self._corpus = corpus

    @property
    def length(self) -> int | None:
        return self._corpus.length

    def document(self, index: int) -> Document:
        for segment in self._corpus.document(index).segments:
            if isinstance(segment, Image):
                return Document("edit", (Image(segment.pixels_HWC), Image(segment.pixels_HWC, generate=True)))
        raise Unfit(f"{self._corpus.name}: document {index} has no image to copy")
