"""A model of lmms-eval: ``simple_evaluate(Answerer(subject), ...)``. By name, for its program: ``TrainedModel``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from tunalab.evaluation.subject import Subject
from tunalab.interop.lmms.asking import Request, reply
from tunalab.trained.model import load


class Answerer(lmms):
    """Answers greedily, in batches of ``batch_tokens`` prompt tokens. With ``keep`` replies are kept in the subject's folder.

    ``cut``: the replies by task and item as they are under the smaller limit of ``cut_at`` tokens (None: as they are).
    """

    is_simple = True

    def __init__(self, subject: Subject, batch_tokens: int = 4096, keep: bool = True, cut_at: int | None = None) -> None:
        super().__init__()
        self.subject = subject
        self.batch_tokens = batch_tokens
        self.kept_at = subject.folder / "replies.jsonl" if keep else None
        self.cut_at = cut_at
        self.cut: dict[tuple[str, int], str] = {}

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        own = [self._request(request) for request in requests]
        shorter = [replace(one, max_tokens=min(one.max_tokens, self.cut_at or one.max_tokens)) for one in own]
        replies = reply(self.subject, [*own, *shorter], self.batch_tokens, self.kept_at)
        self.cut |= {(one.task, one.item): text for one, text in zip(own, replies[len(own) :], strict=True)}
        return replies[: len(own)]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("the model generates answers (none of the paper's benchmarks needs likelihoods)")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("the model answers one question at a time")

    def clean(self) -> None:
        """Nothing: lmms-eval makes room for a local judge here, and the model has more to do."""

    def _request(self, request: Instance) -> Request:
        text, generation, visual, item, task, split = request.args
        return Request.of(task, item, text, lambda: visual(self.task_dict[task][split][item]), generation)


class TrainedModel(Answerer):
    """``run``: a run directory or an exported folder. Batches are counted in prompt tokens, so ``batch_size`` changes nothing."""

    def __init__(
        self, run: str, batch_tokens: int = 16384, device: str | None = None, batch_size: int | str = 1, max_batch_size: int = 0
    ) -> None:
        loaded = load(Path(run), device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = Path(run) / "evaluation"
        super().__init__(Subject(loaded.model, loaded.tokenizer, loaded.config, folder, loaded.origin), batch_tokens, keep=False)
