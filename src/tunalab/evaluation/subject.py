"""What is evaluated: a trained model with its tokenizer, and the few things every part of an evaluation does with it.

Shapes: N items, H W C image pixels and channels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError, one_line
from tunalab.evaluation import side_by_side
from tunalab.evaluation.along import evaluation_mode
from tunalab.inference.generation import sample_images
from tunalab.inference.prompts import Prompt, answer, edit_prompt, edit_sampling, image_prompt, unconditional_prompt
from tunalab.model.unified import UnifiedModel
from tunalab.settings.loading import digest
from tunalab.settings.schema import RunConfig, SamplingConfig
from tunalab.terminal import progress_bar

T = TypeVar("T")


def identity(origin: dict[str, Any], settings: dict[str, Any]) -> str:
    """Eight hex digits of a model and the settings of what is done with it."""
    return digest([origin, settings])[:8]


def kept_array(path: Path, name: str = "") -> np.ndarray:
    """An array that an evaluation kept in a `.npy`, or under ``name`` in a `.npz`.

    Raises UserError: the file is damaged, or holds more than numbers, which would be a pickle.
    """
    try:
        kept = np.load(path, allow_pickle=False)
        if isinstance(kept, np.ndarray):
            return kept
        with kept:
            return np.asarray(kept[name])
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise UserError(f"{path} is damaged, or no array of ours: remove it, and it is made again ({one_line(error)})") from error


@dataclass(frozen=True, eq=False)
class Subject:
    """``folder`` belongs to one part of an evaluation alone: what it keeps there, a part that was interrupted goes on from.

    ``origin``, plain: run, weights, steps, tokens (trained.model.Model).
    """

    model: UnifiedModel
    tokenizer: Tokenizer
    config: RunConfig
    folder: Path
    origin: dict[str, Any]
    quiet: bool = False

    def of_part(self, part: str) -> "Subject":
        """The same subject with the folder of a part, which is made."""
        folder = self.folder / part
        folder.mkdir(parents=True, exist_ok=True)
        return replace(self, folder=folder)

    def shared(self, what: str, settings: dict[str, Any]) -> Path:
        """A folder beside that of the part, which is made: for what several parts use of this model. ``settings`` determine it."""
        folder = self.folder.parent / f"{what}-{identity(self.origin, settings)}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def progress(self, items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
        """The items, with a bar that shows the time left."""
        bar: Iterable[T] = progress_bar(items, self.quiet, desc=what, total=total, position=side_by_side.bar)
        return bar

    def answers(self, questions: Sequence[tuple[np.ndarray | None, str]], max_tokens: int | None = None) -> list[str]:
        """The greedy answer to every (image (H, W, 3) uint8 or None, question)."""
        with evaluation_mode(self.model):
            return answer(self.model, self.tokenizer, questions, max_tokens or self.config.evaluation.max_answer_tokens)

    def images(self, texts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """An image for every text and seed, of the run's size, uint8 (N, H, W, 3)."""
        prompts = [image_prompt(self.tokenizer, self.model.frontend.space, text) for text in texts]
        nothing = unconditional_prompt(self.tokenizer, self.model.frontend.space, self.config.sampling)
        side = self.config.data.image_size
        return self._sample(prompts, nothing, seeds, (side, side), self.config.sampling)

    def edited(
        self,
        sources_NHWC: Sequence[np.ndarray],
        instructions: Sequence[str],
        seeds: Sequence[int],
        sampling: SamplingConfig | None = None,
    ) -> np.ndarray:
        """Every source image, all of one size, after its instruction, uint8 (N, H, W, 3); sampled as the run says unless told."""
        tokenizer, space, sampling = self.tokenizer, self.model.frontend.space, sampling or self.config.sampling
        pairs = zip(sources_NHWC, instructions, strict=True)
        prompts = [edit_prompt(tokenizer, space, source, text) for source, text in pairs]
        nothing = [unconditional_prompt(tokenizer, space, sampling, source) for source in sources_NHWC]
        ((height, width, _),) = {source.shape for source in sources_NHWC}
        return self._sample(prompts, nothing, seeds, (height, width), edit_sampling(sampling))

    def _sample(
        self,
        prompts: Sequence[Prompt],
        nothing: Prompt | Sequence[Prompt],
        seeds: Sequence[int],
        size: tuple[int, int],
        sampling: SamplingConfig,
    ) -> np.ndarray:
        with evaluation_mode(self.model):
            return sample_images(self.model, prompts, nothing, size, sampling, self.config.objective, seeds)
