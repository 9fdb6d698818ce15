"""Models that answer questions about images, for DPG-Bench. The official scores come from mPLUG-large of ModelScope.

Shapes: H W C image pixels and channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from tunalab.data.buckets import Buckets
from tunalab.evaluation.lmms.asking import fit
from tunalab.evaluation.published_generation.local import described, stamps
from tunalab.evaluation.subject import Subject
from tunalab.frontends.loading import read_transformers

BATCH = 16
LONGEST = 8  # tokens of an answer: yes or no


class VQA(Protocol):
    """``name``: what notes call it; ``identity``, plain: what its answers hang on."""

    name: str
    identity: Any

    def answers(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[str]:
        """To every (image (H, W, 3) uint8, question)."""


class TransformersVQA:
    """A model for visual question answering in a folder of transformers' form: ViLT (classes of answers), BLIP (generates).

    Raises UserError, one line: no such folder, another kind of model, weights that do not fit.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        source, config, self.processor = described(folder, "VQA model", AutoProcessor)
        self.model: Any = read_transformers(AutoModelForVisualQuestionAnswering, source, config).to(device).eval()
        self.name = f"{config.model_type} of transformers ({folder.resolve().name}), not official"
        self.identity: Any = stamps(folder)

    @torch.no_grad()
    def answers(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[str]:
        given: list[str] = []
        for first in range(0, len(asked), BATCH):
            batch = asked[first : first + BATCH]
            images, texts = [Image.fromarray(image) for image, _ in batch], [text for _, text in batch]
            inputs = self.processor(images=images, text=texts, padding=True, truncation=True, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            if self.model.can_generate():
                ids = self.model.generate(**inputs, max_new_tokens=LONGEST)
                given += self.processor.batch_decode(ids, skip_special_tokens=True)
            else:
                best = self.model(**inputs).logits.argmax(dim=-1).tolist()
                given += [self.model.config.id2label[number] for number in best]
        return given


class OwnVQA:
    """A model of ours: a baseline, as good a judge as it answers questions."""

    def __init__(self, subject: Subject, identity: dict[str, Any]) -> None:
        self.subject = subject
        self.buckets = Buckets.of(subject.config.data)
        self.name = f"tunalab {identity['name']}, not official"
        self.identity: Any = identity

    def answers(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[str]:
        shown = {id(image): fit(Image.fromarray(image), self.buckets) for image, _ in asked}
        return self.subject.answers([(shown[id(image)], text) for image, text in asked], LONGEST)
