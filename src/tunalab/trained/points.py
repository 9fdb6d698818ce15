"""Benchmarks asked along a run afterwards, of the weights that it keeps at its points; also while it trains, by other processes.

What was asked lies in ``points/asked/``, a file a benchmark and point, and is merged into the run's record by whoever writes it. A
point is asked once, by whichever process locks it first: several watchers share the work, also over a shared file system.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tunalab.data.scenes import BENCHMARKS
from tunalab.errors import UserError
from tunalab.evaluation import along
from tunalab.evaluation.benchmarks import (
    EASY_VQA,
    SPLIT,
    Benchmark,
    check_benchmarks,
    easy_vqa,
    one_of,
    out_of_reach,
    scenes,
)
from tunalab.evaluation.benchmarks import along as along_run
from tunalab.evaluation.generation.along import KeptImages, ScenePrompts
from tunalab.evaluation.measure import Score
from tunalab.files import listed, lock, locked, write_atomically
from tunalab.frontends.components.store import Components
from tunalab.inference.requests import computing, find_device, precision
from tunalab.records.asked import ASKED, merged
from tunalab.records.record import CONFIG_FILE, RECORD_FILE, read_record, write_record
from tunalab.settings.loading import laid_over, read_config, text_digest
from tunalab.settings.schema import RunConfig
from tunalab.trained.model import Model, load
from tunalab.training.claiming import is_training
from tunalab.training.points import kept_points, point_file

WATCH_SECONDS = 10.0
OWN = "evaluation."


def ask_points(
    run: str | Path,
    names: Sequence[str] = (),
    settings: Sequence[str] = (),
    watch: bool = False,
    log: Callable[[str], None] = print,
) -> list[int]:
    """Ask benchmarks at every point whose weights a run keeps (``evaluation.keep_points=all``), into its record; the tokens asked.

    ``names``: of scenes (``count``, ``count@2``), ``easy_vqa``, or of ``evaluation.benchmarks`` in the run's settings or in
    ``settings`` (["evaluation.benchmarks.mine.path=q.jsonl"]); none: all of these. ``watch``: go on until the run is finished.

    Raises UserError: no such run or benchmark, a setting of something else, no weights kept.
    """
    run_dir = Path(run)
    if not (run_dir / CONFIG_FILE).is_file():
        raise UserError(f"{run_dir} is no run directory ({CONFIG_FILE} is missing)")
    of_run = config = read_config(run_dir / CONFIG_FILE)
    for setting in settings:
        if not setting.startswith(OWN):
            raise UserError(f"setting '{setting}' is not of {OWN.rstrip('.')}: a trained model is asked, not changed")
        config = laid_over(config, setting)
    chosen = [named(name, config) for name in names or config.evaluation.benchmarks]
    if not chosen:
        raise UserError(f"{run_dir} names no benchmarks (evaluation.benchmarks): name one, --benchmarks NAME")
    limit = config.evaluation.max_answer_tokens
    if limit != of_run.evaluation.max_answer_tokens:
        chosen = [replace(one, max_tokens=one.max_tokens or limit) if isinstance(one, Benchmark) else one for one in chosen]
    _refuse_changed(names, of_run, config)
    for line in out_of_reach(config, Components(config.components_seed).tokenizer_for(config.decoder), _own(names, config)):
        log(f"warning: {line}")
    asked: list[int] = []
    while True:
        finished = _finished(run_dir)
        points = _points(run_dir, chosen)
        if not points and not watch:
            raise UserError(f"{run_dir} keeps no weights of its points: train with evaluation.keep_points=all")
        for tokens in points:
            if _ask(run_dir, tokens, chosen, log):
                asked.append(tokens)
        if finished or not watch:
            break
        time.sleep(WATCH_SECONDS)
    merge(run_dir)
    return asked


Asked = Benchmark | ScenePrompts | KeptImages
LATER: dict[str, Any] = {"scorer": "", "clip": ""}  # what a run may leave open


def _own(names: Sequence[str], config: RunConfig) -> list[str]:
    """Those of the user's own among the names; without names all."""
    return [name for name in names or config.evaluation.benchmarks if name in config.evaluation.benchmarks]


def _refuse_changed(names: Sequence[str], of_run: RunConfig, config: RunConfig) -> None:
    """Raises UserError: the run itself asks a benchmark of this name, otherwise. Its record keeps its own answers."""
    for name in set(_own(names, config)) & along_run(of_run).keys():
        there, here = (replace(one.evaluation.benchmarks[name], **LATER) for one in (of_run, config))
        if there != here or of_run.evaluation.max_answer_tokens != config.evaluation.max_answer_tokens:
            raise UserError(f"the run itself asks {name!r}, with other settings: give the new one a name of its own")


