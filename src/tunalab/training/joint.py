"""The steps of all ranks side by side: every rank trains on its own documents, and all agree on everything else about a step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule

from tunalab.data.stream import COUNTS, Step, StepLoader, open_stream
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.model.flops import FlopCosts, image_sizes, model_costs
from tunalab.model.objective import loss_counts
from tunalab.model.unified import build_model
from tunalab.settings.schema import RunConfig
from tunalab.training.distribution import ALONE, Ranks

LOSSES = ("text", "flow")
GOES_ON, ENDED, FAILED = 0.0, 1.0, 2.0


@dataclass(eq=False)
class JointStep:
    """``mine``: what this rank trains on. The rest is of all ranks together, and the same on all.

    ``stage``, ``stage_step`` and ``stage_progress`` are those of the rank that is furthest: lanes spend their shares of a stage's
    budget at slightly different steps, and a stage decides what is trained, which must be one answer. ``counts``: what each loss
    is divided by. ``read``: source -> what of it was read (a number for each of data.stream.COUNTS).
    """

    mine: Step
    stage: str
    stage_step: int
    stage_progress: float
    tokens: int
    images: int
    flops: float
    counts: dict[str, int]
    read: dict[str, list[int]] = field(default_factory=dict)


class JointSteps:
    """Reads this rank's loader in step with the others'. The run is over when the first rank has spent its share.

    Raises UserError on every rank when a source of any of them fails.
    """

    def __init__(self, loader: StepLoader, stages: Sequence[str], costs: FlopCosts, ranks: Ranks = ALONE) -> None:
        self.loader = loader
        self.until: tuple[int, float] | None = None  # number of a stage and share of its tokens: a step from there on ends the run
        self.sources = sorted(loader.stream.sources)
        self.stages = list(stages)
        self.costs = costs
        self.ranks = ranks

    def __iter__(self) -> Iterator[JointStep]:
        steps = iter(self.loader)
        while True:
            mine, failure = None, None
            try:
                mine = next(steps, None)
            except UserError as error:
                failure = error
            rows = self.ranks.numbers(self._summary(mine, failure))
            if (rows[:, 0] == FAILED).any():
                with self.ranks.together():
                    if failure is not None:
                        raise failure
            if mine is None or (rows[:, 0] == ENDED).any():
                return
            joint = self._joint(mine, rows.tolist())
            if self.until is not None and (self.stages.index(joint.stage), joint.stage_progress) >= self.until:
                return
            yield joint

    def _summary(self, step: Step | None, failure: UserError | None) -> list[float]:
        if step is None:
            return [ENDED if failure is None else FAILED] + [0.0] * (6 + len(LOSSES) + len(COUNTS) * len(self.sources))
        counts = [loss_counts(batch) for batch in step.batches]
        return [
            GOES_ON,
            self.stages.index(step.stage),
            step.stage_progress,
            step.stage_step,
            step.tokens,
            step.images,
            sum(self.costs.step(batch) for batch in step.batches),
            *(sum(count[loss] for count in counts) for loss in LOSSES),
            *(number for source in self.sources for number in step.read[source]),
        ]

    def _joint(self, mine: Step, rows: list[list[float]]) -> JointStep:
        stage, progress, stage_step = max((row[1], row[2], row[3]) for row in rows)
        tokens, images, flops, *counts = (sum(column) for column in list(zip(*rows, strict=True))[4:])
        counts, numbers = counts[: len(LOSSES)], [int(number) for number in counts[len(LOSSES) :]]
        read = {source: numbers[at * len(COUNTS) : (at + 1) * len(COUNTS)] for at, source in enumerate(self.sources)}
        return JointStep(
            mine=mine,
            stage=self.stages[int(stage)],
            stage_step=int(stage_step),
            stage_progress=progress,
            tokens=int(tokens),
            images=int(images),
            flops=flops,
            counts={loss: int(count) for loss, count in zip(LOSSES, counts, strict=True)},
            read=read,
        )


def read_steps(
    config: RunConfig,
    tokenizer: Tokenizer,
    token_pixels: int,
    costs: FlopCosts,
    rejects: Path,
    ranks: Ranks = ALONE,
    **where: Any,
) -> JointSteps:
    """The steps of a run, over the sources that its stages name. ``where``: resume, next_lane, accept_changed of TrainingStream."""
    stream = open_stream(config, tokenizer, token_pixels, rejects, rank=ranks.rank, world_size=ranks.world_size, **where)
    return JointSteps(StepLoader(stream, config.data.workers), list(config.stages), costs, ranks)


class DataModule(LightningDataModule):
    """The training data of a run for any ``lightning.Trainer``: each batch is a whole optimiser step (:class:`JointStep`).

    The order of documents is that of `tunalab train`; the steps end when the budgets of all stages are read, and a further epoch
    reads them once more. Documents that cannot be read or do not fit are listed in ``rejects.jsonl`` in ``folder`` (default: the
    Trainer's ``default_root_dir``).

    Raises UserError: a source is missing, or its documents do not fit the rows.
    """

    def __init__(self, config: RunConfig, folder: str | Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.folder = folder
        self.resume: dict[int, dict[str, Any]] = {}  # where the stream begins, as of TrainingStream
        self.next_lane = 0

    def train_dataloader(self) -> JointSteps:
        config = self.config
        tokenizer = Components(config.components_seed).tokenizer_for(config.decoder)
        with torch.device("meta"):
            model = build_model(config, None, tokenizer.vocabulary)
        folder = Path(self.folder or (self.trainer.default_root_dir if self.trainer else "."))
        costs = model_costs(model, image_sizes(config.data))
        where: dict[str, Any] = {
            "resume": self.resume,
            "next_lane": self.next_lane,
            "accept_changed": config.start.accept_changed_data,
        }
        return read_steps(config, tokenizer, model.frontend.space.token_pixels, costs, folder / "rejects.jsonl", **where)
