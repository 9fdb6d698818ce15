"""Requested images become files, once; answers come in the order of the questions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tunalab
from tunalab.data.buckets import Buckets
from tunalab.errors import UserError
from tunalab.frontends.contract import TargetSpace
from tunalab.inference import requests
from tunalab.inference.generation import SAMPLERS, evaluations, integrate, sample_images
from tunalab.inference.images import check_size, find_images, input_buckets, output_size, read_input, read_settings, read_texts
from tunalab.inference.prompts import edit_prompt, image_prompt
from tunalab.inference.requests import ImageFile, Source, answers, find_device, make_missing, precision
from tunalab.settings.schema import DataConfig, ObjectiveConfig, SamplingConfig

TEXTS = ["a red ring", "on white: large yellow ring top right, blue cross a1"]
MODEL = {"name": "run", "config_hash": "0123456789ab", "revision": 2, "weights": "averaged", "steps": 7, "tokens": 700}
SAMPLING = SamplingConfig("euler", 2, 1.5)
OBJECTIVE = ObjectiveConfig()


@pytest.fixture
def model(tiny_model):
    return tiny_model("patch_embed")


def files_of(folder: Path, texts=TEXTS, seeds=(5, 6), **changes) -> list[ImageFile]:
    how = {"size": (16, 32), "sampling": SAMPLING, "precision": "fp32", "model": MODEL, **changes}
    return [
        ImageFile(folder / f"{number:04d}-seed{seed}.png", text, [seed], **how)
        for number, text in enumerate(texts, start=1)
        for seed in seeds
    ]


def make(network, tokenizer, folder: Path, batch_tokens: int = 16384, **changes) -> tuple[list[Path], int]:
    files = files_of(folder, **changes)
    kept = make_missing(network, tokenizer, OBJECTIVE, files, batch_tokens)
    return [one.path for one in files], kept


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_text_with_every_seed(model, tokenizer, tmp_path):
    files, kept = make(model, tokenizer, tmp_path / "out")
    names = ["0001-seed5.png", "0001-seed6.png", "0002-seed5.png", "0002-seed6.png"]
    assert [file.name for file in files] == names == sorted(file.name for file in (tmp_path / "out").iterdir()) and kept == 0
    prompts = [image_prompt(tokenizer, model.frontend.space, text) for text in (*TEXTS, "")]
    pairs = [(0, 5), (0, 6), (1, 5), (1, 6)]
    expected = sample_images(
        model, [prompts[n] for n, _ in pairs], prompts[2], (16, 32), SAMPLING, OBJECTIVE, [seed for _, seed in pairs]
    )
    assert len({image.tobytes() for image in expected}) == 4
    for file, image in zip(files, expected, strict=True):
        assert np.abs(pixels(file).astype(int) - image).max() <= 1
    assert read_settings(files[2]) == {
        "prompt": TEXTS[1],
        "seed": 5,
        "size": "16x32",
        "sampler": "euler",
        "steps": 2,
        "guidance": 1.5,
        "precision": "fp32",
        "model": MODEL,
        "tunalab": tunalab.__version__,
    }


def test_edits_and_images_are_made_each_in_their_way(model, tokenizer, tmp_path):
    """What a file tells of its guidance, and that it was made so, in one call."""
    sampling = SamplingConfig("euler", 2, 1.5, "a blue cross", 4.0)
    source = Source("a.png", np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8))
    one_text = {"texts": TEXTS[:1], "seeds": [5], "sampling": sampling}
    (picture,), (edit,) = files_of(tmp_path / "0", **one_text), files_of(tmp_path / "1", source=source, **one_text)
    assert make_missing(model, tokenizer, OBJECTIVE, [picture, edit]) == 0
    space = model.frontend.space
    expected = {
        picture: (image_prompt(tokenizer, space, TEXTS[0]), image_prompt(tokenizer, space, "a blue cross"), 1.5),
        edit: (
            edit_prompt(tokenizer, space, source.pixels_HWC, TEXTS[0]),
            edit_prompt(tokenizer, space, source.pixels_HWC, "a blue cross"),
            4.0,
        ),
    }
    for one, (prompt, start, guidance) in expected.items():
        image = sample_images(model, [prompt], start, (16, 32), SamplingConfig("euler", 2, guidance), OBJECTIVE, [5])[0]
        assert np.abs(pixels(one.path).astype(int) - image).max() <= 1
        messages = read_settings(one.path)
        assert messages["negative_prompt"] == "a blue cross"
        assert (messages.get("guidance"), messages.get("edit_guidance")) == ((None, 4.0) if one is edit else (1.5, None))
    before = files_of(tmp_path, source=source)[0].settings
    assert before["guidance"] == 1.5 and not {"negative_prompt", "edit_guidance"} & before.keys(), "as files of before tell it"


def test_an_interrupted_request_goes_on_and_a_done_one_costs_nothing(model, tokenizer, tmp_path, monkeypatch):
    files, _ = make(model, tokenizer, tmp_path / "whole")
    saved = []

    def interrupted(path, *rest):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path)
        real(path, *rest)

    real = requests.save_image
    monkeypatch.setattr(requests, "save_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(model, tokenizer, tmp_path / "out", batch_tokens=1)
    monkeypatch.setattr(requests, "save_image", real)
    assert len(list((tmp_path / "out").iterdir())) == 3, "a file is written as soon as its batch is done"
    times = {path: path.stat().st_mtime_ns for path in saved}
    made, kept = make(model, tokenizer, tmp_path / "out")
    assert kept == 3 and {path: path.stat().st_mtime_ns for path in saved} == times
    for one, other in zip(made, files, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 1
    monkeypatch.setattr(requests, "sample_batches", lambda model, prompts, *rest: iter([1] * len(prompts)))
    # Another version of tunalab makes the same images, unless the model's revision says otherwise.
    monkeypatch.setattr(tunalab, "__version__", "9.9.9")
    assert make(model, tokenizer, tmp_path / "out") == (made, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"texts": [TEXTS[0], "another"]}, 'prompt "on white: .*" there, "another" now'),
        ({"size": (32, 16)}, 'size "16x32" there, "32x16" now'),
        ({"sampling": SamplingConfig("heun", 2, 1.5)}, 'sampler "euler" there, "heun" now'),
        ({"sampling": SamplingConfig("euler", 2, 1.5, shift=3.0)}, "shift null there, 3.0 now"),
        ({"sampling": SamplingConfig("euler", 2, 1.5, grid="points")}, 'grid null there, "points" now'),
        ({"sampling": SamplingConfig("euler", 3, 1.5)}, "steps 2 there, 3 now"),
        ({"sampling": SamplingConfig("euler", 2, 2.0)}, "guidance 1.5 there, 2.0 now"),
        ({"precision": "bf16"}, 'precision "fp32" there, "bf16" now'),
        ({"model": {**MODEL, "tokens": 900}}, "model.tokens 700 there, 900 now"),
        ({"source": Source("a.png", np.zeros((16, 32, 3), np.uint8))}, 'source null there, {"name": "a.png"'),
    ],
)
def test_a_file_of_other_settings_is_never_written_over(changes, words, model, tokenizer, tmp_path):
    files, _ = make(model, tokenizer, tmp_path)
    before = [file.read_bytes() for file in files]
    with pytest.raises(UserError, match=words) as caught:
        make(model, tokenizer, tmp_path, **{"seeds": [4, 5], **changes})
    assert "choose another folder, or remove it" in str(caught.value) and "\n" not in str(caught.value)
    assert [file.read_bytes() for file in files] == before and len(list(tmp_path.iterdir())) == 4, "nothing was made"


def test_a_file_tells_the_clamp_where_it_takes_part(tmp_path):
    """Images of up to 20 steps are those of versions that knew no clamp; of more steps they differ."""

    def told(**sampling):
        return files_of(tmp_path, sampling=SamplingConfig("euler", **sampling))[0].settings.get("clamp")

    assert told(steps=20) is told(steps=20, clamp="official") is None
    assert (told(steps=50), told(steps=50, clamp="official")) == ("none", "official")


def test_a_file_that_says_nothing_or_is_damaged_is_never_written_over(model, tokenizer, tmp_path):
    for content, words in ((None, "does not say how it was made"), (b"\x89PNG", "damaged, or no PNG")):
        path = tmp_path / "0002-seed6.png"
        Image.new("RGB", (4, 4)).save(path) if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=f"{words}: choose another folder, or remove it"):
            make(model, tokenizer, tmp_path)
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["patch_embed", "vae_siglip"])
def test_edits_read_their_source_and_guidance_starts_from_nothing(name, tiny_model, tokenizer, tmp_path):
    model = tiny_model(name)
    sources = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    made = []
    for number, source in enumerate(sources):
        how = {"size": (32, 32), "texts": ["remove the ring"], "seeds": [1], "source": Source("photo.png", source)}
        (file,), _ = make(model, tokenizer, tmp_path / str(number), **how)
        space = model.frontend.space
        prompt, nothing = edit_prompt(tokenizer, space, source, "remove the ring"), image_prompt(tokenizer, space, "")
        expected = sample_images(model, [prompt], nothing, (32, 32), SAMPLING, OBJECTIVE, [1])
        assert np.array_equal(pixels(file), expected[0])
        made.append(file)
    assert not np.array_equal(pixels(made[0]), pixels(made[1]))
    one, other = (read_settings(file) for file in made)
    assert one["source"]["name"] == "photo.png" and one["source"]["sha256"] != other["source"]["sha256"]


@pytest.mark.parametrize("frontend", ["patch_embed", "vae_siglip"])
def test_in_bfloat16_nearly_the_same_is_made(frontend, tiny_model, tokenizer, tmp_path):
    model = tiny_model(frontend)
    made = {}
    for name in ("fp32", "bf16"):
        files, _ = make(model, tokenizer, tmp_path / name, precision=name)
        made[name] = np.stack([pixels(file) for file in files]).astype(float)
    difference = np.abs(made["bf16"] - made["fp32"])
    assert 0 < difference.mean() < 4
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(photo)
    assert len(list(answers(model, tokenizer, [(photo, "what is it?")], Buckets.square(32), 3, "bf16"))) == 1


def test_progress_is_told_as_often_as_a_sampler_evaluates():
    for method in SAMPLERS:
        for grid, steps in (("steps", 1), ("steps", 2), ("steps", 5), ("points", 2), ("points", 5)):
            seen: list[float] = []
            sampling = SamplingConfig(method, steps, grid=grid)
            integrate(lambda x, t, seen=seen: seen.append(t) or x, torch.ones(1), sampling, "v")
            assert len(seen) == evaluations(sampling)


def test_too_little_memory_is_one_line(model, tokenizer, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(requests, "sample_batches", fail)
    with pytest.raises(UserError, match="too little memory: take a smaller --batch-tokens"):
        make(model, tokenizer, tmp_path)


def test_answers_come_in_order_whatever_is_answered_at_a_time(model, tokenizer, tmp_path):
    for number, image in enumerate(np.random.default_rng(1).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    images = [None, *find_images(tmp_path)]
    requested = [(image, question) for image in images for question in ("what colour is the ring?", "how many?", "where?")]
    at_once = list(answers(model, tokenizer, requested, Buckets.square(32), 4, "fp32"))
    assert list(answers(model, tokenizer, requested, Buckets.square(32), 4, "fp32", batch=5)) == at_once
    assert len(at_once) == 12 and len(set(at_once)) > 3
    (tmp_path / "2.png").write_bytes(b"")
    given = answers(model, tokenizer, requested, Buckets.square(32), 4, "fp32", batch=5)
    with pytest.raises(UserError, match="2.png: unreadable image"):
        list(given)


def test_sizes():
    plain, buckets = DataConfig(image_size=64), DataConfig(image_size=512, buckets=["384x672", "512x512", "672x384", "1024x1024"])
    assert output_size(plain, None) == (64, 64) and output_size(plain, "48") == (48, 48) and output_size(plain, "16x48") == (16, 48)
    assert output_size(buckets, None) == (512, 512)
    assert output_size(replace(buckets, image_size=32), None) == (512, 512), "no size that was never trained"
    for text in ("", "x", "12x", "axb", "-8", "8x8x8", "1.5"):
        with pytest.raises(UserError, match="size=.* is not of the form HEIGHTxWIDTH"):
            output_size(plain, text)
    with pytest.raises(UserError, match="size=4 is out of range"):
        output_size(plain, "4x64")


def test_the_only_image_there_is_is_never_too_small_or_too_long(tmp_path):
    """Of a training set it would be left out (data.max_crop, data.max_upscale)."""
    for shape in ((1, 1), (20, 300)):
        Image.new("RGB", shape).save(tmp_path / "a.png")
        for size in (None, "48"):
            assert read_input(tmp_path / "a.png", input_buckets(DataConfig(image_size=48), size)).shape == (48, 48, 3)


@pytest.mark.parametrize(
    ("size", "near"),
    [((30, 33), "24x32 or 32x40"), ((32, 33), "32x32 or 32x40"), ((3, 64), "8x64"), ((63, 64), "56x64 or 64x64")],
)
def test_a_size_that_tokens_do_not_cut_names_the_nearest(size, near):
    space = TargetSpace(channels=3, stride=1, patch=8)
    with pytest.raises(UserError, match=rf"size {size[0]}x{size[1]} .* tokens of 8 pixels \(nearest: {near}\)"):
        check_size(space, size)
    check_size(space, (8, 64))


def test_texts_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa ring\r\n\n  größer\u2028 \n\t\nlast".encode())
    assert read_texts(path, "prompt") == ["a ring", "größer", "last"]
    for content, words in (
        (b"", "is empty: a prompt a line"),
        (b"\n \n", "is empty"),
        (b"ok\n\xff\n", "not text in UTF-8 .byte 3"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_texts(path, "prompt")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_texts(tmp_path / "nothing", "prompt")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_texts(tmp_path, "prompt")


def test_images_of_a_folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.PNG"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    for name, words in {"nothing": "no such image file", "empty": "holds no images"}.items():
        with pytest.raises(UserError, match=words):
            find_images(tmp_path / name)


def test_device_and_precision(monkeypatch):
    from tests.conftest import small_config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu, cuda, config = torch.device("cpu"), torch.device("cuda"), small_config()
    assert find_device(None) == find_device("cpu") == cpu
    for name in ("cuda", "cuda:0", "gpu", ""):
        with pytest.raises(UserError, match=r"is not there \(choices: cpu\)"):
            find_device(name)
    assert [precision(config, device) for device in (cpu, cuda)] == ["fp32", "bf16"]
    assert {precision(replace(config, precision=name), device) for device in (cpu, cuda) for name in ("bf16",)} == {"bf16"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device(None) == cuda and find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"choices: cpu, cuda, cuda:0, cuda:1\)"):
        find_device("cuda:2")
