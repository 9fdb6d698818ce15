"""Evaluation leaves a model as it found it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tunalab.model.unified import UnifiedModel


@contextmanager
def evaluation_mode(model: UnifiedModel) -> Iterator[None]:
    """Evaluation mode and no gradients inside; the mode the model was in afterwards, whatever happens."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
