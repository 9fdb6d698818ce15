"""A run from its configuration to its record: `tunalab train`."""

import logging
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch

from tunalab.data.changes import DataDigests, checked_data, data_versions, keep
from tunalab.data.stream import deal_lanes
from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.evaluation.along import evaluate, pictured, with_held_out
from tunalab.evaluation.benchmarks import along, kept_images, one_of, out_of_reach, outside_sources
from tunalab.evaluation.measure import LossItems, Score
from tunalab.evaluation.samples import sample_grid
from tunalab.frontends.components.store import Components
from tunalab.frontends.loading import Weight
from tunalab.frontends.registry import look_of
from tunalab.model.flops import flop_costs
from tunalab.model.unified import build_deferred, build_model, parameter_counts
from tunalab.records.asked import merged
from tunalab.records.environment import environment
from tunalab.records.log import rewind
from tunalab.records.record import CONFIG_FILE, RECORD_FILE, Point, Record, RunInfo, Totals, read_record, write_record
from tunalab.settings.loading import budget, config_hash, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.settings.timeline import Place, evaluation_tokens
from tunalab.tracking.client import full_uri
from tunalab.tracking.sync import point_metrics, run_tags
from tunalab.tracking.tracker import RUN_ID, Tracker
from tunalab.training.callbacks import Checkpointing, Evaluating, Printing, Reporting, Resuming, StopSignal, what_was_read
from tunalab.training.checkpoints import CheckpointStore, Saved, read_saved, refuse_foreign
from tunalab.training.claiming import Holding, check_unclaimed, claim
from tunalab.training.distribution import Distribution, joined
from tunalab.training.forking import LINEAGE_FILE, Parent, end_trunk, fork_of, read_lineage, refuse_other_shapes, trunk_of
from tunalab.training.joint import JointSteps, read_steps
from tunalab.training.module import Harness, NonFiniteLoss
from tunalab.training.optimisation import learnt_parameters
from tunalab.training.points import Scoring, forget_points, keep_point
from tunalab.training.start import load_start, start_weights, vae_of


def build_trainer(config: RunConfig, callbacks: list[lightning.Callback], **placed: Any) -> lightning.Trainer:
    """Lightning's Trainer as runs use it; ``placed``: where it trains, for Lightning (the benchmark of a step says one device)."""
    cuda = torch.cuda.is_available()
    precision = ("bf16" if cuda else "fp32") if config.precision == "auto" else config.precision
    # Advice that does not apply: frozen parts are meant to be in eval mode, one core has no workers to spare, and nothing is
    # done in place to what the model returns.
    advice = ("does not have many workers", "in eval mode at the start of training", "LeafSpec", "a view tensor", "`srun` command")
    for words in advice:
        warnings.filterwarnings("ignore", message=f".*{words}.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return lightning.Trainer(
        precision={"bf16": "bf16-mixed", "fp32": "32-true"}[precision],  # type: ignore[arg-type]
        max_epochs=1,  # the stream ends when the budget is spent
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=callbacks,
        **{"accelerator": "gpu" if cuda else "cpu", **placed},
    )


def train(
    config: RunConfig,
    run_dir: Path,
    attempts: Mapping[str, int] | None = None,
    callbacks: Sequence[lightning.Callback] = (),
    trunk: Path | None = None,
    until: Place | None = None,
) -> int:
    """Train, or go on training, in ``run_dir``; returns the exit code: 0 finished, 75 stopped and resumable, 1 not finite.

    The folder gets ``config.yaml``, checkpoints, samples, ``rejects.jsonl`` and ``record.json``. Starting again with the same
    configuration goes on from the newest undamaged checkpoint: on CPU bit for bit, on a GPU up to the order in which its kernels
    add (the backward passes of attention and of index operations there are not deterministic).

    ``attempts``: how often the run was started and how that ended, for its record. ``callbacks``: further ones, at the end of each
    step before it is saved.

    ``trunk``: the run directory of a sweep's trunk; where that is finished, and shares with this run all that acts until its end, a
    run without checkpoints of its own begins there (training/forking.py). ``until``: this run is a trunk, and ends there.

    Started by torchrun or srun, all processes train it together, and each returns the same code; the directory must be the same
    for all of them. Going on with another number of processes is another order of documents: see ``distribution.other_world``.

    Raises UserError: another configuration lives in ``run_dir``, a component or source is missing, or the processes started are
    not those of the settings. Nothing is written then.
    """
    torch.set_num_threads(config.threads)
    with joined(alone_too=config.distribution.strategy in ("ddp", "fsdp2")) as ranks:
        with ranks.together():
            distribution = Distribution.of(config.distribution, ranks)
            check_unclaimed(run_dir, config)
            run = Run(config, run_dir, distribution, attempts or {}, callbacks, trunk, until)
        return run.go()