def named(name: str, config: RunConfig) -> Asked:
    """Raises UserError, one line: there is no such benchmark."""
    kind, _, level = name.partition("@")
    if name in config.evaluation.benchmarks:
        check_benchmarks(config)
        found = one_of(name, config)
        if isinstance(found, KeptImages) and found.judge is None:
            raise UserError(f"evaluation.benchmarks.{name}.scorer is missing: the folder of a model that scores images")
        return found
    if name == EASY_VQA:
        return easy_vqa(config.data.image_size, config.evaluation.easy_vqa or 300)
    if kind in BENCHMARKS and level in ("", "1", "2", "3"):
        groups = config.evaluation.groups or 200
        return scenes(kind, int(level or 1), SPLIT, config.data.image_size, groups, placement=config.data.placement)
    choices = [*config.evaluation.benchmarks, EASY_VQA, *BENCHMARKS, *(f"{one}@{level}" for one in BENCHMARKS for level in (2, 3))]
    raise UserError(
        f"there is no benchmark {name!r} (choices: {', '.join(choices)}; evaluation.benchmarks.{name}.path=FILE makes one)"
    )


def _points(run_dir: Path, chosen: Sequence[Asked]) -> list[int]:
    """Where there is something to ask: weights, or images that the run has made."""
    made = {
        int(folder.name)
        for one in chosen
        if isinstance(one, KeptImages)
        for folder in listed(one.folder(run_dir, 0).parent)
        if folder.name.isdecimal() and one.is_made(folder)
    }
    return sorted({*kept_points(run_dir), *made})


def merge(run_dir: Path) -> None:
    """Put what was asked into the run's record, if it has one. A run that still trains does so itself at its next point."""
    path = run_dir / RECORD_FILE
    if path.is_file() and not is_training(run_dir):
        with locked(run_dir):
            record = read_record(path)
            write_record(path, replace(record, **merged(run_dir, record.points, record.data)))


def _finished(run_dir: Path) -> bool:
    path = run_dir / RECORD_FILE
    return path.is_file() and read_record(path, evaluation=False).run.finished


def _ask(run_dir: Path, tokens: int, chosen: Sequence[Asked], log: Callable[[str], None]) -> bool:
    """Whether something was asked: what is there, or is asked by another process now, is left alone."""
    with _alone(point_file(run_dir, tokens).with_suffix(".lock")) as alone:
        missing = [one for one in chosen if not _place(run_dir, one, tokens).is_file()] if alone else []
        if not missing:
            return False
        model = _Weights(run_dir, tokens)
        asked = False
        for one in missing:
            began = time.perf_counter()
            score = model.ask(one)
            if score is None:
                continue
            about = {**one.describe(), "weights": "averaged, bfloat16", "asked": time.strftime("%Y-%m-%d")}
            if isinstance(one, KeptImages):
                del about["weights"]  # the run itself made the images, or the ones that it kept
            place = _place(run_dir, one, tokens)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, json.dumps({"name": one.name, "tokens": tokens, "score": asdict(score), "about": about}))
            took, asked = time.perf_counter() - began, True
            log(f"{run_dir} at {tokens:,} tokens: {one.name} {score.accuracy:.3f} of {score.n} ({took:.0f} s)")
    return asked


class _Weights:
    """Of a point, read when they are needed: images that the run has made are scored without."""

    def __init__(self, run_dir: Path, tokens: int) -> None:
        self.run_dir, self.tokens = run_dir, tokens

    @cached_property
    def run_makes_images(self) -> bool:
        return read_config(self.run_dir / CONFIG_FILE).evaluation.asked == "along"

    @cached_property
    def loaded(self) -> Model:
        return load(f"{self.run_dir}@{self.tokens}")

    def ask(self, one: Asked) -> Score | None:
        """None: there is neither image nor weights to make one with."""
        if isinstance(one, KeptImages):
            folder = one.folder(self.run_dir, self.tokens)
            if not one.is_made(folder):
                if self.tokens not in kept_points(self.run_dir) or is_training(self.run_dir) and self.run_makes_images:
                    return None
                shutil.rmtree(folder, ignore_errors=True)  # a part of them, of other weights: of those before rounding
                one.make(self.loaded.model, self.loaded.tokenizer, self.loaded.config, folder, self.loaded.identity)
            assert one.judge is not None  # `named` has refused it
            return one.judge(folder)
        if self.tokens not in kept_points(self.run_dir):
            return None
        loaded, device = self.loaded, find_device(None)
        with computing(precision(loaded.config, device), device), along.evaluation_mode(loaded.model):
            if isinstance(one, ScenePrompts):
                return one.ask(loaded.model, loaded.tokenizer, loaded.config)
            most = loaded.config.evaluation.max_answer_tokens
            return along.asked(loaded.model, loaded.tokenizer, [one], most)[one.name]


def _place(run_dir: Path, benchmark: Asked, tokens: int) -> Path:
    """Other questions, or another rule or limit of replies, under the same name are another file."""
    asked = text_digest(json.dumps(benchmark.describe(), sort_keys=True))
    return run_dir / ASKED / f"{benchmark.name}-{asked}-{tokens}.json"


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether this process holds a point; the lock ends with it, also when it is killed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield lock(descriptor, wait=False)
    finally:
        os.close(descriptor)
