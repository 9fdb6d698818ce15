"""Outside a checkout: names, their files, what a wheel carries, and the folder to start from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunalab.cli import main
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.store import store
from tunalab.settings.layers import find, names_of, own_or_shipped, run_files
from tunalab.settings.loading import load_config
from tunalab.sweeps.grid import load_sweep
from tunalab.wheel import SHIPPED

ROOT = Path(__file__).parents[1]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


@pytest.fixture
def components(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer in the place of the tiny one, which takes seconds to train."""
    store(tmp_path / "components" / "tiny", "tokenizer", tokenizer, {"ids": tokenizer.vocabulary})
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "components"))
    return tmp_path / "components"


def write(path: str, text: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def test_a_path_then_the_users_own_then_the_shipped(empty: Path) -> None:
    assert find("experiments", "smoke") == ROOT / "experiments/smoke.yaml"
    assert find("sweeps/launch", "slurm") == ROOT / "sweeps/launch/slurm.yaml"
    own, path = write("experiments/smoke.yaml", "seed: 1"), write("elsewhere/smoke.yaml", "seed: 2")
    assert find("experiments", "smoke") == own and find("experiments", "elsewhere/smoke.yaml") == path
    assert names_of("experiments").count("smoke") == 1 and {"smoke", "scenes"} <= {*names_of("experiments")}
    own.unlink()
    own.symlink_to("nowhere")
    assert find("experiments", "smoke") == own, "a broken link is no reason to take another file"


def test_an_own_experiment_builds_on_own_and_shipped_ones(empty: Path) -> None:
    write("experiments/mine.yaml", "base: [scenes, low]\nseed: 3")
    write("experiments/scenes.yaml", "base: scenes\ndata: {rows: 2}")  # the shipped one of the same name
    write("experiments/low.yaml", "base: ../elsewhere/lowest.yaml\nthreads: 2")
    write("elsewhere/lowest.yaml", "base: smoke\noptimizer: {warmup_steps: 7}")
    config = load_config(*run_files("mine", "tuna2"), [])
    assert (config.seed, config.data.rows, config.threads, config.optimizer.warmup_steps) == (3, 2, 2, 7)
    assert config.evaluation.points == 2, "of the shipped smoke"
    assert config.frontend.patch == 8, "of the shipped variant"
    write("experiments/paper_7b.yaml", "seed: 4")
    controlled = load_config(*run_files("paper_7b_controlled", "tuna2"), [])
    assert controlled.seed != 4, "shipped experiments build on shipped ones"


def test_an_own_sweep_mixes_own_and_shipped(empty: Path) -> None:
    write("variants/mine.yaml", "frontend: {name: patch_embed, patch: 16}")
    file = write("sweeps/mine.yaml", "experiment: smoke\nvariants: [mine, tuna]\nseeds: [0]\nrecords: results/mine")
    sweep = load_sweep(find("sweeps", "mine"))
    assert sweep.variants == ("mine", "tuna") and sweep.records == empty / "results/mine"
    assert load_sweep(find("sweeps", "figure6")).records == empty / "results/figure6"
    file.write_text("experiment: smoke\nvariants: [none]\nseeds: [0]")
    with pytest.raises(UserError, match="unknown value 'none', choices: mine, bottleneck, tuna"):
        load_sweep(file)


def test_an_unknown_name_lists_the_choices_of_both(empty: Path) -> None:
    write("variants/mine.yaml", "{}")
    with pytest.raises(UserError) as error:
        find("variants", "none")
    shipped = "bottleneck, tuna, tuna2, tuna_r, tuna_r_frozen, vae_latents"
    assert str(error.value) == f"no file variants/none.yaml (choices in variants: mine; shipped: {shipped})"
    with pytest.raises(UserError, match=r"no file sweeps/launch/none.yaml \(shipped choices: local, slurm, slurm_gpu\)"):
        find("sweeps/launch", "none")


def test_foreign_names_stay_inside(empty: Path) -> None:
    write("secret.yaml", "seed: 1")
    for name in ("../secret", str(empty / "secret"), "../../secret"):
        assert own_or_shipped(f"sweeps/{name}.yaml") is None
    assert own_or_shipped("results/published.csv") == ROOT / "results/published.csv"


def test_what_init_writes_runs(empty: Path, components: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    assert main(["init", "my_study"]) == 0
    assert main(["init", "my_study"]) == 2 and main(["init", "my_study/Makefile"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: my_study is a folder that is not empty: name a new folder"
    assert second == "error: my_study/Makefile is a file: name a new folder"
    files = [path for path in Path("my_study").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to("my_study")) for path in files) == [
        "Makefile",
        "experiments/short.yaml",
        "sweeps/coarse.yaml",
        "variants/coarse.yaml",
    ]
    assert all(path.read_text().startswith("#") for path in files)
    assert len(Path("my_study/Makefile").read_text().splitlines()) == 5
    monkeypatch.chdir("my_study")
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS"):  # of a make that runs the tests
        monkeypatch.delenv(name, raising=False)
    planned = subprocess.run(["make", "-n", "plan"], check=True, capture_output=True, text=True).stdout.split()
    assert planned == ["tunalab", "sweep", "coarse", "--dry-run"]
    assert main(planned[1:]) == 0
    out = capsys.readouterr().out
    assert "tuna2-seed0" in out and "coarse-seed0" in out and not Path("runs").exists()


# What is tried with the wheel, in one process: importing libraries takes most of the time.
TRY = """\
import sys
from pathlib import Path
import tunalab
from tunalab.cli import main

target, records = sys.argv[1:]
assert Path(tunalab.__file__).is_relative_to(target), tunalab.__file__
for command in (
    ["sweep", "mask_ratio", "--variant", "tuna2", "--dry-run"],
    ["plan", "smoke", "tuna2"],
    ["figure", "figure6", "--records", records, "--out", "drawn"],
    ["init", "study"],
    ["components"],
    ["train", "--experiment", "none"],
):
    print(f"-- {command[0]}", flush=True)
    print("exit", main(command), flush=True)
"""


def python(folder: Path, *arguments: str, path: Path | None = None) -> str:
    """What a Python in ``folder`` prints, standard error included."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "PIP_"))}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    call = [sys.executable, *arguments]
    done = subprocess.run(
        call,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a source distribution of a copy without git and tests, installed beside the environment's packages."""
    monkeypatch.delenv("TUNALAB_COMPONENTS", raising=False)  # its own come with it
    source, target = tmp_path / "source", tmp_path / "target"
    clutter = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
    for name in ("src", "experiments", "variants", "sweeps"):
        shutil.copytree(ROOT / name, source / name, ignore=clutter)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "results/published.csv"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    python(source, "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})")
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir")
    (archive,) = tmp_path.glob("*.tar.gz")
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    python(tmp_path, *pip, "wheel", *offline, "--wheel-dir", str(tmp_path), str(archive))
    (wheel,) = tmp_path.glob("*.whl")
    python(tmp_path, *pip, "install", *offline, "--no-compile", "--target", str(target), str(wheel))
    for pattern in SHIPPED:
        for file in ROOT.glob(pattern):
            assert (target / "tunalab/shipped" / file.relative_to(ROOT)).read_bytes() == file.read_bytes()
    assert (target / "tunalab/py.typed").exists() and (target / "bin/tunalab").exists()
    assert "key=value" in python(empty, str(target / "bin/tunalab"), "train", "--help", path=target)
    printed = python(empty, "-c", TRY, str(target), str(ROOT / "results/figure6"), path=target)
    codes = [line for line in printed.splitlines() if line.startswith("exit")]
    assert codes == ["exit 0"] * 5 + ["exit 2"], printed
    assert "4 runs" in printed and "front-end: projection" in printed, printed
    assert "(shipped choices: ablation, " in printed and "tiny: encoder/seed0@3000" in printed
    assert sorted(path.name for path in empty.iterdir()) == ["drawn", "study"]