class Run:
    """Everything a run is made of, wired together."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        distribution: Distribution,
        attempts: Mapping[str, int],
        callbacks: Sequence[lightning.Callback] = (),
        trunk: Path | None = None,
        until: Place | None = None,
    ) -> None:
        self.config = config
        self.until = until
        self.trunk = trunk
        self.parent: Parent | None = None
        self.callbacks = list(callbacks)
        self.attempts = dict(attempts)
        self.run_dir = run_dir
        self.distribution = distribution
        self.ranks = distribution.ranks
        self.components = Components(config.components_seed, vae_of(run_dir, config))
        self.described = self.components.describe(config)
        self.tokenizer = self.components.tokenizer_for(config.decoder)
        weights: dict[str, Weight] = {}
        if distribution.sharded:  # no process has room for a whole model
            model, weights = build_deferred(config, self.components, self.tokenizer.vocabulary)
        else:
            model = build_model(config, self.components, self.tokenizer.vocabulary)
        self.reporting = Reporting(run_dir, budget(config))
        self.store = CheckpointStore(run_dir / "checkpoints", config.keep_checkpoints, self.ranks, self._warn)
        fresh = self.ranks.broadcast(not self.store.steps())
        if fresh:  # a run that goes on has weights of its own
            self.parent = self._find_parent()
            if self.parent is not None:
                refuse_other_shapes(self.parent.checkpoint, learnt_parameters(model))
            elif distribution.sharded:
                weights |= start_weights(model, config, self._print)
            else:
                load_start(model, config, self._print)
        if self.parent is not None or not fresh:  # all that a checkpoint holds comes from there
            weights = {name: weight for name, weight in weights.items() if name in dict(model.named_buffers())}
        self.plain, self.hash = to_plain(config), config_hash(config)
        self.parameters = parameter_counts(model)
        self.environment = environment()
        if self.ranks.world_size > 1:
            self.environment |= {"processes": self.ranks.world_size, "strategy": distribution.strategy}
        self.costs = flop_costs(config, self.tokenizer.vocabulary)
        self.module = Harness(config, model, self.ranks, distribution.sharded, weights)
        self.tracker: Tracker | None = None
        self.scoring = Scoring(run_dir, self._warn)
        self.stop = StopSignal(self.ranks)
        self.resuming = Resuming()
        self.seen = DataDigests({})  # of the first rank, as what follows
        self.lineage: dict[str, Any] = {}
        self.checkpointing = Checkpointing(self.store, config.checkpoint_seconds, self.stop, config.checkpoint_keep)
        at = evaluation_tokens(config.evaluation, budget(config))
        self.evaluating = Evaluating(at, self._evaluate, self._on_point, self.checkpointing, until is None)
        self.holding: Holding | None = None  # of the first rank, once the run is known to begin

    def go(self) -> int:
        resume = self.store.newest_valid(warn=lambda line: print(f"warning: {line}", flush=True))
        if self.parent is not None:
            resume = self.parent.checkpoint
        self.resuming.checkpoint = resume
        with self.ranks.together(patient=True):  # shards whose index cannot be kept are indexed once more
            if resume is None and self.store.steps():
                raise UserError(f"every checkpoint in {self.store.folder} is damaged: remove that folder to start from scratch")
            loader = self._loader(resume)
            trainer = self._trainer()
        if self.ranks.first and resume is not None:
            print(f"resuming from {resume}" if self.parent is None else f"beginning from {resume}", flush=True)
        elif self.ranks.first:
            stages = " + ".join(f"{name} {stage.tokens:,}" for name, stage in self.config.stages.items() if stage.tokens)
            print(f"{self.config.experiment}, {self.config.variant}: {stages} tokens", flush=True)
        with self.ranks.together():
            # Only now, with everything checked and built: a mistake leaves neither a claimed directory nor a run that seems to run.
            if self.ranks.first:
                claim(self.run_dir, self.config)
                passed = -1 if resume is None or self.parent is not None else read_saved(resume).progress["tokens"]
                forget_points(self.run_dir, beyond=passed)
                if self.parent is not None:
                    self.parent.hand_over(self.run_dir)
                elif resume is None:  # left by an attempt that began at a trunk and was killed before it saved
                    (self.run_dir / LINEAGE_FILE).unlink(missing_ok=True)
                self.lineage = read_lineage(self.run_dir)
                self.holding = self.stop.holding = Holding(self.run_dir)
                keep(self.run_dir, self.seen)
                for line in out_of_reach(self.config, self.tokenizer, along(self.config)):
                    self._warn(line)
                waiting = [one.name for one in kept_images(self.config) if one.judge is None]
                if waiting:
                    self._print(f"{', '.join(waiting)}: images are kept, and wait for a scorer (docs/extend/benchmark.md)")
                self.tracker = self.reporting.tracker = self._tracker(resume)
        try:
            with self.stop.handlers_restored():
                trainer.fit(self.module, loader)
        except NonFiniteLoss as error:
            self._close("FAILED")
            self._print(f"error: {error}; the last checkpoint is kept in {self.store.folder}")
            return 1
        except BaseException as error:
            self._close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        if self.stop.stopped:
            self._close("KILLED")
            self._print(f"stopped at {self.module.progress.tokens:,} tokens; start the same run again to go on")
            return EXIT_STOPPED
        if self.ranks.first:
            self.scoring.finish()
            self._write_record(finished=self.until is None)
            if self.until is not None:
                end_trunk(self.run_dir, self.until, self.module.progress.steps)
            self.reporting.status(self.module, "done")
        self._close("FINISHED")
        return 0

    def _warn(self, line: str) -> None:
        self.reporting.later(f"warning: {line}", sys.stderr)

    def _print(self, line: str) -> None:
        if self.ranks.first:
            print(line, flush=True)

    def _trainer(self) -> lightning.Trainer:
        # The order matters: a point is evaluated, then saved with the checkpoint of its step.
        callbacks = [
            self.resuming,
            self.stop,
            *([self.reporting] if self.ranks.first else []),
            *self.callbacks,
            self.evaluating,
            self.checkpointing,
            *([Printing(self.reporting)] if self.ranks.first else []),
        ]
        placed = self.distribution.trainer_arguments(self.config)
        return build_trainer(self.config, callbacks, default_root_dir=str(self.run_dir), **placed)

    def _find_parent(self) -> Parent | None:
        """Where a run without checkpoints begins: at its trunk's end, in another run, or (None) at its start.

        The first rank looks, as a shared file system may show others something else yet.
        """
        found: Parent | UserError | None = None
        if self.ranks.first:
            try:
                found = None if self.trunk is None else trunk_of(self.trunk, self.config, self.described)
                if self.trunk is not None and found is None:
                    self._print(f"the trunk in {self.trunk} is not there or not this run's: what they share is trained again")
                if found is None and self.config.start.fork:
                    found = fork_of(self.config, self.described)
            except UserError as error:
                found = error
        found = self.ranks.broadcast(found)
        if isinstance(found, UserError):
            raise found
        return found

    def _loader(self, resume: Path | None) -> JointSteps:
        config, ranks = self.config, self.ranks
        if resume is not None:
            if self.parent is None:
                refuse_foreign(resume, config)
            self._find_lanes(read_saved(resume) if self.parent is None else self.parent.saved(config), resume)
        accept = config.start.accept_changed_data
        steps = read_steps(
            config,
            self.tokenizer,
            self.module.model.frontend.space.token_pixels,
            self.costs,
            self.run_dir / "rejects.jsonl",
            ranks,
            resume=self.resuming.lanes,
            next_lane=self.resuming.next_lane,
            accept_changed=accept,
        )
        if ranks.first:
            sources = with_held_out(steps.loader.stream.sources, config)
            self.environment["data"] = data_versions(sources, config.data, config.revision)
            tokens = None if resume is None else read_saved(resume).progress["tokens"]
            # A branch goes on with its trunk's data; a fork may read other data than its parent.
            branch = self.parent is not None and self.parent.lineage.kind == "trunk"
            held = self.parent.run_dir if branch and self.parent is not None else self.run_dir
            self.seen = checked_data(held, sources, config.data.full_digests, accept, tokens)
        steps.until = None if self.until is None else (self.until.stage, self.until.share)
        return steps

    def _find_lanes(self, saved: Saved, resume: Path) -> None:
        """Where this rank's stream goes on: exactly where it was, or with other ranks by the rule of data/stream.py."""
        ranks, resuming = self.ranks, self.resuming
        if saved.world_size == ranks.world_size:
            resuming.lanes, resuming.next_lane = saved.lanes[ranks.rank], saved.next_lane[ranks.rank]
        elif self.config.distribution.other_world:
            budgets = [stage.tokens for stage in self.config.stages.values()]
            resuming.lanes = deal_lanes(saved.lanes, ranks.world_size, self.config.data.workers, budgets)[ranks.rank]
            self._print(
                f"{saved.world_size} processes wrote it, {ranks.world_size} go on: in another order, no document a second time"
            )
        else:
            raise UserError(
                f"{resume} was written by {saved.world_size} processes, these are {ranks.world_size}: start as many, or set "
                "distribution.other_world=true to go on in another order, without reading a document twice"
            )

    def _tracker(self, resume: Path | None) -> Tracker | None:
        rows = rewind(self.run_dir, 0 if resume is None else read_saved(resume).progress["tokens"])
        tracking = self.config.tracking
        if not tracking.enabled:
            return None
        tracker = Tracker(
            full_uri(tracking.uri),
            tracking.experiment,
            self.run_dir.name,
            run_tags(self.run_dir.name, self.plain, self.hash, self.environment, look_of(self.config), self.lineage)
            | ({} if self.until is None else {"trunk": "yes"}),
            id_file=self.run_dir / RUN_ID,
            parent_run_id=tracking.parent_run or None,
            sources=self.environment.get("data"),
            system_metrics=tracking.system_metrics,
        )
        tracker.log_params(self.plain)
        tracker.log_artifact(self.run_dir / CONFIG_FILE)
        for row in rows:  # what a killed process had not sent yet
            tracker.log_metrics(row.metrics, row.tokens, row.time)
        return tracker

    def _evaluate(self, module: Harness) -> dict[str, Any]:
        self.reporting.status(module, "evaluating")
        began = time.perf_counter()
        result = evaluate(module.model, self.tokenizer, self.config)
        self._check_held()
        keep_point(self.run_dir, module.model, module.progress.tokens, module.progress.steps, self.config.evaluation.keep_points)
        self._keep_images(module)
        if pictured(self.config, self.config.evaluation.sample_prompts):
            folder = self.run_dir / "samples"
            folder.mkdir(exist_ok=True)
            path = folder / f"tokens-{module.progress.tokens:010d}.png"
            sample_grid(module.model, self.tokenizer, self.config).save(path)
            if self.tracker is not None:
                self.tracker.log_artifact(path, "samples")
        scores = "  ".join(f"{name} {score['accuracy']:.2f}" for name, score in result["benchmarks"].items())
        self.reporting.later(f"{module.progress.tokens:>11,} tokens  evaluated in {time.perf_counter() - began:.1f} s  {scores}")
        return result

    def _keep_images(self, module: Harness) -> None:
        """Of benchmarks of images; who scores them is told where they lie, and the training does not wait."""
        p, kept = module.progress, kept_images(self.config)
        identity = {"name": self.run_dir.name, "config_hash": self.hash, "revision": self.config.revision, "weights": "averaged"}
        identity |= {"steps": p.steps, "tokens": p.tokens}
        for one in kept:
            one.make(module.model, self.tokenizer, self.config, one.folder(self.run_dir, p.tokens), identity)
        self.scoring.start([one.name for one in kept if one.judge is not None])

    def _on_point(self, module: Harness) -> None:
        self._write_record(finished=False)
        self._log_points()

    def _log_points(self) -> None:
        """All of them: what the tracker has logged it knows, and what a killed process had not sent yet is made up for."""
        if self.tracker is not None:
            points = merged(self.run_dir, [_point(point) for point in self.module.progress.points], {})["points"]
            for _, tokens, metrics in point_metrics(points, self.plain):
                self.tracker.log_metrics(metrics, tokens)

    def _write_record(self, finished: bool) -> None:
        self._check_held()
        write_run_record(
            self.run_dir,
            self.module,
            self.environment,
            self.described,
            self.parameters,
            self.seen.accepted,
            finished,
            self.attempts,
            self.lineage,
        )

    def _check_held(self) -> None:
        if self.holding is not None:
            self.holding.check()

    def _close(self, status: Any) -> None:
        self.reporting.print_lines()
        held = self.holding is None or not self.holding.lost()
        if self.holding is not None:
            self.holding.close()
        if self.tracker is not None:
            self._log_points()
            if held and (self.run_dir / RECORD_FILE).exists():
                self.tracker.log_artifact(self.run_dir / RECORD_FILE)
            self.tracker.finish(status)


