"""`make install`: whose code .venv runs, and what is said when it cannot be made. Interpreters and pip are stand-ins."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# An interpreter that makes "virtual environments" of itself; its pip writes down what it was asked for.
PYTHON = f"""#!/bin/bash
case "$1 $2" in
    "-c import venv, ensurepip") [ -z "$NO_VENV" ];;
    "-c "*) exec {sys.executable!r} -IS "$@";;
    "-m venv") mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; cp "$0" "$3/bin/python";;
    "-m pip") [ ! -e "$(dirname "$0")/no_pip" ] || exit 1
              [ "$3" = --version ] || echo "$PWD PIP_USER=$PIP_USER PIP_TARGET=$PIP_TARGET" >> "$INSTALLS"
              [ "$3" = --version ] || sleep "${{PIP_TAKES:-0}}"
              [ "$3" = --version ] || [ -z "$PIP_FAILS" ];;
esac
"""


class Checkout:
    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log

    def install(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        callers = ("PIP_", "MAKE", "MFLAGS", "PYTHON", "VENV")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(callers)}
        path = f"{self.folder.parent / 'tools'}{os.pathsep}{os.environ['PATH']}"
        env = {**plain, "INSTALLS": str(self.log), "PATH": path, **variables}
        return subprocess.run(["make", "install", *words], cwd=self.folder, env=env, capture_output=True, text=True)

    @property
    def installs(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder, tools = tmp_path / "a folder é", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (tools / "python3").write_text(PYTHON, encoding="utf-8")
    (tools / "python3").chmod(0o755)
    (tools / "old").write_text(f'#!/bin/bash\n[[ "$2" != *version_info* ]] && exec {sys.executable!r} -IS "$@"\nexit 1\n')
    (tools / "old").chmod(0o755)
    return Checkout(folder, tmp_path / "installs")


def test_once_and_again_when_the_lists_change(checkout: Checkout) -> None:
    assert checkout.install().returncode == 0
    assert checkout.install().returncode == 0
    assert len(checkout.installs) == 1
    with (checkout.folder / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("# another version\n")
    assert checkout.install().returncode == 0
    assert len(checkout.installs) == 2


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_a_copied_or_renamed_checkout_makes_its_own(checkout: Checkout, tmp_path: Path, move: object) -> None:
    checkout.install()
    (checkout.folder / ".venv" / "of the original").touch()
    move(checkout.folder, tmp_path / "other")  # type: ignore[operator]
    other = Checkout(tmp_path / "other", checkout.log)
    assert other.install().returncode == 0
    assert [line.split(" PIP_USER")[0] for line in checkout.installs] == [str(checkout.folder), str(other.folder)]
    assert not (other.folder / ".venv" / "of the original").exists()


def test_half_made_is_made_again(checkout: Checkout) -> None:
    checkout.install(PIP_FAILS="1")
    assert "error: the packages could not be installed" in checkout.install(PIP_FAILS="1").stderr
    (checkout.folder / ".venv" / "bin" / "no_pip").touch()
    assert checkout.install().returncode == 0
    assert not (checkout.folder / ".venv" / "bin" / "no_pip").exists()
    shutil.rmtree(checkout.folder / ".venv" / "bin")
    assert checkout.install().returncode == 0
    assert (checkout.folder / ".venv" / "bin" / "python").exists()


def test_settings_of_pip_do_not_lead_out_of_it(checkout: Checkout) -> None:
    done = checkout.install(PIP_USER="1", PIP_TARGET="/elsewhere")
    assert done.returncode == 0
    assert "PIP_USER=1 is ignored: packages go into .venv" in done.stdout
    assert checkout.installs == [f"{checkout.folder} PIP_USER=0 PIP_TARGET="]


@pytest.mark.parametrize(
    ("word", "variables", "line"),
    [
        ("PYTHON=no-such-python", {}, "PYTHON=no-such-python does not run: name another"),
        ("PYTHON=old", {}, "PYTHON=old is older than Python 3.11: name another"),
        ("PYTHON=python3", {"NO_VENV": "1"}, "PYTHON=python3 cannot make virtual environments: install its module venv"),
        ("VENV=mine", {}, "VENV=mine is there and is no virtual environment: name another folder"),
    ],
)
def test_what_cannot_be_is_one_line(checkout: Checkout, word: str, variables: dict[str, str], line: str) -> None:
    (checkout.folder / "mine").mkdir()
    (checkout.folder / "mine" / "thesis.tex").touch()
    done = checkout.install(word, **variables)
    assert done.returncode == 2
    assert [messages for messages in done.stderr.splitlines() if not messages.startswith("make: ")][0].startswith(f"error: {line}")
    assert len(done.stderr.splitlines()) == 2
    assert (checkout.folder / "mine" / "thesis.tex").exists()
    assert not checkout.installs


def test_another_interpreter_makes_another_environment(checkout: Checkout) -> None:
    checkout.install()
    (checkout.folder / ".venv" / "of the first").touch()
    assert checkout.install(PYTHON="python3").returncode == 0  # the same one, by its name
    assert (checkout.folder / ".venv" / "of the first").exists()
    script = PYTHON.replace('"-c "*) exec', '"-c "*version.split*) echo 3.99.0 /elsewhere;; "-c "*) exec')
    (checkout.folder.parent / "tools" / "python3.99").write_text(script, encoding="utf-8")
    (checkout.folder.parent / "tools" / "python3.99").chmod(0o755)
    assert checkout.install(PYTHON="python3.99").returncode == 0
    assert not (checkout.folder / ".venv" / "of the first").exists()
    (checkout.folder / ".venv" / "of the second").touch()
    assert checkout.install().returncode == 0  # nobody asked for the first again
    assert (checkout.folder / ".venv" / "of the second").exists()


def test_two_calls_at_a_time_install_once(checkout: Checkout) -> None:
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(checkout.install, PIP_TAKES="0.5") for _ in range(2)]
    assert [call.result().returncode for call in calls] == [0, 0]
    assert len(checkout.installs) == 1
