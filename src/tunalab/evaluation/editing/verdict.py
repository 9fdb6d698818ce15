"""Whether an edit happened and everything else stayed: read from the image by the parser of scenes, and in pixels.

Shapes: H W image pixels, C channels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation

from tunalab.evaluation.generation.parser import Parsed

MARGIN = 1  # pixels around what changes: anti-aliased edges, and what an autoencoder smears over them
MOST_DB = 60.0  # of a PSNR: what is left between images that differ in nothing but their rounding


@dataclass(frozen=True)
class Verdict:
    """``success``: the image shows what the target shows, no more and no less. ``happened``: what the instruction names is as it
    asks. ``kept``: the background, and all in slots that the edit does not touch, are as they were. ``outside_db``: PSNR to
    the target outside of what changes.
    """

    success: bool
    happened: bool
    kept: bool
    outside_db: float


def judge(edited: Parsed, source: Parsed, target: Parsed, pixels: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Verdict:
    """``source`` and ``target`` as read from their clean renders; ``pixels``: the three images (H, W, C) uint8 in the same order.

    A thing is its shape, colour, size and slot: one that was moved within its slot has stayed, one of another size has not.
    """
    seen, before, after = _things(edited), _things(source), _things(target)
    gone, new = before - after, after - before
    # Where the same thing was there before and is there after, it is no sign of the edit: only what is more or less of it.
    happened = all(seen[thing] >= after[thing] for thing in new) and all(seen[thing] <= after[thing] for thing in gone)
    touched = {slot for *_, slot in (*gone, *new)}
    same_ground = edited.background == source.background
    kept = same_ground and _elsewhere(seen, touched) == _elsewhere(before, touched)
    return Verdict(same_ground and seen == after, happened, kept, outside_db(*pixels))


def changed(source_HWC: np.ndarray, target_HWC: np.ndarray) -> np.ndarray:
    """The pixels that an edit changes, with a margin: (H, W) bool."""
    region_HW = (source_HWC != target_HWC).any(axis=-1)
    return np.asarray(binary_dilation(region_HW, iterations=MARGIN), dtype=bool)


def outside_db(edited_HWC: np.ndarray, source_HWC: np.ndarray, target_HWC: np.ndarray) -> float:
    """PSNR in dB, at most ``MOST_DB``, between an edited image and its target outside of what changes.

    Raises ValueError when the edit changes every pixel.
    """
    outside_HW = ~changed(source_HWC, target_HWC)
    if not outside_HW.any():
        raise ValueError("the edit changes every pixel")
    error = np.square(edited_HWC[outside_HW].astype(np.float64) - target_HWC[outside_HW]).mean() / 255**2
    return float(min(MOST_DB, -10 * np.log10(max(error, 10 ** (-MOST_DB / 10)))))


def _things(parsed: Parsed) -> Counter[tuple[str, str, str, str]]:
    return Counter((item.shape, item.colour, item.size, item.slot) for item in parsed.items)


def _elsewhere(things: Counter[tuple[str, str, str, str]], touched: set[str]) -> Counter[tuple[str, str, str, str]]:
    return Counter({thing: count for thing, count in things.items() if thing[-1] not in touched})


def shares(verdicts: Sequence[Verdict], name: str) -> list[bool]:
    """One of the three judgements of every edit."""
    return [bool(getattr(verdict, name)) for verdict in verdicts]
