"""Copies: a document that shows an image and has the same image generated, an edit without an instruction.

    bos boi [image] eoi boi [the same image, noised] eoi eos

What a model is fine-tuned on before its reconstructions are measured.
"""

from tunalab.data.documents import Corpus, Document, Image, Unfit, fingerprint_of

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
