"""Documents of the lengths that `tunalab plan` assumes, with random contents: rows of full scale without its data."""

import numpy as np

from tunalab.data.buckets import Size
from tunalab.data.documents import Document, Image, Kind, Text
from tunalab.planning.workload import ASSUMED


class AssumedCorpus:
    """Endless documents of one kind. Text varies by half about the assumed length, images take the ``sizes`` at random."""

    length = None

    def __init__(self, name: str, kind: Kind, sizes: list[Size]) -> None:
        self.name = name
        self.kind = kind
        self.sizes = sizes

    def document(self, index: int) -> Document:
        rng = np.random.default_rng([*self.name.encode(), index])
        shape = ASSUMED[self.kind]
        # Not counted in a text of so many tokens: bos, and the eos that is predicted or closes a document without answer.
        asked = shape.text - 1 - (shape.labels or 1)

        def image(generate: bool = False) -> Image:
            height, width = self.sizes[rng.integers(len(self.sizes))]
            return Image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), generate)

        def text(tokens: float, target: bool = False) -> list[Text]:
            digits = round(tokens * rng.uniform(0.5, 1.5))  # each is one token (data/tokenizer.py)
            return [Text("".join(map(str, rng.integers(0, 10, digits))), target)] if digits else []

        segments = [image() for _ in range(shape.looked_at)] + text(asked)
        segments += text(shape.labels - 1, target=True) if shape.labels else []
        return Document(self.kind, (*segments, *(image(generate=True) for _ in range(shape.generated))))
