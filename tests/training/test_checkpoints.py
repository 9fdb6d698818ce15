import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from tunalab.files import remove
from tunalab.sweeps.cells import newest_step
from tunalab.training.checkpoints import MANIFEST, CheckpointStore, damage


def store_with(tmp_path: Path, steps: list[int], keep: int = 2, warn: Callable[[str], None] = print) -> CheckpointStore:
    store = CheckpointStore(tmp_path, keep, warn=warn)
    for step in steps:
        store.save(step, lambda folder, step=step: (folder / "weights").write_bytes(bytes([step]) * 1000) and None)
    return store


def test_keeps_the_newest(tmp_path: Path) -> None:
    store = store_with(tmp_path, [1, 2, 10])
    assert [path.name for path in store.steps()] == ["step-000000002", "step-000000010"]
    assert store.newest_valid() == store.steps()[-1]


@pytest.mark.parametrize("harm", ["zeroed", "truncated", "missing", "manifest"])
def test_damage_is_found_and_named(tmp_path: Path, harm: str) -> None:
    store = store_with(tmp_path, [1, 2])
    newest = store.steps()[-1]
    weights = newest / "weights"
    if harm == "zeroed":
        weights.write_bytes(weights.read_bytes()[:500] + bytes(64) + weights.read_bytes()[564:])
    elif harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif harm == "missing":
        weights.unlink()
    else:
        (newest / MANIFEST).write_text("{")
    printed: list[str] = []
    assert damage(newest)
    assert store.newest_valid(printed.append) == store.steps()[0]
    assert len(printed) == 1 and str(newest) in printed[0]


def test_a_full_disk_leaves_the_checkpoints_as_they_were(tmp_path: Path) -> None:
    store = store_with(tmp_path, [1, 2])

    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.save(3, write)
    assert [path.name for path in store.steps()] == ["step-000000001", "step-000000002"]
    assert not list(tmp_path.glob(".step-*"))
    assert all(damage(path) is None for path in store.steps())


def test_after_an_error_of_a_writer_the_disk_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's says nothing of the disk, and another error of its keeps its own words."""

    def write(folder: Path) -> None:
        raise CheckpointException("unexpected pos", {0: (RuntimeError("unexpected pos 704 vs 598"), None)})  # type: ignore[dict-item]

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    store = store_with(tmp_path, [1])
    with pytest.raises(CheckpointException, match="unexpected pos"):
        store.save(2, write)
    monkeypatch.setattr("tunalab.training.checkpoints.write_atomically", full)
    with pytest.raises(OSError, match=f"No space left on device: .*{tmp_path}.*step-000000002"):
        store.save(2, write)
    assert [path.name for path in store.steps()] == ["step-000000001"] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENOTEMPTY, errno.EACCES])
def test_an_old_checkpoint_that_cannot_go_is_a_warning_until_it_can(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS a file that another machine has open stays as `.nfs...`, and its folder with it."""
    printed: list[str] = []
    store = CheckpointStore(tmp_path, keep=1, warn=printed.append)
    store_with(tmp_path, [1, 2], keep=2)
    rmdir, stuck = os.rmdir, True

    def refuse(path: object, *arguments: object, **more: object) -> None:
        if stuck and str(path).endswith("step-000000001"):
            raise OSError(number, os.strerror(number), path)
        rmdir(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rmdir", refuse)
    write = lambda folder: (folder / "weights").write_bytes(b"w") and None  # noqa: E731
    assert damage(store.save(3, write)) is None
    (line,) = printed
    assert line.startswith(f"old checkpoint {tmp_path}/step-000000001 cannot be deleted yet ({os.strerror(number)})")
    assert [path.name for path in store.steps()] == ["step-000000001", "step-000000003"] and store.newest_valid() == store.steps()[
        -1
    ]
    stuck = False
    store.save(4, write)
    assert [path.name for path in store.steps()] == ["step-000000004"] and len(printed) == 1


def test_a_damaged_checkpoint_of_the_same_step_that_cannot_go_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, [1])
    (tmp_path / "step-000000001" / "weights").write_bytes(b"damaged")
    unlink = os.unlink

    def refuse(path: object, *arguments: object, **more: object) -> None:
        if str(path).endswith("weights"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        unlink(path, *arguments, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        store.save(1, lambda folder: (folder / "weights").write_bytes(b"whole") and None)
    assert [damage(path) for path in store.steps()] == [None]
    store.save(2, lambda folder: (folder / "weights").write_bytes(b"whole") and None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002"]


def test_nothing_valid_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "absent").newest_valid() is None


def test_names_of_the_users_own_push_out_no_checkpoint(tmp_path: Path) -> None:
    """Copies that somebody keeps beside them sort behind all steps."""
    own = ["step-best", "step-000000001.bak", "step-\u0661\u0662", "step-"]
    for name in own:
        (tmp_path / name).mkdir()
    store = store_with(tmp_path, [1, 2, 3])
    assert [path.name for path in store.steps()] == ["step-000000002", "step-000000003"]
    assert store.newest_valid() == store.steps()[-1]
    assert {*own} < {path.name for path in tmp_path.iterdir()}
    (tmp_path / "checkpoints").symlink_to(tmp_path)
    assert newest_step(tmp_path) == 3


def test_damaged_checkpoints_of_later_steps_push_out_none_that_is_whole(tmp_path: Path) -> None:
    """A run that goes on from the one before them reaches their steps again, and replaces them."""
    store = store_with(tmp_path, [1, 7, 9], keep=4)
    (tmp_path / "step-99999999999").mkdir()
    for late in store.steps()[1:]:
        (late / MANIFEST).write_text("{")
    store_with(tmp_path, [2, 3, 4])
    whole = [path for path in store.steps() if damage(path) is None]
    assert [path.name for path in whole] == ["step-000000003", "step-000000004"]
    store_with(tmp_path, [7, 8, 9])
    assert [path.name for path in store.steps()] == ["step-000000008", "step-000000009", "step-99999999999"]


@pytest.mark.parametrize("kind", ["file", "link", "nowhere"])
def test_what_stands_in_the_place_of_a_checkpoint_is_replaced_and_deleted(kind: str, tmp_path: Path) -> None:
    store = store_with(tmp_path / "run", [1], keep=1)
    other = tmp_path / "other"
    if kind == "link":
        store.steps()[0].rename(other)
    else:
        remove(store.steps()[0])
    for step in (1, 2):  # an old one, and the one that is to be saved
        place = tmp_path / "run" / f"step-{step:09d}"
        place.touch() if kind == "file" else place.symlink_to(other)
    printed: list[str] = []
    store_with(tmp_path / "run", [2], keep=1, warn=printed.append)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-000000002"] and not printed
    assert damage(store.steps()[0]) is None and (kind != "link" or damage(other) is None)
