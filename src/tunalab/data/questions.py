"""Questions: what every benchmark asks, before any tokenizer or front-end is known."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Question:
    """One item of a benchmark.

    ``image_HWC`` is RGB uint8. Questions with the same ``group`` count as one item that is right only if all of them
    are; a benchmark without groups gives every question a number of its own.
    """

    image_HWC: np.ndarray
    prompt: str
    answer: str
    group: int
