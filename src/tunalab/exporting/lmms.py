"""A trained model by name in lmms-eval's own program: `lmms-eval --model tunalab --model_args run=RUN --tasks ...`."""

from pathlib import Path

import torch

from tunalab.evaluation.lmms.answerer import Answerer
from tunalab.evaluation.subject import Subject
from tunalab.exporting.loading import load


class TrainedModel(Answerer):
    """``run``: a run directory or an exported folder. Batches are counted in prompt tokens, so ``batch_size`` changes nothing."""

    def __init__(
        self, run: str, batch_tokens: int = 16384, device: str | None = None, batch_size: int | str = 1, max_batch_size: int = 0
    ) -> None:
        loaded = load(Path(run), device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = Path(run) / "evaluation"
        super().__init__(Subject(loaded.model, loaded.tokenizer, loaded.config, folder, loaded.origin), batch_tokens, keep=False)
