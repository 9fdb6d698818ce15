"""A run from its configuration to its record: `tunalab train`."""

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import OmegaConf

from tunalab.config import RunConfig, budget, config_hash, from_plain, read_yaml, to_plain
from tunalab.data.stream import StepLoader, open_stream
from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.evaluation.samples import sample_grid
from tunalab.evaluation.score import Score
from tunalab.evaluation.suite import evaluate
from tunalab.files import write_atomically
from tunalab.frontends.components.handle import Components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.model.build import build_model, parameter_counts
from tunalab.model.flops import flop_costs
from tunalab.results.environment import environment
from tunalab.results.mlflow_client import default_uri
from tunalab.results.records import CONFIG_FILE, RECORD_FILE, Point, Record, RunInfo, Totals, write_record
from tunalab.results.tracking import Tracker
from tunalab.training.checkpointing import Checkpointing
from tunalab.training.checkpoints import STATE, CheckpointStore
from tunalab.training.evaluating import Evaluating, evaluation_tokens
from tunalab.training.module import Harness, NonFiniteLoss
from tunalab.training.preflight import refuse_several_processes
from tunalab.training.reporting import Reporting
from tunalab.training.start import load_start
from tunalab.training.stopping import StopSignal

RUN_ID = "mlflow_run_id"


def train(config: RunConfig, run_dir: Path) -> int:
    """Train, or go on training, in ``run_dir``; returns the exit code: 0 finished, 75 stopped and resumable, 1 not finite.

    The folder gets ``config.yaml``, checkpoints, samples, ``rejects.jsonl`` and ``record.json``. Starting again with the same
    configuration goes on from the newest undamaged checkpoint: on CPU bit for bit, on a GPU up to the order in which its kernels
    add (the backward passes of attention and of index operations there are not deterministic).

    Raises UserError: another configuration lives in ``run_dir``, or a component or source is missing. Nothing is written then.
    """
    torch.set_num_threads(config.threads)
    check_unclaimed(run_dir, config)
    return Run(config, run_dir).go()


def check_unclaimed(run_dir: Path, config: RunConfig) -> None:
    """Raises UserError when the configuration that lives in ``run_dir`` computes something else."""
    path = run_dir / CONFIG_FILE
    if path.exists():
        there = from_plain(read_yaml(path))
        if config_hash(there) != config_hash(config):
            changed = _differences(to_plain(there), to_plain(config))
            raise UserError(f"{run_dir} holds a run with other settings ({'; '.join(changed)}): choose another run directory")


def claim(run_dir: Path, config: RunConfig) -> None:
    """Write the resolved configuration: from here on the directory is this run's."""
    write_atomically(run_dir / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))


