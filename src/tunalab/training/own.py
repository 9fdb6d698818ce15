"""What `tunalab train` adds to Lightning, as callbacks for a Trainer of one's own: exact resume, signals, curve and record.

config = tunalab.load_config("smoke")
trainer = lightning.Trainer(max_epochs=1, callbacks=tunalab.callbacks(config, "runs/mine"))
trainer.fit(tunalab.Harness(config), tunalab.DataModule(config))
"""

import signal
import sys
from pathlib import Path
from typing import Any, cast

from lightning import Callback, Trainer

from tunalab.data.changes import checked_data, data_versions, keep
from tunalab.errors import UserError, stop_signals_heeded
from tunalab.evaluation.along import evaluate, with_held_out
from tunalab.evaluation.benchmarks import kept_images
from tunalab.frontends.components.store import Components
from tunalab.model.unified import parameter_counts
from tunalab.records.environment import environment
from tunalab.settings.loading import budget
from tunalab.settings.schema import RunConfig
from tunalab.settings.timeline import evaluation_tokens
from tunalab.training.callbacks import Checkpointing, Evaluating, Resuming, StopSignal
from tunalab.training.checkpoints import CheckpointStore, read_saved, refuse_foreign
from tunalab.training.claiming import check_unclaimed, claim
from tunalab.training.joint import DataModule, JointSteps
from tunalab.training.module import Harness
from tunalab.training.points import forget_points, keep_point
from tunalab.training.run import write_run_record


def callbacks(config: RunConfig, folder: str | Path, seconds: float | None = None) -> list[Callback]:
    """Callbacks that make a run directory of ``folder`` under any ``lightning.Trainer`` of one process.

    The same Trainer, Harness, DataModule and callbacks, made anew, go on from the newest undamaged checkpoint: on a CPU bit for
    bit. Ctrl-C, SIGTERM and SIGHUP end the fit after the step, with a checkpoint. The model is evaluated as ``config`` says, and
    the curve is in ``record.json``; :func:`tunalab.load` and :func:`tunalab.records` read the folder. ``seconds`` between
    checkpoints: by default config.checkpoint_seconds. ``max_steps`` of a Trainer counts the steps of one start.

    Raises UserError: a benchmark of images along the run. Fitting raises UserError: the folder holds a run with other settings,
    every checkpoint is damaged, the data is not a :class:`tunalab.DataModule`, or has changed since.
    """
    if kept := kept_images(config):
        raise UserError(
            f"evaluation.benchmarks.{kept[0].name}: its images are made by `tunalab train` alone; under a Trainer of your own set "
            "evaluation.asked=later evaluation.keep_points=all and ask afterwards"
        )
    folder, stop = Path(folder), StopSignal()

    def measured(module: Harness) -> dict[str, Any]:
        result, p = evaluate(module.model, tokenizer, config), module.progress
        keep_point(folder, module.model, p.tokens, p.steps, config.evaluation.keep_points)
        return result

    store = CheckpointStore(folder / "checkpoints", config.keep_checkpoints, warn=_warn)
    components = Components(config.components_seed)
    tokenizer = components.tokenizer_for(config.decoder)
    recording = Recording(folder, components, stop)
    saving = Checkpointing(store, config.checkpoint_seconds if seconds is None else seconds, stop)
    at = evaluation_tokens(config.evaluation, budget(config))
    evaluating = Evaluating(at, measured, recording.write, saving)
    # A point is evaluated, then saved with the checkpoint of its step.
    return [OwnResuming(folder, store, recording), stop, evaluating, saving, recording]


class OwnResuming(Resuming):
    """Finds where the run goes on before the data is opened, and puts back the handlers of signals after the fit."""

    def __init__(self, folder: Path, store: CheckpointStore, recording: "Recording") -> None:
        super().__init__()
        self.folder, self.store, self.recording = folder, store, recording
        self._handlers: dict[signal.Signals, Any] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        config, data = pl_module.config, getattr(trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            raise UserError("exact resume needs the data of tunalab.DataModule(config): fit(module, datamodule)")
        self._handlers = {number: signal.getsignal(number) for number in stop_signals_heeded()}
        check_unclaimed(self.folder, config)
        self.checkpoint = self.store.newest_valid(warn=_warn)
        if self.checkpoint is None:
            if self.store.steps():
                raise UserError(f"every checkpoint in {self.store.folder} is damaged: remove that folder to start from scratch")
            return
        refuse_foreign(self.checkpoint, config)
        saved = read_saved(self.checkpoint)
        if saved.world_size != 1:
            raise UserError(f"{self.checkpoint} was written by {saved.world_size} processes: `torchrun -m tunalab train` goes on")
        data.resume, data.next_lane = self.lanes, self.next_lane = saved.lanes[0], saved.next_lane[0]

    def on_train_start(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        super().on_train_start(trainer, pl_module)
        config, steps = pl_module.config, cast(JointSteps, trainer.train_dataloader)
        sources = with_held_out(steps.loader.stream.sources, config)
        accept, tokens = config.start.accept_changed_data, pl_module.progress.tokens
        seen = checked_data(self.folder, sources, config.data.full_digests, accept, tokens if self.checkpoint else None)
        self.recording.environment["data"] = data_versions(sources, config.data, config.revision)
        self.recording.accepted = seen.accepted
        claim(self.folder, config)
        forget_points(self.folder, tokens if self.checkpoint else -1)
        keep(self.folder, seen)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


class Recording(Callback):
    """Writes ``record.json`` at every point and at the end; it is finished when the budget is spent."""

    def __init__(self, folder: Path, components: Components, stop: StopSignal) -> None:
        self.folder, self.components, self.stop = folder, components, stop
        self.environment = environment()
        self.accepted: list[dict[str, Any]] = []  # changes of the data that the run went on with

    def write(self, module: Harness, finished: bool = False) -> None:
        described, counts = self.components.describe(module.config), parameter_counts(module.model)
        write_run_record(self.folder, module, self.environment, described, counts, self.accepted, finished)

    def on_train_end(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        if not self.stop.stopped:
            self.write(pl_module, finished=pl_module.progress.tokens >= budget(pl_module.config))


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
