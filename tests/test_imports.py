"""The folders of the package form a line: each imports from those before it only."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunalab

PACKAGE = Path(tunalab.__file__).parent
ORDER = [
    "redaction",
    "errors",
    "files",
    "terminal",
    "plugins",
    "settings",
    "data",
    "frontends",
    "model",
    "official",
    "inference",
    "evaluation",
    "records",
    "tracking",
    "training",
    "trained",
    "sweeps",
    "analysis",
    "collection",
    "planning",
    "interop",
    "fetching",
    "bench",
    "verification",
    "library",
    "driver",
    "cli",
    "wheel",
    "__main__",
]
# (importing file, imported folder) -> why it may.
EXCEPTIONS: dict[tuple[str, str], str] = {}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The folder, or the file, right under the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of the package that a file imports, also inside functions, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "tunalab" else [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("tunalab."):
                yield name, node.lineno


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Parts of the package that a file imports, with the line."""
    for name, line in imports(path):
        yield name.split(".")[1], line


def test_every_part_has_its_place() -> None:
    parts = {part(path) for path in FILES} - {"__init__"}
    assert parts <= set(ORDER), f"no place in the order: {sorted(parts - set(ORDER))}"
    assert set(ORDER) <= parts, f"gone: {sorted(set(ORDER) - parts)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_from_parts_before_its_own(path: Path) -> None:
    own = part(path)
    if own == "__init__":
        return  # its names are imported when they are used: the next test
    for name, line in imported(path):
        if (str(path.relative_to(PACKAGE)), name) not in EXCEPTIONS:
            assert ORDER.index(name) <= ORDER.index(own), f"{path}:{line}: {own} imports {name}, which comes later"


def test_the_library_imports_nothing_until_a_name_is_used() -> None:
    """`import tunalab` is part of every start of the command line, and of every notebook: it must cost nothing.

    So the names of the library are imported on first use, and what stands under TYPE_CHECKING, for editors, is the same list.
    """
    code = "import sys, time; before = set(sys.modules); began = time.perf_counter(); import tunalab; "
    code += "print(time.perf_counter() - began, *{name.split('.')[0] for name in set(sys.modules) - before})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    seconds, *modules = done.stdout.split()
    assert set(modules) - sys.stdlib_module_names == {"tunalab"} and float(seconds) < 0.3
    typed = {
        alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tunalab.")
        for alias in node.names
    }
    assert typed == set(tunalab.__all__) == set(tunalab._MODULES) and set(tunalab.__all__) <= set(dir(tunalab))
    for name in tunalab.__all__:
        assert callable(getattr(tunalab, name)), name
    with pytest.raises(AttributeError, match=r"no attribute 'lod' \(choices: .*load"):
        _ = tunalab.lod


def test_no_exception_is_stale() -> None:
    assert {key for key in EXCEPTIONS if key[1] not in {name for name, _ in imported(PACKAGE / key[0])}} == set()


def test_a_small_file_serves_several() -> None:
    """A file of forty lines that one other imports is a paragraph of that file. What registries name has no importer."""
    files = {".".join(("tunalab", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES if path.stem[0] != "_"}
    importers: dict[str, set[Path]] = {name: set() for name in files}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                for name in {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)} & set(files):
                    importers[name].add(path)
    alone = {name for name, by in importers.items() if len(by) == 1}
    assert {name for name in alone if len(files[name].read_text(encoding="utf-8").splitlines()) < 45} == set()
    assert len(alone) > 5, "importers are not found"


def test_training_imports_no_sweep_and_the_model_no_run() -> None:
    """The same in names, as an order is easily edited."""
    for path in FILES:
        names = {name for name, _ in imported(path)}
        if part(path) == "data":
            assert names <= {"redaction", "errors", "files", "terminal", "plugins", "settings", "data"}
        if part(path) in ("frontends", "model"):
            assert not names & {"training", "records", "analysis", "sweeps", "evaluation", "inference"}


NOT_TEXT = {"os", "Image", "PillowImage", "tarfile", "system"}  # owners of an ``open`` of another kind


def opened_as_text(path: Path) -> Iterator[ast.Call]:
    """Calls that open a file as text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        modes = [word.value for word in [*node.args, *(k.value for k in node.keywords)] if isinstance(word, ast.Constant)]
        binary = any(isinstance(mode, str) and re.fullmatch(r"[rwax]\+?b\+?|[rwax]b?\+?:?", mode) and "b" in mode for mode in modes)
        other = isinstance(owner, ast.Name) and owner.id in NOT_TEXT and name == "open"
        file = name in ("read_text", "write_text") or (name in ("open", "fdopen") and not binary and not other)
        output = name in ("run", "Popen", "check_output") and {"text", "universal_newlines"} & {k.arg for k in node.keywords}
        if file or output:
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_text_is_opened_with_its_encoding(path: Path) -> None:
    """Else it is the locale's, and a prompt with an accent cannot be read on the next machine."""
    unnamed = [call.lineno for call in opened_as_text(path) if not any(k.arg == "encoding" for k in call.keywords)]
    assert not unnamed or path.name == "environment.py", f"{path}: lines {unnamed}"
