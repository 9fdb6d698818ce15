"""No test hands on what is global: each passes alone, after any other, and with any number of threads."""

import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.globals import kept

# What to look at, and how a test may leave it changed.
GLOBALS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "torch's generator": (lambda: torch.get_rng_state().tolist(), lambda: torch.rand(1)),
    "torch's seed": (torch.initial_seed, lambda: torch.manual_seed(17)),
    "NumPy's generator": (lambda: np.random.get_state()[1].tolist(), lambda: np.random.seed(17)),
    "Python's generator": (random.getstate, random.random),
    "a new variable": (lambda: dict(os.environ), lambda: os.environ.update(TUNALAB_LEFT="1")),
    "a variable": (lambda: dict(os.environ), lambda: os.environ.update(PATH="")),
    "a variable less": (lambda: dict(os.environ), lambda: os.environ.pop("PATH")),
    "folder": (os.getcwd, lambda: os.chdir("/")),
    "type": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "device": (torch.get_default_device, lambda: torch.set_default_device("meta")),
    "gradients": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "precision": (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "determinism": (torch.are_deterministic_algorithms_enabled, lambda: torch.use_deterministic_algorithms(True)),
    "NumPy's errors": (np.geterr, lambda: np.seterr(all="raise")),
    "warnings": (lambda: list(warnings.filters), lambda: warnings.simplefilter("error")),
}


@pytest.mark.parametrize("name", [name for name in GLOBALS if name != "warnings"])  # pytest keeps those itself
def test_it_is_put_back(name: str) -> None:
    look, change = GLOBALS[name]
    before = look()
    with kept():
        change()
        assert look() != before, "else this test shows nothing"
    assert look() == before


def test_it_is_put_back_after_an_error_and_a_deleted_folder(tmp_path: Any) -> None:
    before = os.getcwd()
    with pytest.raises(ZeroDivisionError), kept():
        os.chdir(tmp_path)
        tmp_path.rmdir()
        raise ZeroDivisionError
    assert os.getcwd() == before


FIRST: dict[str, Any] = {}


@pytest.mark.parametrize("time", [1, 2])
def test_the_next_test_finds_nothing_of_this_one(time: int) -> None:
    """Whichever of the two comes second finds what the first one found, which left everything changed."""
    found = {name: look() for name, (look, _) in GLOBALS.items() if name != "warnings"}
    found |= {"warnings": len(warnings.filters), "drawn": (torch.rand(1).item(), np.random.random(), random.random())}
    for name in ("a new variable", "a variable", "a variable less"):
        found[name] = {key: value for key, value in found[name].items() if key != "PYTEST_CURRENT_TEST"}
    assert FIRST.setdefault("found", found) == found
    for _, change in GLOBALS.values():
        change()
