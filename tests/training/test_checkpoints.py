from pathlib import Path

import pytest

from tunalab.training.checkpoints import MANIFEST, CheckpointStore, damage


def store_with(tmp_path: Path, steps: list[int], keep: int = 2) -> CheckpointStore:
    store = CheckpointStore(tmp_path, keep)
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
    said: list[str] = []
    assert damage(newest)
    assert store.newest_valid(said.append) == store.steps()[0]
    assert len(said) == 1 and str(newest) in said[0]


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


def test_nothing_valid_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "absent").newest_valid() is None
