"""The settings of the scenes corpus."""

from dataclasses import dataclass
from math import isfinite

from tunalab.errors import UserError


def check_image_size(image_size: int) -> None:
    """Raises UserError unless the size is a positive multiple of 16."""
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 16 or image_size % 16:
        raise UserError(f"data.image_size={image_size!r}: scenes are drawn at multiples of 16 (choices: 16, 32, 48, ...)")


# Weights of the levels in scenes that no run's settings are for, such as the images that components are pretrained on.
EXAMPLE_LEVELS = (0.6, 0.3, 0.1)


@dataclass(frozen=True)
class SceneSettings:
    """What a user chooses about the corpus; the defaults stand with the run's settings (config.DataConfig).

    image_size: side in pixels, a multiple of 16. levels: weight of levels 1, 2, 3 in the stream. questions_per_image:
    question-answer turns of a vqa document. seed: of the stream, not of the splits.

    Raises:
        UserError: a value out of range.
    """

    image_size: int
    levels: tuple[float, float, float]
    questions_per_image: int
    seed: int

    def __post_init__(self) -> None:
        check_image_size(self.image_size)
        weights = self.levels
        if len(weights) != 3 or not all(isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
            raise UserError(f"scenes: levels is {weights!r}; it must be three weights >= 0, not all 0")
        if not isinstance(self.questions_per_image, int) or not 1 <= self.questions_per_image <= 8:
            raise UserError(f"scenes: questions_per_image is {self.questions_per_image!r}; it must be 1 to 8")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise UserError(f"scenes: seed is {self.seed!r}; it must be an integer >= 0")
