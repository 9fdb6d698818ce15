"""What the system refuses is one line and exit code 2, whatever the command: the path, the reason, what to do."""

import argparse
import builtins
import errno
import io
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import tunalab.cli
from tunalab.cli import main
from tunalab.errors import refused_by_system
from tunalab.files import write_atomically
from tunalab.records import environment

ROOT = Path(__file__).parent.parent.parent
OF_DISK = "the disk or its server does not answer as it should: try again, or choose another place"
RECORDS = shlex.quote(str(ROOT / "results" / "mask_ratio"))
# Every command with a path that a user gives it, written to or read from.
CALLS = {
    "train": "train --run-dir {place}",
    "train, config": "train --config {place}",
    "train, experiment": "train --experiment {place}.yaml",
    "train, manifest": "train data.manifests.m.path={place} stages.sft.mix={{manifest/m: 1}}",
    "sweep": "sweep {place}",
    "sweep, launch": "sweep mask_ratio --launch {place}.yaml --dry-run",
    "figure, records": "figure curves --records {place}",
    "figure": f"figure curves --records {RECORDS} --out {{place}}",
    "table, records": "table --records {place}",
    "table": f"table --records {RECORDS} --out {{place}}",
    "diff": f"diff {{place}} {RECORDS}/tuna2-ratio0-seed0.json",
    "report, records": "report --records {place}",
    "export": "export {place} out",
    "convert": "convert {place} out --to tunalab",
    "evaluate": "evaluate {place}",
    "generate": "generate {place} cat --out out",
    "generate, prompts": "generate model --prompts {place} --out out",
    "edit": "edit {place} image.png brighter --out out",
    "ask": "ask {place} image.png what",
    "attention": "attention {place} --examples 1",
    "samples": "samples {place} geneval --data data --out out",
    "score": "score clip {place} --model model --out out.json",
    "score, out": "score clip images --model model --out {place}",
    "judge": "judge {place} other",
    "mlflow-sync": "mlflow-sync {place}",
    "mlflow-sync, records": "mlflow-sync --records {place}",
    "bench": "bench --only sweep --records {place}",
}
PLACES: dict[str, Callable[[Path], Path]] = {}


def place(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    PLACES[make.__name__] = make
    return make


@place
def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("in the way")
    return folder / "file" / "inside"


@place
def link_to_nothing(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nothing")
    return folder / "link"


@place
def link_to_itself(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "link")
    return folder / "link"


@place
def too_long(folder: Path) -> Path:
    return folder / ("long" * 80)


@place
def another_users(folder: Path) -> Path:
    (folder / "secret").mkdir()
    return folder / "secret" / "file"


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Files below a path are refused with this error. Tests run as root too, which may everything."""

    def deny(path: Path, number: int) -> None:
        def refusing(of: Callable[..., Any]) -> Callable[..., Any]:
            def call(name: Any, *more: Any, **how: Any) -> Any:
                if isinstance(name, str | os.PathLike) and Path(name).absolute().is_relative_to(path):
                    raise OSError(number, os.strerror(number), str(name))
                return of(name, *more, **how)

            return call

        for module, name in (
            (builtins, "open"),
            (io, "open"),
            (os, "open"),
            (os, "mkdir"),
            (os, "stat"),
            (os, "scandir"),
            (os, "listdir"),
        ):
            monkeypatch.setattr(module, name, refusing(getattr(module, name)))

    return deny


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_a_place_that_cannot_be_used_is_one_line(
    call: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], deny: Any
) -> None:
    for name in ("experiments", "variants", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNALAB_JUDGE_URL", "http://localhost:9")
    used = PLACES[kind](tmp_path)
    if kind == "another_users":
        deny(used.parent, errno.EACCES)
    try:
        code = main([word.format(place=used) for word in shlex.split(CALLS[call])])
    except SystemExit as error:
        code = int(error.code or 0)
    printed = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and printed and printed[-1].startswith(("error: ", "tunalab ")), printed
    assert len(printed) == 1 or "usage" in printed[0], printed


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.EIO, errno.ESTALE, errno.EMFILE]
)
@pytest.mark.parametrize("call", ["table", "figure"])
def test_what_cannot_be_written_is_one_line(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], deny: Any
) -> None:
    """A full or read-only disk under the folder that results go to; what was there stays."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "earlier.md").write_text("kept")
    deny(tmp_path / "new", number)
    assert main([word.format(place=tmp_path / "new") for word in shlex.split(CALLS[call])]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}/new") and os.strerror(number) in line and line.endswith(")")
    assert (tmp_path / "earlier.md").read_text() == "kept"


def raising(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(_: argparse.Namespace) -> int:
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=run)
    monkeypatch.setattr(tunalab.cli, "_parser", lambda: parser)
    return main([])


def test_a_disk_that_fills_up_while_training_keeps_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tunalab.training.run
    from tunalab.sweeps.cells import read_history

    def full(_: Any, run_dir: Path, *more: Any) -> int:
        (run_dir / "checkpoints" / "step-000000003").mkdir(parents=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run_dir / "checkpoints" / "step-000000006"))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tunalab.training.run, "train", full)
    assert main(["train", "--run-dir", str(tmp_path / "run"), "tracking.enabled=false"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}/run/checkpoints/step-000000006: No space left on device (free some space")
    (attempt,) = read_history(tmp_path / "run").attempts
    assert (attempt.how, attempt.saved) == ("failed", 3) and "No space left" in attempt.reason


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a"),
        KeyError("b"),
        OSError("of some library"),
        OSError(errno.EBADF, "bad"),
        OSError(errno.EINVAL, "x"),
        ConnectionResetError(errno.ECONNRESET, "y"),
    ],
)
def test_errors_of_the_program_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        raising(error, monkeypatch)