def write_run_record(
    run_dir: Path,
    module: Harness,
    environment: dict[str, Any],
    components: dict[str, Any],
    parameters: dict[str, int],
    accepted: list[dict[str, Any]],
    finished: bool,
    attempts: Mapping[str, int] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> None:
    """``record.json`` of a run as far as it is. ``accepted``: changes of its data that it went on with."""
    module.note_memory()
    p, config = module.progress, module.config
    sources = outside_sources(config)
    described = {key: one_of(key, config).describe() for key in along(config)}
    _check_asked_alike(run_dir, described, [point for point in p.points if point["tokens"] > (lineage or {}).get("tokens", 0)])
    record = Record(
        run=RunInfo(
            name=run_dir.name,
            experiment=config.experiment,
            variant=config.variant,
            seed=config.seed,
            mask_ratio=config.objective.masking.ratio,
            sweep=config.tracking.sweep or None,
            config_hash=config_hash(config),
            finished=finished,
        ),
        config=to_plain(config),
        environment=environment,
        parameters=parameters,
        components=components,
        totals=Totals(p.tokens, p.steps, p.images, p.flops, p.seconds, p.peak_memory),
        points=[_point(point) for point in p.points],
        attempts=dict(attempts or {}),
        data={
            **what_was_read(p, config.stages),
            **({"accepted_changes": accepted} if accepted else {}),
            **({"outside": sources} if sources else {}),
            **({"benchmarks": described} if described else {}),
        },
        frontend=look_of(config),
        lineage=dict(lineage or {}),
    )
    write_record(run_dir / RECORD_FILE, replace(record, **merged(run_dir, record.points, record.data)))


def _check_asked_alike(run_dir: Path, described: Mapping[str, Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError: a benchmark's questions are no longer those that the run's earlier points were asked. The checkpoint before
    this point stays the newest, so that the run goes on from there once they are back.
    """
    path = run_dir / RECORD_FILE
    before = read_record(path).data.get("benchmarks", {}) if path.exists() and len(points) > 1 else {}
    for key, now in described.items():
        asked = {point["benchmarks"][key]["n"] for point in points if key in point["benchmarks"]}
        if len(asked) > 1 or (key in before and before[key].get("questions") != now.get("questions")):
            raise UserError(
                f"evaluation.benchmarks.{key}: its questions changed while this run trained; a curve is of one set of them: "
                "put them back and start the run again, it goes on"
            )


def _point(plain: dict[str, Any]) -> Point:
    scores = {name: Score(**score) for name, score in plain["benchmarks"].items()}
    # Points of a run that an earlier version began have none.
    items = {name: LossItems(**one) for name, one in plain.get("loss_items", {}).items()}
    return Point(**{**plain, "benchmarks": scores, "loss_items": items})
