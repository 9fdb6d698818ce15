"""Which image goes to which bucket, what is cropped, what is refused; and that buckets leave the mix as it is."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from torchvision.transforms import functional as transforms

from tunalab.data.buckets import FRAME, TEXT_ROOM, Buckets, check_buckets
from tunalab.data.documents import Document, Image, Reject, Text, Unfit
from tunalab.data.images import cover, decode_image, read_image
from tunalab.data.sources import build_source
from tunalab.data.stream import Step, TrainingStream, open_stream
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.inference.images import input_buckets, output_size
from tunalab.interop.lmms.asking import fit
from tunalab.settings.loading import from_plain
from tunalab.settings.schema import REVISION, DataConfig, ManifestConfig, RunConfig, StageConfig

# The published sizes at 512 px, and the same at twice the side.
PUBLISHED = ["512x512", "448x576", "576x448", "384x672", "672x384"]
LARGE = ["1024x1024", "896x1152", "1152x896", "768x1344", "1344x768"]
TINY = ["16x16", "12x20", "20x12"]


def buckets(*sizes: str, **more: Any) -> Buckets:
    return Buckets.of(DataConfig(buckets=list(sizes), **more))


def png(path: Path, height: int, width: int, shade: int = 120) -> Path:
    PillowImage.new("RGB", (width, height), (shade, shade, shade)).save(path)
    return path


def test_tiers_are_found_by_area_in_whatever_order_they_are_written() -> None:
    both = buckets(*LARGE, *PUBLISHED)
    assert [len(tier) for tier in both.tiers] == [5, 5] and both == buckets(*reversed(PUBLISHED + LARGE))
    assert (512, 512) in both.tiers[0] and (768, 1344) in both.tiers[1] and both.longest == 1344
    assert Buckets.of(DataConfig(image_size=48)) == Buckets.square(48) and Buckets.square(48).sizes == [(48, 48)]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (512, 512)),
        (1000, 700, (576, 448)),  # covers no bucket of 1024 px
        (2000, 3000, (768, 1344)),  # 1.5 is nearer to 1.75 than to 1.29, as ratios
        (900, 1160, (896, 1152)),
        (895, 1152, (448, 576)),  # one row too few
        (1344, 768, (1344, 768)),
        (300, 300, (512, 512)),  # enlarged
        (1024, 1024, (1024, 1024)),
    ],
)
def test_an_image_goes_to_the_nearest_shape_of_the_tier_it_fills(height: int, width: int, expected: tuple[int, int]) -> None:
    assert buckets(*PUBLISHED, *LARGE).choose("a", height, width) == expected


def test_the_share_that_is_cropped_is_bounded_by_the_choice_of_buckets() -> None:
    """Between two neighbouring shapes no image loses more than half of the step between them."""
    five = buckets(*PUBLISHED)
    rng = np.random.default_rng(0)
    shapes = sorted(width / height for height, width in five.sizes)
    step = max(b / a for a, b in pairwise(shapes))
    for ratio in np.exp(rng.uniform(np.log(shapes[0]), np.log(shapes[-1]), 300)):
        height, width = five.choose("a", 10_000, round(10_000 * ratio))
        kept = min(ratio * height / width, width / height / ratio)
        assert kept >= step**-0.5 - 1e-3


def test_the_limits_of_shape_and_size_are_rejects_with_reasons(tmp_path: Path) -> None:
    five = buckets(*PUBLISHED, max_crop=0.5, max_upscale=2.0)
    assert five.choose("a", 400, 1400) == (384, 672), "exactly half is kept: twice the widest bucket's ratio"
    with pytest.raises(Unfit, match=r"^a: 1401x400 would lose 50.0% .*384 high, 672 wide"):
        five.choose("a", 400, 1401)
    assert five.choose("a", 256, 256) == (512, 512)
    with pytest.raises(Unfit, match="enlarged 2.01 times"):
        five.choose("a", 255, 256)
    for height, width in ((224, 224), (64, 512), (300, 1200)):
        with pytest.raises(Unfit):
            five.choose("a", height, width)
    for height, width in ((1, 5000), (5000, 1)):
        with pytest.raises(Reject, match=r"a.png: .* longer than 32 times its short side") as caught:
            read_image(png(tmp_path / "a.png", height, width), five)
        assert not isinstance(caught.value, Unfit)
    assert five.unbounded().choose("a", 64, 512) == (384, 672) and five.unbounded().tiers == five.tiers


@pytest.mark.parametrize("given", [{}, {"buckets": ["512x512"]}])
def test_one_bound_with_buckets_and_without(given: dict[str, Any]) -> None:
    square = Buckets.of(DataConfig(image_size=512, **given))
    assert square == Buckets.square(512) and square.choose("a", 300, 600) == (512, 512)
    for height, width, reason in ((400, 801, "would lose 50.1% .* more than 50.0% .data.max_crop."), (1, 1, "data.max_upscale")):
        with pytest.raises(Unfit, match=reason):
            square.choose("a", height, width)
        free = Buckets.of(DataConfig(image_size=512, max_crop=1.0, max_upscale=1000.0, **given))
        assert free.choose("a", height, width) == square.unbounded().choose("a", height, width) == (512, 512)


@pytest.mark.parametrize("shape", [(48, 80), (96, 64), (50, 50), (33, 70), (200, 90)])
def test_what_is_kept_is_the_centre_undistorted(shape: tuple[int, int], tmp_path: Path) -> None:
    """A disc in the middle stays round and in the middle; the image has its bucket's size."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    radius = min(shape) / 3
    disc = ((y - height / 2 + 0.5) ** 2 + (x - width / 2 + 0.5) ** 2 < radius**2) * np.uint8(255)
    PillowImage.fromarray(disc).convert("RGB").save(tmp_path / "a.png")
    three = buckets("24x24", "20x36", "36x20", max_crop=1.0)
    pixels = read_image(tmp_path / "a.png", three)
    size = three.choose("a", height, width)
    assert pixels.shape == (*size, 3) and pixels.dtype == np.uint8
    scale = max(size[0] / height, size[1] / width)
    inside = pixels[:, :, 0] > 127
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert abs(len(rows) - 2 * radius * scale) <= 1.5 and abs(len(columns) - len(rows)) <= 1
    assert abs(rows.mean() - (size[0] - 1) / 2) <= 1 and abs(columns.mean() - (size[1] - 1) / 2) <= 1


