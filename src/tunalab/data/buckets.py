"""Image sizes of a run: one square, or buckets of several shapes in tiers of several areas.

An image goes to the tier that its own size fills and there to the bucket nearest to its aspect ratio: by the logarithm of the
ratio, which treats both orientations alike, or, under the rule of the official code, by the difference of width / height, among
equals the one that ``data.buckets`` names first. So a portrait of 640x427 goes to 672x384 there, here to 576x448. The image is
resized to cover the bucket and the rest is cropped from both ends. So nothing is distorted or padded, and what is cropped is
bounded by the choice of buckets, besides by ``max_crop``. The square of a run without buckets is a single bucket, with the same
bounds: half of a picture is the least that its caption or its questions can be expected to be about, and 2:1 is the widest shape of
which that much is left. Whoever trains on panoramas or icons raises the bounds, or adds buckets. Evaluation has no bounds
(``unbounded``): there a picture that is left out would change the benchmark.

Images of several sizes stand in one packed row (packing.py). The other way, micro-batches of a single bucket fed from a waiting
list per bucket, was rejected: the mix of a step would hang on which lists happen to be full, rare buckets would wait long or leave
rows empty, and the source of an edit would have to take the shape of its target. This way the stream draws documents as if there
were no buckets, so the shares of sources and of buckets are those of the mix by construction, small images fill the gaps that large
ones leave, and resuming needs nothing new. The price is one call of the front-end per size in a batch.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from tunalab.data.documents import Unfit
from tunalab.errors import UserError
from tunalab.settings.loading import parse_size
from tunalab.settings.schema import DataConfig

Size = tuple[int, int]  # height, width in pixels
LOG, OFFICIAL = "log", "official"

TEXT_ROOM = 64  # tokens that a row must have left for text beside an image: fewer, and most documents would be rejected
FRAME = 5  # bos boi time eoi eos
TIER = 2.0  # a bucket of at least this many times the area of the smallest of its tier begins the next tier


class Fit(NamedTuple):
    """The bucket of an image, the factor by which the image is resized to cover it, and the share that is then cropped."""

    size: Size
    scale: float
    cropped: float


@dataclass(frozen=True)
class Buckets:
    """``tiers``: sizes of about one area, from small to large areas. ``max_crop``: the largest share of an image that may be
    cropped. ``max_upscale``: the largest factor by which an image smaller than the first tier is enlarged. ``rule``: of
    ``data.bucket_rule``; it also says how images are resized (images.py).
    """

    tiers: tuple[tuple[Size, ...], ...]
    max_crop: float = 1.0
    max_upscale: float = math.inf
    rule: str = LOG

    @classmethod
    def square(cls, side: int) -> Self:
        """Every image becomes this square, within the bounds that settings have by default."""
        return cls((((side, side),),), DataConfig.max_crop, DataConfig.max_upscale)

    @classmethod
    def of(cls, data: DataConfig) -> Self:
        """Those of a run; without ``data.buckets`` the square of ``data.image_size``."""
        given = [parse_size("data.buckets", text) for text in data.buckets] or [(data.image_size, data.image_size)]
        sizes = sorted(given, key=lambda size: (_area(size), size))
        tiers: list[list[Size]] = []
        for size in sizes:
            if not tiers or _area(size) >= TIER * _area(tiers[-1][0]):
                tiers.append([])
            tiers[-1].append(size)
        if data.bucket_rule == OFFICIAL:
            tiers = [sorted(tier, key=given.index) for tier in tiers]
        return cls(tuple(map(tuple, tiers)), data.max_crop, data.max_upscale, data.bucket_rule)

    def unbounded(self) -> Self:
        """The same sizes for every image, whatever has to be cropped or enlarged."""
        return replace(self, max_crop=1.0, max_upscale=math.inf)

    @property
    def sizes(self) -> list[Size]:
        return [size for tier in self.tiers for size in tier]

    @property
    def longest(self) -> int:
        """Pixels of the longest side of any bucket."""
        return max(max(size) for size in self.sizes)

    def fit(self, height: int, width: int) -> Fit:
        """The bucket of an image: in the largest tier whose bucket it covers without being enlarged, else in the smallest."""
        for tier in reversed(self.tiers):
            if self.rule == OFFICIAL:
                size = min(tier, key=lambda size: abs(size[1] / size[0] - width / height))
            else:
                size = min(tier, key=lambda size: (abs(math.log(size[1] * height / (size[0] * width))), size))
            scale = max(size[0] / height, size[1] / width)
            if scale <= 1:
                break
        shapes = size[0] * width, size[1] * height  # equal if the aspect ratios are
        return Fit(size, scale, 1 - min(shapes) / max(shapes))

    def choose(self, where: str, height: int, width: int, stored: Size | None = None) -> Size:
        """The size of :meth:`fit`. ``stored``: the size of a picture that was decoded smaller than it is.

        Raises Unfit, naming ``where``: too much would be cropped (the limit of the aspect ratio), or it is too small.
        """
        size, scale, cropped = self.fit(height, width)
        where += f" ({stored[1]}x{stored[0]}, decoded smaller)" if stored else ""
        shown, bucket = f"{where}: {width}x{height}", f"the nearest size ({size[0]} high, {size[1]} wide)"
        if cropped > self.max_crop:
            raise Unfit(f"{shown} would lose {cropped:.1%} to {bucket}, more than {self.max_crop:.1%} (data.max_crop)")
        if scale > self.max_upscale:
            raise Unfit(
                f"{shown} would be enlarged {scale:.3g} times for {bucket}, more than {self.max_upscale:g} times (data.max_upscale)"
            )
        return size


def check_buckets(data: DataConfig, token_pixels: int) -> None:
    """Raises UserError for a bucket that tokens of ``token_pixels`` pixels do not cut exactly, or that leaves a row no text."""
    if not data.buckets:
        return
    for height, width in Buckets.of(data).sizes:
        shown = f"data.buckets: {height}x{width}"
        if height % token_pixels or width % token_pixels:
            raise UserError(f"{shown} is not cut exactly by tokens of {token_pixels} pixels (choose multiples of {token_pixels})")
        tokens = (height // token_pixels) * (width // token_pixels)
        needed = FRAME + tokens + TEXT_ROOM
        if needed > data.row_tokens:
            raise UserError(
                f"{shown} has {tokens} tokens; with {TEXT_ROOM} of text that is {needed}, data.row_tokens={data.row_tokens}"
            )


def _area(size: Size) -> int:
    return size[0] * size[1]