def test_errors_of_libraries_that_tell_the_systems_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SafetensorError, match="os error 2") as caught:
        save_file({"a": torch.zeros(1)}, "/proc/nowhere/file")
    assert raising(caught.value, monkeypatch) == 2
    assert capsys.readouterr().err == "error: No such file or directory (check the path)\n"
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(FileNotFoundError) as none:
        tempfile.mkdtemp()
    assert raising(none.value, monkeypatch) == 2
    assert "No usable temporary directory" in capsys.readouterr().err


def test_a_descriptor_or_bytes_for_a_name() -> None:
    assert refused_by_system(OSError(errno.EIO, "x", 3)) == f"{os.strerror(errno.EIO)} ({OF_DISK})"
    assert (refused_by_system(OSError(errno.EROFS, "x", b"/a")) or "").startswith("/a: Read-only file system")


def commit_of(monkeypatch: pytest.MonkeyPatch, file: Path) -> tuple[str | None, bool | None]:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    return environment._commit(file)


@pytest.mark.parametrize("kept", ["loose", "packed", "detached", "worktree"])
def test_the_commit_of_another_users_checkout_is_read(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = tmp_path / "house"
    (checkout / "src" / "package").mkdir(parents=True)
    (checkout / "src" / "package" / "file.py").write_text("")
    plain = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*words: str) -> str:
        call = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(checkout), *words]
        return subprocess.run(call, check=True, capture_output=True, text=True, env=plain).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    if kept == "packed":
        git("pack-refs", "--all")
    elif kept == "detached":
        git("checkout", "-q", "--detach")
    elif kept == "worktree":
        git("worktree", "add", "-q", str(tmp_path / "tree"))
        git("pack-refs", "--all")
        checkout = tmp_path / "tree"
    for _ in range(2):
        assert commit_of(monkeypatch, checkout / "src" / "package" / "file.py") == (commit, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: git: ") and "another user's" in line and commit in line
    assert commit_of(monkeypatch, checkout / ".git" / "elsewhere.py") == (None, None), "no file of a package"


def test_what_cannot_be_replaced_is_named_and_not_the_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "record.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path / "record.json", "{}")
    assert (refused_by_system(caught.value) or "").startswith(f"{tmp_path}/record.json: Is a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
