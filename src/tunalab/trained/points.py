"""Benchmarks asked along a run afterwards, of the weights that it keeps at its points; also while it trains, by other processes.

What was asked lies in ``points/asked/``, a file a benchmark and point, and is merged into the run's record by whoever writes it. A
benchmark is asked at a point once, by whichever process locks it first: several watchers share the work, also over a shared file
system.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
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
from tunalab.files import listed, lock, write_atomically
from tunalab.frontends.components.store import Components
from tunalab.inference.requests import computing, find_device, precision
from tunalab.records.asked import ASKED, merged, own_answers
from tunalab.records.record import CONFIG_FILE, NOT_ASKED, RECORD_FILE, changing, read_record, write_record
from tunalab.settings.loading import laid_over, read_config, text_digest
from tunalab.settings.schema import RunConfig
from tunalab.trained.model import Model, load
from tunalab.training.claiming import END_FILE, is_training
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

    Raises UserError: no such run or benchmark, a setting of something else, no weights kept; after all others were asked, a point
    that could not be.
    """
    (asking,) = ask_runs([run], names, settings, watch, log)
    return sorted(asking.asked)


def ask_runs(
    runs: Sequence[str | Path], names: Sequence[str], settings: Sequence[str], watch: bool, log: Callable[[str], None] = print
) -> "list[Asking]":
    """As ``ask_points``, of several runs in turn: with ``watch`` none waits until another one is finished. What is wrong with one
    is raised when all others were asked.
    """
    asking = [Asking(Path(run), names, settings, log) for run in runs]
    wrong: list[UserError] = []
    while True:
        for one in [one for one in asking if not one.over]:
            try:
                one.look(watch)
                one.raise_failure()
            except UserError as error:
                if one.over or not watch:
                    one.over = True
                    wrong.append(error)
                else:
                    one.say(f"warning: {error}")  # it may be whole at the next look
        if all(one.over for one in asking):
            break
        time.sleep(WATCH_SECONDS)
    if wrong:
        raise wrong[0]
    return asking


@dataclass(frozen=True)
class Request:
    """A benchmark, and what it is, for the record: its questions are looked through once."""

    one: "Asked"
    about: dict[str, Any]

    def place(self, run_dir: Path, tokens: int | str) -> Path:
        """Other questions, or another rule or limit of replies, under the same name are another file."""
        digest = text_digest(json.dumps(self.about, sort_keys=True))
        return run_dir / ASKED / f"{self.one.name}-{digest}-{tokens}.json"


