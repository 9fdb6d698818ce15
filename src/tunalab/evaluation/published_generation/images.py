"""Images in their own size, decoded as everywhere (data/image_files.py)."""

from dataclasses import dataclass

from tunalab.data.buckets import Buckets, Size
from tunalab.data.image_files import MAX_PIXELS


@dataclass(frozen=True)
class OwnSize(Buckets):
    """Every image keeps its size."""

    tiers: tuple[tuple[Size, ...], ...] = ()

    @property
    def longest(self) -> int:
        return MAX_PIXELS

    def choose(self, where: str, height: int, width: int) -> Size:
        return height, width
