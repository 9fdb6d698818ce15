"""Whose a run directory is: one configuration's, from the moment that its run can begin, and the very folder it began in."""

import errno
import os
from pathlib import Path

from tunalab.errors import UserError
from tunalab.files import DATA_FILE, lock, write_atomically
from tunalab.records.log import STATUS_FILE, TRAINING_LOG
from tunalab.records.record import CONFIG_FILE, RECORD_FILE
from tunalab.settings.layers import unequal
from tunalab.settings.loading import config_hash, read_config, to_plain, to_yaml
from tunalab.settings.schema import RunConfig

LOCK_FILE = "lock"
END_FILE = "trunk.json"  # of a sweep's trunk: where it ends; written when it is there
HASH_LINE = "# hash: "  # first line of the file: whose the directory is is found without reading the settings


FILES = (LOCK_FILE, CONFIG_FILE, RECORD_FILE, STATUS_FILE, TRAINING_LOG, DATA_FILE, "attempts.jsonl", "rejects.jsonl")
FOLDERS = ("checkpoints", "samples", "points")


def check_places(run_dir: Path) -> None:
    """Raises UserError: where a run will write stands something else, which would end it at its first checkpoint, or which never
    answers a reader (a pipe).
    """
    for name in FILES:
        path = run_dir / name
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no regular file"
            raise UserError(f"{path} is {what}, where a run keeps a file: remove it, or choose another run directory")
    for name in FOLDERS:
        path = run_dir / name
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, where a run keeps a folder: remove it, or choose another run directory")


def check_unclaimed(run_dir: Path, config: RunConfig) -> None:
    """Raises UserError when the configuration that lives in ``run_dir`` computes something else.

    The limit of broken documents may change: it says when a run stops, not what it computes, and a run that it stopped goes on
    with a larger one.
    """
    check_places(run_dir)
    path = run_dir / CONFIG_FILE
    if path.exists():
        refuse_other_settings(read_config(path), config, f"{run_dir} holds a run", "choose another run directory")


def refuse_other_settings(there: RunConfig, config: RunConfig, what: str, remedy: str) -> None:
    """Raises UserError, naming the settings that differ, when ``there`` computes something else than ``config``."""
    there.data.reject_share = config.data.reject_share
    if config_hash(there) != config_hash(config):
        changed = "; ".join(f"{key}: {a} there, {b} here" for key, a, b in unequal(to_plain(there), to_plain(config)))
        raise UserError(f"{what} with other settings ({changed}): {remedy}")


def claim(run_dir: Path, config: RunConfig) -> None:
    """Write the resolved configuration: from here on the directory is this run's, with the limits of its latest start."""
    write_atomically(run_dir / CONFIG_FILE, f"{HASH_LINE}{config_hash(config)}\n{to_yaml(config)}")


def claimed_hash(run_dir: Path) -> str | None:
    """The hash of the configuration that lives in ``run_dir``, as it was when that was written; None where it does not say."""
    try:
        with (run_dir / CONFIG_FILE).open(encoding="utf-8") as stream:
            line = stream.readline(len(HASH_LINE) + 20)
    except (OSError, UnicodeDecodeError):
        return None
    return line.removeprefix(HASH_LINE).strip() if line.startswith(HASH_LINE) else None


def is_training(run_dir: Path) -> bool:
    """Whether a process on this file system trains there now."""
    path = run_dir / LOCK_FILE
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as stream:
        return not lock(stream, wait=False, shared=True)


class Holding:
    """The folder that a run began in and the lock it found there: not whatever gets their names later.

    Both stay open, so that no new folder can get their numbers.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._kept = [(path, os.open(path, os.O_RDONLY)) for path in (run_dir, run_dir / LOCK_FILE) if path.exists()]

    def lost(self) -> bool:
        return not all(is_same(path, descriptor) for path, descriptor in self._kept)

    def check(self) -> None:
        """Raises UserError when the folder or its lock was removed, renamed or replaced: what is there now is not this run's."""
        if self.lost():
            raise UserError(
                f"{self.run_dir} was removed or replaced while this run trained there: it stops, and writes nothing more"
            )

    def close(self) -> None:
        for _, descriptor in self._kept:
            os.close(descriptor)
        self._kept = []


def is_same(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still leads to what is open as ``descriptor``. A file system that does not answer is no answer."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
