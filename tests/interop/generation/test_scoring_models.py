"""Models that score, as small as they can be: built from configurations, saved, and read by path as real ones are."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.tolerances import block_terms, relative

from tunalab.errors import UserError
from tunalab.inference.images import save_image
from tunalab.interop import geneval as detection
from tunalab.interop.clip import BACKGROUND, CLIP_SCORE, HPS, Clip, ZeroShotColours, cut_out, prompted_images, score_fit
from tunalab.interop.dpg import TransformersVQA
from tunalab.interop.geneval import COLOURS, Detection, Mask2Former
from tunalab.interop.outcomes import Outcomes
from tunalab.verification.scorers import MEAN, STD

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
# Of unit features of the small CLIP: an image's patches and block, a text's block, and two projections.
CLOSE = relative(3 * 8 * 8 + block_terms(width=16, mlp=64, length=5) + block_terms(width=8, mlp=32, length=16) + 2 * 16)


def without(folder: Path, copy: Path, ending: str) -> str:
    """Copies a model but for the parameter whose name ends so; the name."""
    shutil.copytree(folder, copy)
    (path,) = copy.glob("*.safetensors")
    weights = load_file(path)
    name = next(name for name in weights if name.endswith(ending))
    del weights[name]
    save_file(weights, path, {"format": "pt"})
    return name


def refused(words: str, make: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_mask2former_tells_things_with_boxes_and_masks(mask2former: Path, monkeypatch):
    monkeypatch.setattr("tunalab.interop.geneval.THRESHOLD", 0.0)  # untrained, it is sure of nothing
    detector = Mask2Former(mask2former, CPU)
    assert detector.things == {"computer mouse", "dog"} and "not official" in detector.name
    found = detector.detect(PIXELS)
    assert found
    for one in found:
        assert one.thing in detector.things and 0 <= one.score <= 1 and one.mask_HW is not None
        left, top, right, bottom = map(int, one.box)
        assert one.mask_HW.shape == (48, 64) and one.mask_HW[top:bottom, left:right].sum() == one.mask_HW.sum() > 0
        for edge in (one.mask_HW[top], one.mask_HW[bottom - 1], one.mask_HW[:, left], one.mask_HW[:, right - 1]):
            assert edge.any(), "the box is tight"
    again = Mask2Former(mask2former, CPU).detect(PIXELS)
    assert [(one.thing, one.score, one.box) for one in again] == [(one.thing, one.score, one.box) for one in found]
    monkeypatch.undo()
    assert detector.detect(PIXELS) == [] and detection.THRESHOLD == 0.3


def test_a_detector_that_does_not_fit_is_one_line(mask2former: Path, vilt: Path, tmp_path: Path):
    name = without(mask2former, tmp_path / "cut", "class_predictor.weight")
    for folder, words in {
        tmp_path / "nothing": "nothing: no such folder of a transformers model",
        tmp_path / "cut": f"weights do not fit; 1 missing: {name}",
        vilt: "is a vilt: a mask2former is needed|cannot be read",
    }.items():
        refused(words, partial(Mask2Former, folder, CPU))


def test_clip_features_are_unit_and_of_the_image_alone(clip_folder: Path):
    clip = Clip(clip_folder, None, CPU)
    images = [PIXELS, PIXELS[::-1].copy()]
    features = clip.images(images)
    assert torch.allclose(features.norm(dim=1), torch.ones(2), atol=CLOSE) and not torch.allclose(features[0], features[1])
    assert torch.allclose(clip.images(images[:1])[0], features[0], atol=CLOSE)
    fits = clip.fit(images, ["a dog", "a cat"])
    assert fits[1] == pytest.approx((features @ clip.texts(["a cat"])[0]).tolist(), abs=CLOSE) and len(fits) == 2


def test_a_padded_image_is_seen_whole(clip_folder: Path):
    """The path of HPS v2 from the image to its cosine, step by step, with random weights."""
    padded, cropped = Clip(clip_folder, None, CPU, padded=True), Clip(clip_folder, None, CPU)
    values_CHW = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255  # 48 x 64: at 16 px 12 rows, 2 black ones above and below
    small_1CHW = torch.nn.functional.interpolate(values_CHW[None], (12, 16), mode="bicubic", antialias=True)
    square_1CHW = torch.nn.functional.pad(small_1CHW, (0, 0, 2, 2))
    mean, std = (torch.tensor(known)[:, None, None] for known in (MEAN, STD))
    with torch.no_grad():
        image, text = (
            padded.model.encode_image((square_1CHW - mean) / std, normalize=True),
            padded.model.encode_text(padded.tokenizer(["a dog"]), normalize=True),
        )
    ((cosine,),) = padded.fit([PIXELS], ["a dog"])
    assert cosine == pytest.approx((image @ text.T).item(), abs=CLOSE)
    assert padded.identity != cropped.identity and abs(cosine - cropped.fit([PIXELS], ["a dog"])[0][0]) > CLOSE
    assert padded.preprocess(Image.new("RGB", (1, 100))).shape == padded.preprocess(Image.new("RGB", (16, 9))).shape == (3, 16, 16)


def test_the_colour_is_that_of_the_nearest_wordings(clip_folder: Path, monkeypatch):
    clip = Clip(clip_folder, None, CPU)
    classifier = ZeroShotColours(clip)
    observed = [Detection("car", 1.0, (0, 0, 20, 20)), Detection("car", 0.9, (10, 10, 60, 40))]
    # An image whose features are those of a colour's wordings is of that colour.
    features = torch.stack([clip.texts([f"a photo of a {colour} car"])[0] for colour in ("pink", "black")])
    monkeypatch.setattr(clip, "images", lambda crops: features if len(crops) == 2 else None)
    wordings = ["a photo of a {} car", "a photo of a {}-colored car", "a photo of a {} object"]
    means = torch.stack([clip.texts([wording.format(colour) for wording in wordings]).mean(dim=0) for colour in COLOURS])
    expected = [COLOURS[n] for n in (features @ torch.nn.functional.normalize(means, dim=1).T).argmax(dim=1).tolist()]
    assert classifier.colours(PIXELS, observed) == expected


def test_a_thing_is_cut_out_on_grey():
    mask_HW = np.zeros((48, 64), bool)
    mask_HW[10:20, 10:15] = True
    cut = cut_out(PIXELS, Detection("car", 1.0, (10.0, 10.0, 20.0, 20.0), mask_HW))
    assert cut.shape == (10, 10, 3) and np.array_equal(cut[:, :5], PIXELS[10:20, 10:15]) and (cut[:, 5:] == BACKGROUND).all()
    beyond = cut_out(PIXELS, Detection("car", 1.0, (-2.4, 40.0, 10.0, 50.5)))
    assert beyond.shape == (10, 12, 3) and np.array_equal(beyond[:8, 2:], PIXELS[40:, :10])
    assert not beyond[8:].any() and not beyond[:, :2].any(), "the box as the official script crops it: black outside"


def test_weights_of_a_clip_that_do_not_fit_are_one_line(clip_folder: Path, tmp_path: Path):
    without(clip_folder, tmp_path / "cut", "visual.proj")
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    for (path, architecture), words in {
        (tmp_path / "nothing", None): "nothing: no such file or folder",
        (tmp_path / "empty", None): "open_clip_config.json is missing",
        (tmp_path / "cut", None): "cut cannot be read: .*visual.proj",
        (tmp_path / "weights.pt", None): "weights in a file need --architecture",
        (tmp_path / "weights.pt", "ViT-Q"): "weights in a file need --architecture",
    }.items():
        refused(words, partial(Clip, path, architecture, CPU))


def test_a_vqa_model_answers_from_its_folder(vilt: Path, mask2former: Path):
    vqa = TransformersVQA(vilt, CPU)
    given = vqa.answers([(PIXELS[:32, :32], "is cup?"), (PIXELS[:32, 32:], "cup?")])
    assert len(given) == 2 and set(given) <= {"yes", "no", "red"} and "not official" in vqa.name
    with pytest.raises(UserError, match="VQA model .* cannot be read"):
        TransformersVQA(mask2former, CPU)


def test_fit_of_prompts_and_images(clip_folder: Path, tmp_path: Path):
    clip = Clip(clip_folder, None, CPU)
    half = PIXELS[:24, :32]
    save_image(tmp_path / "a/0.png", half, {"prompt": "a dog", "seed": 0})
    save_image(tmp_path / "a/1.png", PIXELS[24:, :32], {"prompt": "a dog", "seed": 1})
    save_image(tmp_path / "b.png", PIXELS, {"prompt": "a cat", "seed": [0, 1, 2, 3]})
    save_image(tmp_path / "grid.png", PIXELS, {"grid": ["b.png"]})
    images = prompted_images(tmp_path, None)
    assert [(image.path.name, image.prompt, image.count) for image in images] == [
        ("0.png", "a dog", 1),
        ("1.png", "a dog", 1),
        ("b.png", "a cat", 4),
    ]
    measure, official = score_fit(CLIP_SCORE, images, clip, Outcomes(tmp_path / "kept.jsonl", "a"))
    quarters = [PIXELS[r : r + 24, c : c + 32].copy() for r in (0, 24) for c in (0, 32)]
    dogs, cats = np.mean(clip.fit([half, PIXELS[24:, :32]], ["a dog"])), np.mean(clip.fit(quarters, ["a cat"]))
    assert measure.n == 2 and measure.items == pytest.approx([dogs, cats], abs=CLOSE) and measure.failures == 0
    depicts = clip.fit([half, PIXELS[24:, :32]], ["A photo depicts a dog"]), clip.fit(quarters, ["A photo depicts a cat"])
    expected = [2.5 * np.maximum(cosines[0], 0).mean() for cosines in depicts]
    assert official.metric == "CLIP-S" and official.items == pytest.approx(expected, abs=2.5 * CLOSE)
    (hps,) = score_fit(HPS, images, clip, Outcomes(tmp_path / "kept.jsonl", "a"))
    assert hps.metric == "cosine" and hps.items == measure.items
    (tmp_path / "b.png").write_bytes(b"damaged")
    measure, official = score_fit(CLIP_SCORE, prompted_images(tmp_path, None), clip, Outcomes(tmp_path / "kept.jsonl", "a"))
    assert (measure.n, measure.failures) == (1, 1) and measure.value == pytest.approx(dogs, abs=CLOSE)


def test_images_that_do_not_tell_their_prompt(tmp_path: Path):
    for folder, words in {
        tmp_path / "nothing": "no such folder of images",
        tmp_path: "holds no PNG that says which prompt",
    }.items():
        with pytest.raises(UserError, match=words):
            prompted_images(folder, None)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a.png does not say which prompt .* give --data"):
        prompted_images(tmp_path, None)
    (tmp_path / "data.jsonl").write_text('{"image": "a.png", "prompt": "a dog"}\n')
    assert prompted_images(tmp_path, tmp_path / "data.jsonl")[0].prompt == "a dog"
    (tmp_path / "data.jsonl").write_text('{"image": "b.png", "prompt": "a dog"}\n')
    with pytest.raises(UserError, match="b.png is missing, which .*data.jsonl names"):
        prompted_images(tmp_path, tmp_path / "data.jsonl")
    save_image(tmp_path / "a.png", PIXELS, {"prompt": "make it red", "seed": 0, "source": {"name": "x"}})
    with pytest.raises(UserError, match="a.png is an edit"):
        prompted_images(tmp_path, None)