def test_turned_photographs_are_judged_as_they_are_seen(tmp_path: Path) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    PillowImage.new("RGB", (200, 120)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", buckets(*TINY)).shape == (20, 12, 3)


def test_a_square_is_cut_as_ever() -> None:
    """As before there were buckets, to the bit."""
    rng = np.random.default_rng(0)
    for height, width, side in ((40, 60, 20), (61, 40, 32), (7, 200, 8)):
        image = PillowImage.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        short = min(height, width)
        left, top = (width - short) // 2, (height - short) // 2
        whole = short % side == 0
        resample = PillowImage.Resampling.BOX if whole else PillowImage.Resampling.BILINEAR
        expected = image.resize((side, side), resample, box=(left, top, left + short, top + short))
        assert (cover(image, (side, side)) == np.asarray(expected)).all()


OFFICIAL = {"bucket_rule": "official", "max_crop": 1.0, "max_upscale": 1000.0}


def nearest_officially(sizes: list[str], height: int, width: int) -> tuple[int, int]:
    """As the official code says it: the first of those whose width / height differs least."""
    listed = [(int(high), int(wide)) for high, wide in (text.split("x") for text in sizes)]
    differences = [abs(wide / high - width / height) for high, wide in listed]
    return listed[differences.index(min(differences))]


@pytest.mark.parametrize(
    ("height", "width", "official", "log"),
    [
        (640, 427, (672, 384), (576, 448)),  # .667 is nearer to .571 than to .778; as a ratio it is not
        (1500, 1000, (672, 384), (576, 448)),
        (427, 640, (448, 576), (448, 576)),
        (1000, 1500, (448, 576), (384, 672)),  # as a ratio it is halfway: then the smaller height
        (7, 8, (512, 512), (448, 576)),  # as a difference it is halfway between 1 and 9:7: the first of the list
        (100, 3200, (384, 672), (384, 672)),
        (3200, 100, (672, 384), (672, 384)),
        (1, 1, (512, 512), (512, 512)),
    ],
)
def test_the_official_rule_takes_differences_and_ours_ratios(height: int, width: int, official: Any, log: Any) -> None:
    assert buckets(*PUBLISHED, **OFFICIAL).choose("a", height, width) == official == nearest_officially(PUBLISHED, height, width)
    assert buckets(*PUBLISHED).unbounded().choose("a", height, width) == log
    assert Buckets.of(DataConfig(buckets=PUBLISHED)).rule == "log", "earlier records stay true"


@pytest.mark.parametrize("order", [1, -1])
def test_the_official_rule_over_many_shapes_and_orders_of_the_list(order: int) -> None:
    sizes = PUBLISHED[::order]
    both, rng = buckets(*sizes, **OFFICIAL), np.random.default_rng(0)
    ratios = [wide / high for high, wide in both.sizes]
    ties = [(round(1e6 * (a + b) / 2) / 1e6).as_integer_ratio() for a in ratios for b in ratios]
    for width, height in [*rng.integers(1, 3000, (500, 2)).tolist(), *ties]:
        assert both.choose("a", height, width) == nearest_officially(sizes, height, width), (height, width)


@pytest.mark.parametrize(("height", "width"), [(427, 640), (1000, 1500), (300, 300), (90, 700), (512, 512)])
def test_official_pixels_are_bicubic_with_antialias(height: int, width: int, tmp_path: Path) -> None:
    """What is asked about is stretched as torchvision does it, what is trained on and edited is covered and cropped."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, five = PillowImage.fromarray(pixels), buckets(*PUBLISHED, **OFFICIAL)
    size = five.choose("a", height, width)
    bicubic = transforms.InterpolationMode.BICUBIC
    expected = transforms.resize(image, list(size), interpolation=bicubic, antialias=True)
    assert np.array_equal(fit(image, five), np.asarray(expected))
    short = transforms.resize(image, [round(side * max(size[0] / height, size[1] / width)) for side in (height, width)], bicubic)
    top, left = (short.height - size[0]) // 2, (short.width - size[1]) // 2
    image.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", five)
    assert np.array_equal(found, np.asarray(short)[top : top + size[0], left : left + size[1]])
    assert (height, width) == size or not np.array_equal(found, read_image(tmp_path / "a.png", replace(five, rule="log")))


def test_officially_a_photograph_is_decoded_in_full(tmp_path: Path) -> None:
    """A JPEG decoded at a fraction of its size has other pixels."""
    PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    five = buckets("32x32", **OFFICIAL)
    with PillowImage.open(tmp_path / "a.jpg") as whole:
        assert np.array_equal(read_image(tmp_path / "a.jpg", five), cover(whole.convert("RGB"), (32, 32), "official"))


def test_a_size_that_is_given_keeps_the_rule() -> None:
    data = DataConfig(image_size=512, bucket_rule="official", buckets=PUBLISHED)
    assert input_buckets(data, "64").rule == input_buckets(data, None).rule == Buckets.of(DataConfig(**OFFICIAL)).rule == "official"
    assert output_size(data, None) == (512, 512) and output_size(data, "64x32") == (64, 32)


def run(**data: Any) -> RunConfig:
    return from_plain({"revision": REVISION, "data": data, "stages": {"only": {"tokens": 100, "mix": {"scenes/text": 1.0}}}})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"buckets": ["512"]}, "data.buckets=512 is not of the form HEIGHTxWIDTH"),
        ({"buckets": ["512xx512"]}, "data.buckets=512xx512 is not"),
        ({"buckets": ["-8x16"]}, "data.buckets=-8x16 is not"),
        ({"buckets": ["4x16"]}, "data.buckets=4 is out of range"),
        ({"buckets": ["16x16", "32x16", "16x16"]}, "names a size twice"),
        ({"buckets": "16x16"}, "is not a list"),
        ({"max_crop": 1.5}, "data.max_crop=1.5 is out of range"),
        ({"max_upscale": 0.5}, "data.max_upscale=0.5 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        run(**data)


def test_buckets_that_tokens_do_not_cut_or_rows_do_not_hold_are_refused_early(tokenizer: Tokenizer, tmp_path: Path) -> None:
    published = DataConfig(buckets=PUBLISHED + LARGE, row_tokens=16384)
    check_buckets(published, 16)
    check_buckets(DataConfig(), 7)  # the square is the front-end's to judge
    with pytest.raises(UserError, match="data.buckets: 384x672 is not cut exactly by tokens of 128 pixels"):
        check_buckets(published, 128)
    fitting = 4096 + FRAME + TEXT_ROOM
    check_buckets(DataConfig(buckets=LARGE, row_tokens=fitting), 16)
    with pytest.raises(UserError, match=f"1024x1024 has 4096 tokens; .* is {fitting}, data.row_tokens={fitting - 1}"):
        check_buckets(DataConfig(buckets=LARGE, row_tokens=fitting - 1), 16)
    with pytest.raises(UserError, match="data.buckets: 20x16 is not cut"):
        open_stream(run(buckets=["16x16", "20x16"]), tokenizer, 8, tmp_path / "rejects.jsonl")


def test_files_reach_the_corpora_in_their_buckets(tmp_path: Path) -> None:
    """Also both images of an edit, each in its own shape."""
    png(tmp_path / "wide.png", 24, 40), png(tmp_path / "high.png", 40, 24), png(tmp_path / "line.png", 1, 5000)
    lines = [
        {"image": "wide.png", "caption": "wide"},
        {"raw_image": "high.png", "out_image": "wide.png", "instruction": "turn"},
        {"image": "line.png", "caption": "line"},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(buckets=TINY, image_size=16, manifests={"mine": ManifestConfig(path=str(tmp_path / "data.jsonl"))})
    source = build_source("manifest/mine", data, 0)
    shapes = [[s.pixels_HWC.shape[:2] for s in source.document(n).segments if isinstance(s, Image)] for n in (0, 1)]
    assert shapes == [[(12, 20)], [(20, 12), (12, 20)]]
    with pytest.raises(Reject, match="line.png"):
        source.document(2)
    strip = DataConfig(image_size=16, manifests=data.manifests, max_crop=0.3)
    with pytest.raises(Unfit, match="40x24 would lose 40.0%"):
        build_source("manifest/mine", strip, 0).document(0)
    with_square = DataConfig(image_size=16, manifests=data.manifests)
    (image,) = [s for s in build_source("manifest/mine", with_square, 0).document(0).segments if isinstance(s, Image)]
    assert image.pixels_HWC.shape == (16, 16, 3)
    assert decode_image((tmp_path / "wide.png").read_bytes(), "a", 16).shape == (16, 16, 3)


class Pictures:
    """Captioned pictures of every bucket at known shares, and edits between buckets."""

    length = None
    shares = {(16, 16): 0.6, (12, 20): 0.3, (32, 32): 0.1}

    def __init__(self, name: str) -> None:
        self.name = name

    def document(self, index: int) -> Document:
        rng = np.random.default_rng([len(self.name), index])
        if self.name == "words":
            return Document("text", (Text("a red ring " * int(rng.integers(1, 6)), target=True),))

        def image(generate: bool) -> Image:
            height, width = list(self.shares)[int(rng.choice(3, p=list(self.shares.values())))]
            return Image(np.full((height, width, 3), index % 251, dtype=np.uint8), generate)

        if self.name == "edits":
            return Document("edit", (image(False), Text("turn"), image(True)))
        return Document("text_to_image", (Text("a ring"), image(True)))


MIX = {"words": 0.3, "pictures": 0.5, "edits": 0.2}
DATA = DataConfig(row_tokens=160, rows=2, accumulate=2, lookahead=16, caption_drop=0.0)


def stream(tokenizer: Tokenizer, folder: Path, tokens: int, **more: Any) -> TrainingStream:
    stages = {"only": StageConfig(tokens=tokens, mix=MIX)}
    return TrainingStream(DATA, stages, Pictures, tokenizer, 4, 0, folder / "rejects.jsonl", **more)


def test_over_many_steps_sources_and_buckets_have_the_shares_of_the_mix(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Large and small images stand side by side in a batch, and no shape waits longer than the rest."""
    steps = list(stream(tokenizer, tmp_path, 60_000))
    sources, sizes, mixed, real = Counter[str](), Counter[tuple[int, int]](), 0, 0
    for batch in (batch for step in steps for batch in step.batches):
        images = Counter(batch.document_of_images().tolist())
        for document in range(len(batch.start_D)):
            sources["words" if not images[document] else "edits" if images[document] == 2 else "pictures"] += 1
        sizes.update({group.size: len(group) for group in batch.groups})
        mixed += len(batch.groups) > 1
        real += batch.tokens
    documents, images = sources.total(), sizes.total()
    assert documents > 1000
    for source, share in MIX.items():
        assert abs(sources[source] / documents - share) < 4 * (share / documents) ** 0.5, source
    for size, share in Pictures.shares.items():
        assert abs(sizes[size] / images - share) < 4 * (share / images) ** 0.5, size
    batches = sum(len(step.batches) for step in steps)
    assert mixed > 0.95 * batches and real > 0.95 * batches * DATA.rows * DATA.row_tokens
    # The backlog is what may wait, never more: whatever was drawn was trained on within a few rows.
    waiting = [len(step.lane_state["waiting"]) for step in steps]
    assert max(waiting) < DATA.lookahead


def test_resuming_with_several_sizes_is_exact(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def content(step: Step) -> list[Any]:
        found: list[Any] = [step.lane_state]
        for batch in step.batches:
            found += [batch.ids_BL.tolist(), batch.span_BL.tolist(), batch.key_N.tolist()]
            found += [(group.size, group.pixels_nHWC[:, 0, 0, 0].tolist(), group.span_n_1T.tolist()) for group in batch.groups]
        return found

    steps = [content(step) for step in stream(tokenizer, tmp_path, 4000)]
    assert len(steps) > 5
    for done in (1, 4, len(steps) - 1):
        state = json.loads(json.dumps(steps[done - 1][0]))
        assert [content(step) for step in stream(tokenizer, tmp_path, 4000, resume={0: state})] == steps[done:]
