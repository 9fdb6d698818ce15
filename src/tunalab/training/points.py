"""Averaged weights at the points of a run, in bfloat16: ``points/<tokens>.safetensors``, for what is asked of them afterwards.

Also the process that scores the images which a run makes at its points.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import bfloat16

from tunalab.errors import UserError, first_line
from tunalab.files import listed, remove, whole_file
from tunalab.model.unified import UnifiedModel
from tunalab.training.checkpoints import LearntWeights
from tunalab.training.optimisation import is_frozen, learnt_parameters

FOLDER, LAST, NONE = "points", "last", "none"


def point_file(run_dir: Path, tokens: int) -> Path:
    return run_dir / FOLDER / f"{tokens:012d}.safetensors"


def keep_point(run_dir: Path, model: UnifiedModel, tokens: int, steps: int, keep: str) -> None:
    """The model's learnt weights as they are now. ``keep``: all | last | none (``evaluation.keep_points``).

    Written aside and renamed: it is there whole or not at all. Raises OSError: the disk is full or not writable.
    """
    if keep == NONE:
        return
    path = point_file(run_dir, tokens)
    whole = learnt_parameters(model)  # a tied table under its first name; where ranks share parameters these are gathered
    stored = model.state_dict().keys()
    others = {name: buffer for name, buffer in model.named_buffers() if name in stored and not is_frozen(model, name)}
    halves = {name: tensor.detach().to("cpu", bfloat16).contiguous() for name, tensor in whole.items()}
    halves |= {name: buffer.detach().cpu().contiguous() for name, buffer in others.items()}  # nobody rounds them in training
    with whole_file(path) as aside:
        save_file(halves, aside, metadata={"tokens": str(tokens), "steps": str(steps), "weights": "averaged, bfloat16"})
    for other in kept_points(run_dir).values() if keep == LAST else ():
        if other != path:
            other.unlink(missing_ok=True)


def kept_points(run_dir: Path) -> dict[int, Path]:
    """Tokens -> file, in order."""
    return {int(path.stem): path for path in listed(run_dir / FOLDER, "*.safetensors") if path.stem.isdecimal()}


def _kept(run_dir: Path) -> Iterator[tuple[Path, int]]:
    """Weights, folders of images and answers of points, each with the tokens that its name ends with."""
    for path in (
        found for pattern in ("*.safetensors", "images/*/*", "asked/*.json") for found in listed(run_dir / FOLDER, pattern)
    ):
        if number := re.search(r"\d+$", path.stem):
            yield path, int(number[0])


def forget_points(run_dir: Path, beyond: int) -> None:
    """Remove what is kept of points with more tokens: the run passes them again, and what was asked was asked of other weights."""
    for path, tokens in _kept(run_dir):
        if tokens > beyond:
            remove(path)


def hand_points(parent: Path, run_dir: Path, until: int) -> None:
    """Give a run what its parent keeps of the points that both share. Files are linked where the disk can: nobody changes one."""
    for path, tokens in _kept(parent):
        if tokens <= until:
            place = run_dir / path.relative_to(parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, place, copy_function=_link, dirs_exist_ok=True)
            else:
                _link(path, place)


def _link(path: str | Path, place: str | Path) -> None:
    try:
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)


def point_weights(path: Path) -> LearntWeights:
    """Raises UserError: the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
            return LearntWeights(weights, int(about["steps"]), int(about["tokens"]))
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # another's file lacks our metadata
        raise UserError(f"{path} is damaged: {first_line(error)}") from error


class Scoring:
    """``tunalab evaluate RUN --points all`` beside a run, on the processor: it scores the images that are there, and ends.

    What it finds lies in ``points/asked/``, from where the run takes it into its record. A killed one is started again at the next
    point; ``warn`` gets a line where one failed, and the run goes on.
    """

    def __init__(self, run_dir: Path, warn: Callable[[str], None]) -> None:
        self.run_dir, self.warn = run_dir, warn
        self.log = run_dir / FOLDER / "scoring.txt"
        self.names: Sequence[str] = ()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, names: Sequence[str]) -> None:
        """Unless one still runs: that, or the next, will find the new images."""
        self.names = names
        if names and (self._process is None or self._over(wait=False)):
            self._begin()

    def finish(self) -> None:
        """Wait until the images of the last point are scored."""
        if self._process is not None:
            self._over(wait=True)
            self._begin()
            self._over(wait=True)

    def _begin(self) -> None:
        command = [sys.executable, "-m", "tunalab", "evaluate", str(self.run_dir), "--points", "all", "--benchmarks", *self.names]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _over(self, wait: bool) -> bool:
        assert self._process is not None
        code = self._process.wait() if wait else self._process.poll()
        if code:
            *_, last = ["nothing was said", *self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()]
            self.warn(
                f"{', '.join(self.names)} could not be scored ({last}): `tunalab evaluate {self.run_dir} --points all` goes on"
            )
        return code is not None
