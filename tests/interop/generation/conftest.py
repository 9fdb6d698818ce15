"""Models that score, as small as they can be: built from configurations, saved, and read by path as real ones are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


def small_mask2former(folder: Path) -> Path:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_indices=[1, 2, 3, 4])
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        id2label={0: "mouse", 1: "dog"},
        label2id={"mouse": 0, "dog": 1},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def mask2former(tmp_path_factory) -> Path:
    return small_mask2former(tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="package")
def clip_folder(tmp_path_factory) -> Path:
    from open_clip import CLIP

    torch.manual_seed(0)
    shape = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": shape, "preprocess_cfg": {"size": 16}}))
    weights = {name: tensor.contiguous() for name, tensor in CLIP(**shape).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="package")
def vilt(tmp_path_factory) -> Path:
    from transformers import BertTokenizerFast, ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

    torch.manual_seed(0)
    config = ViltConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label={0: "yes", 1: "no", 2: "red"},
        label2id={"yes": 0, "no": 1, "red": 2},
    )
    folder = tmp_path_factory.mktemp("vilt")
    ViltForQuestionAnswering(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "cup", "?"]) + "\n")
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    ViltProcessor(images, BertTokenizerFast(str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder
