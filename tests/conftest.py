"""What many tests need: a tokenizer, a small configuration, untrained models with stand-in components."""

import gc
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from tests.globals import kept
from tests.synthetic import synthetic_record, synthetic_records
from tests.variants import settings_of
from tunalab.data.scenes import text_sample
from tunalab.data.tokenizer import QWEN25_SPECIALS, Tokenizer, train_tokenizer
from tunalab.frontends.components.store import Components
from tunalab.frontends.registry import build_frontend
from tunalab.frontends.vae import LatentCodec
from tunalab.model.unified import UnifiedModel
from tunalab.records.record import Record
from tunalab.settings.schema import DecoderConfig, FlowHeadConfig, RunConfig, StageConfig

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def pytest_collection_finish() -> None:
    """Libraries and thousands of tests live to the end: collections of garbage need not look through them each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Of ``pytest -n auto``: the cores that this process may use, in a container or a job fewer than the machine's.

    Not more than eight: each worker takes up to 2 GB.
    """
    return min(len(os.sched_getaffinity(0)), 8)


@pytest.fixture(autouse=True)
def nothing_is_handed_on() -> Iterator[None]:
    """Every test begins with the same generators, and leaves threads, generators, environment and folder as they were."""
    with kept():
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(text_sample(0, 2000), vocabulary=400)


@pytest.fixture(scope="session")
def chat_tokenizer() -> Tokenizer:
    """With the tokens of Qwen's turns, in which all documents that ask something are laid out; fewer ids than `tokenizer` has."""
    backend = train_tokenizer(text_sample(0, 300), vocabulary=300).backend
    return Tokenizer.with_specials(backend, QWEN25_SPECIALS, prefix_space=True).with_chat("qwen_all")


def small_config() -> RunConfig:
    config = RunConfig(decoder=DecoderConfig(width=32, layers=2, mlp=48), head=FlowHeadConfig(head_dim=16, mlp=48))
    mix = {f"scenes/{kind}": 1.0 for kind in ("caption", "vqa", "text_to_image")}
    config.stages = {"pretrain": StageConfig(mix=mix)}
    return config


class SmallComponents(Components):
    """Untrained parts with the structure of the real ones: 16 visual tokens for an image of 32 px."""

    def encoder(self, name: str = "tiny", pretrained: bool = True) -> "VisionTransformer":
        from timm.models.vision_transformer import VisionTransformer

        plain = {"num_classes": 0, "class_token": False, "global_pool": "avg"}
        return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, **plain)

    def vae(self, name: str = "tiny") -> LatentCodec:
        from diffusers import AutoencoderKL

        vae = AutoencoderKL(
            in_channels=48,
            out_channels=48,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            mid_block_add_attention=False,
        )
        return LatentCodec(vae, channels=4, stride=8, mean=[0.0] * 4, std=[1.0] * 4, fold=4)


@pytest.fixture
def all_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is rounded to float32 stays float64 in a model of float64: a wrong rule cannot pass for rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Tokenizer) -> Callable[..., UnifiedModel]:
    """``tiny_model(name, seed=0, config=None)``: a model in evaluation mode whose every weight is random.

    The layers that start at zero are drawn too: with them at zero every prediction is 0, nothing could be told apart.
    """

    def build(name: str, seed: int = 0, config: RunConfig | None = None) -> UnifiedModel:
        config = config or small_config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            frontend = build_frontend(settings_of(name), config.decoder.width, 32, SmallComponents())
            model = UnifiedModel(config, frontend, tokenizer.vocabulary)
            for parameter in model.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
        return model.eval()

    return build


@pytest.fixture
def port() -> int:
    """A free one of this machine; a number of our own might be what a connection of somebody else has just been given."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    return number


@pytest.fixture
def record() -> Callable[..., Record]:
    return synthetic_record


@pytest.fixture
def records() -> Callable[..., list[Record]]:
    return synthetic_records


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests: creating it takes seconds. Each uses runs or an experiment of its own."""
    from tunalab.tracking.tracker import prepare

    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
    assert prepare(uri, "scenes") and prepare(uri, "scenes")
    return uri