class Asking:
    """What is asked of one run. ``asked``: tokens of the points; ``over``: no more will come; ``merged``: the record has it."""

    def __init__(self, run_dir: Path, names: Sequence[str], settings: Sequence[str], log: Callable[[str], None]) -> None:
        self.run_dir, self.log = run_dir, log
        self.asked: set[int] = set()
        self.over = self.merged = False
        self._failed: dict[int, UserError] = {}
        self._said: set[str] = set()
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
        self.requests = [Request(one, one.describe()) for one in chosen]
        for request in self.requests:  # of two sets of questions under one name the record has the one that was wanted last
            for path in listed(run_dir / ASKED, request.place(self.run_dir, "*").name):
                os.utime(path)

    def look(self, watch: bool) -> None:
        """Ask what is there and was not asked yet. The last look waits for what other processes are asking: one may be killed."""
        before, ending = len(self.asked), _finished(self.run_dir) or not watch
        self._say_if_nobody_trains(ending)
        try:
            points = _points(self.run_dir, [request.one for request in self.requests])
            if not points and not watch:
                raise UserError(f"{self.run_dir} keeps no weights of its points: train with evaluation.keep_points=all")
            requests = self._not_of_the_run()
            for wait in (False, True) if ending else (False,):
                for tokens in points:
                    self._ask(tokens, requests, wait)
        finally:
            if ending or len(self.asked) > before:
                self.merged = merge(self.run_dir, patient=ending)
        self.over = ending
        if ending and self.asked and not self.merged:
            self.log(f"{self.run_dir} trains: it takes what was asked into its record at its next point")

    def raise_failure(self) -> None:
        if self._failed:
            first, *others = self._failed.items()
            more = f" (and {len(others)} points more)" if others else ""
            raise UserError(f"{self.run_dir} at {first[0]:,} tokens could not be asked{more}: {first[1]}")

    def _say_if_nobody_trains(self, ending: bool) -> None:
        if not ending and not is_training(self.run_dir):
            self.say(f"{self.run_dir} is not finished, and nobody trains it on this machine: waiting")

    def say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.log(line)

    def _not_of_the_run(self) -> list[Request]:
        """Without those that the run asked by itself: its record keeps its own answers."""
        path = self.run_dir / RECORD_FILE
        record = read_record(path, evaluation=False) if path.is_file() else None
        own = own_answers(record) if record else set()
        there = record.data.get("asked", {}) if record else {}
        for request in self.requests:
            name = request.one.name
            if name in there and {key: value for key, value in there[name].items() if key not in NOT_ASKED} != request.about:
                self.say(f"{self.run_dir}: the record has answers to other questions, or by another rule, as {name}: they go")
            if name in own:
                self.say(f"{self.run_dir}: the run itself was asked {name}, and its answers stay")
        return [request for request in self.requests if request.one.name not in own]

    def _ask(self, tokens: int, requests: Sequence[Request], wait: bool) -> None:
        """One process asks a benchmark at a point; without ``wait`` what another one is asking now is left to it."""
        weights = _Weights(self.run_dir, tokens)
        try:
            for request in requests:
                place = request.place(self.run_dir, tokens)
                if place.is_file():
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                with _alone(place.with_suffix(".lock"), wait) as alone:
                    if alone and not place.is_file():
                        self._answer(request, weights, place)
            self._failed.pop(tokens, None)
        except UserError as error:  # the other points are asked all the same
            self._failed[tokens] = error

    def _answer(self, request: Request, weights: "_Weights", place: Path) -> None:
        began, one, tokens = time.perf_counter(), request.one, weights.tokens
        score = weights.ask(one)
        if score is None or weights.replaced():
            return
        about = {**request.about, "weights": "averaged, bfloat16", "asked": time.strftime("%Y-%m-%d")}
        if isinstance(one, KeptImages):
            del about["weights"]  # the run itself made the images, or the ones that it kept
        write_atomically(place, json.dumps({"name": one.name, "tokens": tokens, "score": asdict(score), "about": about}))
        self.asked.add(tokens)
        took = time.perf_counter() - began
        self.log(f"{self.run_dir} at {tokens:,} tokens: {one.name} {score.accuracy:.3f} of {score.n} ({took:.0f} s)")


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
        check_benchmarks(config, asking=True)
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


def merge(run_dir: Path, patient: bool = False) -> bool:
    """Put what was asked into the run's record, if it has one; whether that was done. A run that still trains does so itself.

    ``patient``: wait up to a minute for the process of a run that has just finished to end.
    """
    path = run_dir / RECORD_FILE
    if not path.is_file():
        return False
    for _ in range(60 if patient and _finished(run_dir) else 0):
        if not is_training(run_dir):
            break
        time.sleep(1.0)
    if is_training(run_dir):
        return False
    with changing(path):
        record = read_record(path)
        write_record(path, replace(record, **merged(run_dir, record.points, record.data)))
    return True


def _finished(run_dir: Path) -> bool:
    """Also a trunk, which ends where its branches begin."""
    path = run_dir / RECORD_FILE
    return (run_dir / END_FILE).is_file() or path.is_file() and read_record(path, evaluation=False).run.finished


class _Weights:
    """Of a point, read when they are needed: images that the run has made are scored without."""

    def __init__(self, run_dir: Path, tokens: int) -> None:
        self.run_dir, self.tokens = run_dir, tokens
        self._file = self._found()

    def _found(self) -> tuple[int, int] | None:
        """What tells the file of these weights from one that takes its place."""
        with suppress(OSError):
            about = point_file(self.run_dir, self.tokens).stat()
            return about.st_mtime_ns, about.st_size
        return None

    def replaced(self) -> bool:
        """Whether the run has passed the point again meanwhile."""
        return self._found() != self._file

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


@contextmanager
def _alone(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process holds the lock; it ends with the process, also when that is killed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield lock(descriptor, wait)
    finally:
        os.close(descriptor)
