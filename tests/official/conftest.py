"""Folders that the tiny official configurations need: a VAE of 48 channels and 16 pixels a cell, a tokenizer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from tests.official.golden import SETTINGS, golden_checkpoint

from tunalab.data.tokenizer import Tokenizer
from tunalab.trained.convert import convert_to_tunalab
from tunalab.trained.model import Model, load


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            latent_channels=48,
            down_block_types=("DownEncoderBlock2D",) * 5,
            up_block_types=("UpDecoderBlock2D",) * 5,
            block_out_channels=(4,) * 5,
            layers_per_block=1,
            norm_num_groups=2,
            mid_block_add_attention=False,
        )
    vae.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def settings_of(vae_folder: Path, tokenizer_folder: Path) -> Callable[[str], list[str]]:
    """The settings that a tiny official checkpoint needs."""

    def of(name: str) -> list[str]:
        vae = [f"frontend.vae={vae_folder}"] if name == "tuna" else []
        return [*SETTINGS, *vae, f"decoder.tokenizer={tokenizer_folder}"]

    return of


@pytest.fixture(scope="session")
def converted(settings_of: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The golden checkpoint of a model, converted once."""
    root = tmp_path_factory.mktemp("converted")

    def convert(name: str) -> Path:
        if not (root / name).exists():
            torch.save({"state_dict": golden_checkpoint(name), "step": 7}, root / f"{name}.pt")
            convert_to_tunalab(root / f"{name}.pt", root / name, None, None, settings_of(name), lambda line: None)
        return root / name

    return convert


@pytest.fixture(scope="session")
def golden_model(converted: Callable[[str], Path]) -> Callable[[str], Model]:
    loaded: dict[str, Model] = {}
    return lambda name: loaded.setdefault(name, load(converted(name), "cpu"))