class Run:
    """Everything a run is made of, wired together."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self.config = config
        self.run_dir = run_dir
        self.components = Components(ComponentSettings.seeded(config.components_seed))
        self.tokenizer = self.components.tokenizer_for(config.decoder)
        refuse_several_processes(config)
        model = build_model(config, self.components, self.tokenizer.vocabulary)
        self.store = CheckpointStore(run_dir / "checkpoints", config.keep_checkpoints)
        if not self.store.steps():  # a run that goes on has weights of its own
            load_start(model, config)
        self.parameters = parameter_counts(model)
        self.described = self.components.describe(config)
        self.environment = environment()
        self.module = Harness(config, model, flop_costs(config, self.tokenizer.vocabulary))
        self.tracker: Tracker | None = None
        self.stop = StopSignal()
        self.checkpointing = Checkpointing(self.store, config.checkpoint_seconds, self.stop)
        at = evaluation_tokens(config.evaluation, budget(config))
        self.evaluating = Evaluating(at, self._evaluate, self._on_point, self.checkpointing)
        self.reporting = Reporting(run_dir, budget(config))

    def go(self) -> int:
        resume = self.store.newest_valid(warn=lambda line: print(f"warning: {line}", flush=True))
        if resume is None and self.store.steps():
            raise UserError(f"every checkpoint in {self.store.folder} is damaged: remove that folder to start from scratch")
        if resume is not None:
            print(f"resuming from {resume}", flush=True)
        loader = self._loader(resume)
        trainer = self._trainer()
        # Only now, with everything checked and built: a mistake leaves neither a claimed directory nor a run that seems to run.
        claim(self.run_dir, self.config)
        self.tracker = self.reporting.tracker = self._tracker()
        try:
            with self.stop.handlers_restored():
                trainer.fit(self.module, loader, ckpt_path=None if resume is None else str(resume / STATE), weights_only=True)
        except NonFiniteLoss as error:
            self._close("FAILED")
            print(f"error: {error}; the last checkpoint is kept in {self.store.folder}", flush=True)
            return 1
        except BaseException:
            self._close("FAILED")
            raise
        if self.stop.stopped:
            self._close("KILLED")
            print(f"stopped at {self.module.progress.tokens:,} tokens; start the same run again to go on", flush=True)
            return EXIT_STOPPED
        self._write_record(self.evaluating.points, finished=True)
        self.reporting.status(self.module, "done")
        self._close("FINISHED")
        return 0

    def _trainer(self) -> lightning.Trainer:
        cuda = torch.cuda.is_available()
        precision = self.config.precision
        if precision == "auto":
            precision = "bf16" if cuda else "fp32"
        # Advice that does not apply: frozen parts are meant to be in eval mode, and one core has no workers to spare.
        for message in (".*does not have many workers.*", ".*in eval mode at the start of training.*", ".*LeafSpec.*"):
            warnings.filterwarnings("ignore", message=message)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        return lightning.Trainer(
            accelerator="gpu" if cuda else "cpu",
            devices=1,
            precision={"bf16": "bf16-mixed", "fp32": "32-true"}[precision],  # type: ignore[arg-type]
            max_epochs=1,  # the stream ends when the budget is spent
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=str(self.run_dir),
            # The order matters: a point is evaluated, then saved with the checkpoint of its step.
            callbacks=[self.stop, self.reporting, self.evaluating, self.checkpointing],
        )

    def _loader(self, resume: Path | None) -> StepLoader:
        config = self.config
        lanes, next_lane = {}, 0
        if resume is not None:
            progress = torch.load(resume / STATE, weights_only=True, map_location="cpu")["tunalab"]["progress"]
            lanes, next_lane = progress["lanes"], progress["next_lane"]
        token_pixels = self.module.model.frontend.space.token_pixels
        stream = open_stream(
            config, self.tokenizer, token_pixels, self.run_dir / "rejects.jsonl", resume=lanes, next_lane=next_lane
        )
        return StepLoader(stream, config.data.workers)

    def _tracker(self) -> Tracker | None:
        tracking = self.config.tracking
        if not tracking.enabled:
            return None
        known = self.run_dir / RUN_ID
        tags = {
            "sweep": tracking.sweep,
            "experiment": self.config.experiment,
            "variant": self.config.variant,
            "mask_ratio": self.config.objective.masking.ratio,
            "seed": self.config.seed,
        }
        tracker = Tracker.start(
            tracking.uri or default_uri(),
            tracking.experiment,
            self.run_dir.name,
            tags,
            parent_run_id=tracking.parent_run or None,
            run_id=known.read_text().strip() if known.exists() else None,
        )
        if tracker.run_id:
            write_atomically(known, tracker.run_id + "\n")
        tracker.log_params(to_plain(self.config))
        tracker.log_artifact(self.run_dir / CONFIG_FILE)
        return tracker

    def _evaluate(self, module: Harness) -> dict[str, Any]:
        self.reporting.status(module, "evaluating")
        began = time.perf_counter()
        result = evaluate(module.model, self.tokenizer, self.config)
        if self.config.evaluation.sample_prompts:
            folder = self.run_dir / "samples"
            folder.mkdir(exist_ok=True)
            path = folder / f"tokens-{module.progress.tokens:010d}.png"
            sample_grid(module.model, self.tokenizer, self.config).save(path)
            if self.tracker is not None:
                self.tracker.log_artifact(path, "samples")
        scores = "  ".join(f"{name} {score['accuracy']:.2f}" for name, score in result["benchmarks"].items())
        print(f"{module.progress.tokens:>11,} tokens  evaluated in {time.perf_counter() - began:.1f} s  {scores}", flush=True)
        return result

    def _on_point(self, module: Harness, points: list[dict[str, Any]]) -> None:
        self._write_record(points, finished=False)
        if self.tracker is None:
            return
        point = points[-1]
        metrics = {f"benchmark/{name}": score["accuracy"] for name, score in point["benchmarks"].items()}
        metrics |= {f"heldout/{name}": value for name, value in point["losses"].items()}
        metrics |= {f"one_step_psnr/t{t}": value for t, value in point["one_step_psnr"].items()}
        metrics |= {f"cost/{name}": float(point[name]) for name in ("steps", "images", "flops", "seconds")}
        self.tracker.log_metrics(metrics, point["tokens"])

    def _write_record(self, points: list[dict[str, Any]], finished: bool) -> None:
        self.module.note_memory()
        p, config = self.module.progress, self.config
        record = Record(
            run=RunInfo(
                name=self.run_dir.name,
                experiment=config.experiment,
                variant=config.variant,
                seed=config.seed,
                mask_ratio=config.objective.masking.ratio,
                sweep=config.tracking.sweep or None,
                config_hash=config_hash(config),
                finished=finished,
            ),
            config=to_plain(config),
            environment=self.environment,
            parameters=self.parameters,
            components=self.described,
            totals=Totals(p.tokens, p.steps, p.images, p.flops, p.seconds, p.peak_memory),
            points=[_point(point) for point in points],
        )
        write_record(self.run_dir / RECORD_FILE, record)

    def _close(self, status: Any) -> None:
        if self.tracker is not None:
            if (self.run_dir / RECORD_FILE).exists():
                self.tracker.log_artifact(self.run_dir / RECORD_FILE)
            self.tracker.finish(status)


def _point(plain: dict[str, Any]) -> Point:
    return Point(**{**plain, "benchmarks": {name: Score(**score) for name, score in plain["benchmarks"].items()}})


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(there.keys() | here.keys()):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a} there, {b} here")
    return found
