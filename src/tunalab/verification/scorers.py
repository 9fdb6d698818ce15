"""Published scorers: what ours give beside what official code gives of the same answers and images.

A row is a function in ``ROWS``. What official code computes is either kept in tests/data/golden, or written out here anew, slowly
and in float64, from what that code does.

Shapes: H W C image pixels and channels.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from tunalab.errors import UserError
from tunalab.verification import Table

GOLDEN = Path(__file__).parents[3] / "tests/data/golden"
SIZES = ((512, 512), (640, 427), (1500, 1000), (301, 977), (97, 64), (64, 31), (224, 100), (768, 768))  # width, height
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP
SIDE = 224
SSIM_SIDES = (32, 64)


@dataclass(frozen=True)
class Row:
    """``largest``: the largest difference over ``items``, in ``unit``; what is below ``rounding`` is that of floating point."""

    scorer: str
    compared: str
    items: int
    largest: float
    unit: str
    rounding: float = 1e-6

    @property
    def texts(self) -> list[str]:
        counted = isinstance(self.largest, int)  # 0 of a measured difference may be a last bit elsewhere
        shown = f"below {self.rounding:g}" if not counted and self.largest < self.rounding else f"{self.largest:.3g}"
        return [self.scorer, self.compared, f"{self.items:,}", f"{shown} {self.unit}"]


def tables() -> list[Table]:
    about = (
        "What ours give beside what the official code gives of the same answers, shapes or images: on how many items, and the "
        "largest difference. Where a second row says so, it is what another rule would have changed: how much the rule matters. "
        "Without a row, as tests hold them to stand-ins or to the installed package: the nine other tasks of lmms-eval, where "
        "both rules are the package's own (tests/interop/lmms), what a judge's reply says (tests/interop/judging; MM-Vet's: "
        "tests/interop/lmms), and where attention points (tests/evaluation/attention)."
    )
    columns = ["scorer", "what is compared", "items", "largest difference"]
    return [Table("Scorers beside official ones", about, columns, [row.texts for rows in ROWS for row in rows()])]


def golden(name: str) -> Any:
    """What official code computed. Raises UserError where the package is installed without its tests."""
    try:
        return json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{GOLDEN / name} cannot be read: verify runs in a checkout of the repository") from error


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """An image of hard edges at all scales, which any other way of resizing changes: (H, W, 3) uint8."""
    random = np.random.default_rng([seed, width, height])
    coarse_HWC = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    blocks_HWC = np.kron(coarse_HWC, np.ones((8, 8, 1), np.uint8))[:height, :width]
    return np.where(random.random((height, width, 1)) < 0.5, blocks_HWC, 255 - blocks_HWC)


def resample(pixels_HWC: np.ndarray, height: int, width: int, bytes_: bool, tall: bool = False) -> np.ndarray:
    """Bicubic (Keys, a = -1/2) with antialias in float64.

    ``bytes_``: as Pillow, with weights of 22 bits, and rounded to bytes after each of the two passes. Then the order of these
    matters; ``tall``: height first.
    """
    if tall:
        return resample(pixels_HWC.swapaxes(0, 1), width, height, bytes_).swapaxes(0, 1)

    def weights(old: int, new: int) -> np.ndarray:
        scale = old / new
        wide = max(scale, 1.0)
        x = np.abs(np.arange(old)[None] + 0.5 - (np.arange(new)[:, None] + 0.5) * scale) / wide
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        found = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        found /= found.sum(axis=1, keepdims=True)
        return np.rint(found * 2**22) if bytes_ else found

    def rounded(values: np.ndarray) -> np.ndarray:
        return np.clip(np.floor(values / 2**22 + 0.5), 0, 255) if bytes_ else values

    values_HWC = pixels_HWC.astype(np.float64)
    if values_HWC.shape[1] != width:
        values_HWC = rounded(weights(values_HWC.shape[1], width) @ values_HWC)
    if values_HWC.shape[0] != height:
        rows = values_HWC.reshape(values_HWC.shape[0], -1)
        values_HWC = rounded(weights(len(rows), height) @ rows).reshape(height, width, -1)
    return values_HWC


def openai_pixels(pixels_HWC: np.ndarray, tall: bool = False) -> np.ndarray:
    """What CLIP's own transform (also that of clipscore.py and of GenEval) makes of an image: the shortest side to 224, the centre.

    (224, 224, 3), as bytes before they are normalised.
    """
    height, width = pixels_HWC.shape[:2]
    short = min(height, width)
    small_HWC = resample(pixels_HWC, int(SIDE * height / short), int(SIDE * width / short), bytes_=True, tall=tall)
    top, left = (round((side - SIDE) / 2) for side in small_HWC.shape[:2])
    return small_HWC[top : top + SIDE, left : left + SIDE]


def hps_pixels(pixels_HWC: np.ndarray) -> np.ndarray:
    """What HPS v2's transform makes of an image: values, not bytes; the longest side to 224, black around. In units of bytes."""
    height, width = pixels_HWC.shape[:2]
    height, width = round(height * SIDE / max(height, width)), round(width * SIDE / max(height, width))
    square_HWC = np.zeros((SIDE, SIDE, 3))
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square_HWC[top : top + height, left : left + width] = resample(pixels_HWC, height, width, bytes_=False)
    return square_HWC


def off_openai(normalised_CHW: Any, pixels_HWC: np.ndarray) -> float:
    """How far at most from :func:`openai_pixels`, in whichever order this Pillow takes the two passes."""
    given_HWC = np.rint(levels(normalised_CHW))
    return float(min(np.abs(given_HWC - openai_pixels(pixels_HWC, tall)).max() for tall in (False, True)))


def levels(normalised_CHW: Any) -> np.ndarray:
    """What a transform gives a CLIP, back in units of bytes: (H, W, 3) float64."""
    return (normalised_CHW.double().numpy().transpose(1, 2, 0) * STD + MEAN) * 255


def dpg() -> Iterator[Row]:
    from tunalab.interop.dpg import ALL_ITEMS, OFFICIAL, dpg_measures, item_score, read_questions

    kept = golden("dpg.json")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "dpg_bench.csv"
        path.write_text(kept["csv"], encoding="utf-8")
        questions = read_questions(path)
    first = next(iter(questions))
    scores, categories, lost, changed = [], [], 0, []
    for sample in kept["samples"].values():
        for item, given in sample["answers"].items():
            score = item_score(questions[item], given, OFFICIAL, item == first)
            lost += (score is None) != (item in sample["dropped"])
            if score is not None:
                scores.append(abs(score.share - sample["items"][item]))
        official, own = (
            {one.metric: one.value for one in dpg_measures(questions, sample["answers"], rule, "")}
            for rule in (OFFICIAL, ALL_ITEMS)
        )
        expected = {"overall": sample["overall"], **sample["category"], **sample["level2"]}
        categories += [abs(official.get(name, np.inf) - value) for name, value in expected.items()]
        changed += [abs(own[name] - value) for name, value in expected.items()]
    of = "golden/dpg.json, at one and four images"
    yield Row("DPG-Bench, official rule", f"items of {of}; the lost item too", len(scores), max(scores) + lost, "of 1", 1e-12)
    yield Row(
        "DPG-Bench, official rule", f"overall, categories and level 2 of {of}", len(categories), max(categories), "of 1", 1e-12
    )
    yield Row(
        "DPG-Bench, all items", "the same by our rule beside the official: what it changes", len(changed), max(changed), "of 1"
    )


def clip_score() -> Iterator[Row]:
    import open_clip

    ours = open_clip.image_transform(SIDE, is_train=False)
    found, turned = [], []
    for size in SIZES:
        image = noise(*size)
        found.append(off_openai(ours(Image.fromarray(image)), image))
        turned.append(np.abs(openai_pixels(image) - openai_pixels(image, tall=True)).max())
    yield Row(
        "CLIP score", "pixels that the model sees, in float64 as clipscore.py prepares them", len(found), max(found), "of 255", 1e-2
    )
    order = "the same by Pillow's two orders of height and width, which its versions choose differently: what it changes"
    yield Row("CLIP score", order, len(turned), max(turned), "of 255", 1e-2)


def hps() -> Iterator[Row]:
    import torch
    from torchvision.transforms import functional as transforms

    from tunalab.interop.clip import padded_square

    same, without, of_bytes = [], [], []
    for size in SIZES:
        image = noise(*size)
        expected = hps_pixels(image)
        same.append(np.abs(levels(padded_square(Image.fromarray(image), SIDE, MEAN, STD)) - expected).max())
        inside = [round(side * SIDE / max(size)) for side in reversed(size)]
        top, left = ((SIDE - side) // 2 for side in inside)
        inner_HWC = expected[top : top + inside[0], left : left + inside[1]]
        values_CHW = torch.from_numpy(image.transpose(2, 0, 1) / 255.0)
        bicubic = transforms.InterpolationMode.BICUBIC
        plain_CHW = transforms.resize(values_CHW, inside, bicubic, antialias=False)
        without.append(np.abs(plain_CHW.numpy().transpose(1, 2, 0) * 255 - inner_HWC).mean())
        of_bytes.append(np.abs(resample(image, inside[0], inside[1], bytes_=True) - inner_HWC).max())
    yield Row("HPS v2", "pixels that the model sees, in float64 as hpsv2 prepares them", len(same), max(same), "of 255", 1e-2)
    yield Row(
        "HPS v2", "the same if bytes were resized instead of values: what it changes", len(of_bytes), max(of_bytes), "of 255", 1e-3
    )
    older = "the same without antialias, as hpsv2 with torchvision before 0.17: what it changes, mean over pixels"
    yield Row("HPS v2", older, len(without), max(without), "of 255", 1e-2)


def geneval_colours() -> Iterator[Row]:
    import open_clip

    from tunalab.interop.clip import WORDINGS, cut_out
    from tunalab.interop.geneval import COLOURS, Detection

    ours = open_clip.image_transform(SIDE, is_train=False)
    random = np.random.default_rng(0)
    found = []
    for width, height in SIZES:
        image = noise(width, height)
        for masked in (True, False):
            left, top = random.uniform(0, (width / 2, height / 2))
            box = (left, top, left + random.uniform(9, width / 2), top + random.uniform(9, height / 2))
            mask_HW = random.random((height, width)) < 0.7 if masked else None
            # The official script: #999 where the mask is not, then Pillow's crop, which rounds the box; then CLIP's transform.
            kept = image if mask_HW is None else np.where(mask_HW[..., None], image, np.uint8(0x99))
            x0, y0, x1, y1 = (int(np.rint(side)) for side in box)
            crop_HWC = np.ascontiguousarray(kept[y0:y1, x0:x1])
            cut = cut_out(image, Detection("", 1.0, box, mask_HW))
            found.append(off_openai(ours(Image.fromarray(cut)), crop_HWC))
    yield Row(
        "GenEval, colours",
        "pixels of things cut out, with masks and without, as CLIP sees them",
        len(found),
        max(found),
        "of 255",
        1e-3,
    )
    templates = ("a photo of a {c} THING", "a photo of a {c}-colored THING", "a photo of a {c} object")
    wrong = sum(
        wording(colour, "THING") != template.format(c=colour)
        for colour in COLOURS
        for wording, template in zip(WORDINGS, templates, strict=True)
    )
    yield Row("GenEval, colours", "wordings of the ten colours", len(COLOURS) * len(WORDINGS), wrong, "wordings")


def image_sizes() -> Iterator[Row]:
    from tunalab.data.buckets import Buckets
    from tunalab.data.images import stretch
    from tunalab.interop.lmms.asking import fit
    from tunalab.official.layout import USUAL_SHAPES
    from tunalab.settings.schema import DataConfig

    sizes = [(512, 512), (448, 576), (576, 448), (384, 672), (672, 384)]  # in the order of the official code
    named = [f"{height}x{width}" for height, width in sizes]
    if named != USUAL_SHAPES["data.buckets"]:
        raise ValueError("a converted checkpoint has other shapes than the official code")
    rules = [Buckets.of(DataConfig(buckets=named, bucket_rule=rule)).unbounded() for rule in ("official", "log")]
    shapes = [(height, width) for height in range(40, 2000, 19) for width in range(40, 2000, 19)]
    other = [0, 0]
    for height, width in shapes:
        differences = [abs(wide / high - width / height) for high, wide in sizes]
        expected = sizes[differences.index(min(differences))]
        for number, rule in enumerate(rules):
            other[number] += rule.choose("", height, width) != expected
    yield Row("image size rule, official", "shapes that fall elsewhere than in the official code", len(shapes), other[0], "shapes")
    yield Row("image size rule, log", "the same by the rule of ratios: what it changes", len(shapes), other[1], "shapes")
    found, plain = [], []
    for size in SIZES:
        image = noise(*size)
        height, width = rules[0].choose("", size[1], size[0])
        ours = fit(Image.fromarray(image), rules[0]).astype(float)
        found.append(min(np.abs(ours - resample(image, height, width, bytes_=True, tall=tall)).max() for tall in (False, True)))
        plain.append(np.abs(stretch(Image.fromarray(image), (height, width)) - ours).mean())
    yield Row(
        "image resizing, official",
        "pixels of images asked about, bicubic with antialias in float64",
        len(found),
        max(found),
        "of 255",
    )
    yield Row(
        "image resizing, log",
        "the same as our own runs resize: what it changes, mean over pixels",
        len(plain),
        max(plain),
        "of 255",
        1e-2,
    )


def slow_ssim(one_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    """Wang et al. 2004, equations 13 to 16, window by window in float64; mean over the windows inside, and over the channels."""
    x = np.arange(11) - 5
    bell = np.exp(-(x**2) / (2 * 1.5**2))
    weights_11 = np.outer(bell, bell) / bell.sum() ** 2
    first, second = (
        np.lib.stride_tricks.sliding_window_view(some_HWC.astype(np.float64), (11, 11), axis=(0, 1))
        for some_HWC in (one_HWC, other_HWC)
    )
    m1, m2 = (np.einsum("hwcij,ij->hwc", some, weights_11) for some in (first, second))
    d1, d2 = first - m1[..., None, None], second - m2[..., None, None]
    v1, v2, v12 = (np.einsum("hwcij,hwcij,ij->hwc", *pair, weights_11) for pair in ((d1, d1), (d2, d2), (d1, d2)))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(((2 * m1 * m2 + c1) * (2 * v12 + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))).mean())


def ssim() -> Iterator[Row]:
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    from tunalab.evaluation.reconstruction import photographs, scenes, ssim_of

    for size in SSIM_SIDES:
        pairs = [
            (some_NHWC, np.roll(some_NHWC, shift, axis=axis))
            for some_NHWC, shift, axis in ((scenes(6, size), 1, 1), (photographs(size), 1, 2), (photographs(size), 1, 0))
        ]
        one_NHWC, other_NHWC = (np.concatenate(part) for part in zip(*pairs, strict=True))
        ours = ssim_of(one_NHWC, other_NHWC)
        expected = [slow_ssim(*pair) for pair in zip(one_NHWC, other_NHWC, strict=True)]
        first, second = (torch.from_numpy(some).permute(0, 3, 1, 2).double() for some in (one_NHWC, other_NHWC))
        with_border = structural_similarity_index_measure(first, second, reduction="none", data_range=255.0)
        assert isinstance(with_border, torch.Tensor)
        border = np.abs(np.array(expected) - with_border.numpy()).max()
        worst = np.abs(np.array(ours) - expected).max()
        yield Row("SSIM", f"images at {size} px, in float64 window by window", len(ours), worst, "of 1", 1e-9)
        yield Row("SSIM", f"the same with the border counted, at {size} px: what it changes", len(ours), border, "of 1")


DRAWN = "random choice"  # MMMU's rule can read no option, and draws one


def golden_replies() -> Iterator[tuple[str, dict[str, Any], str, dict[str, float | str]]]:
    """Task, item, reply, and by rules (published, stock) 0, 1 or ``DRAWN``."""
    for kind, held in golden("lmms_rules.json").items():
        task = "mmmu_val" if kind.startswith("mmmu") else kind
        for one in held:
            doc = {name: value for name, value in one.items() if name not in ("reply", "published", "stock")}
            if task == "mmmu_val":
                doc |= {"id": "validation_Art_1", "question_type": "open" if kind == "mmmu_open" else "multiple-choice"}
                doc |= {"options": repr(one.get("options", []))}
            doc |= {"question_type": "Regular Text Recognition"} if task == "ocrbench" else {}
            yield task, doc, one["reply"], {rules: one[rules] for rules in ("published", "stock")}


class Drawing(Random):
    """Notes whether it drew a letter."""

    drawn = False

    def choice(self, seq: Any) -> Any:
        self.drawn = True
        return super().choice(seq)


def by_published_rule(task: str, doc: dict[str, Any], reply: str) -> float | str:
    """Ours: 0, 1 or ``DRAWN``."""
    from tunalab.evaluation.published import RULED

    generator = Drawing(0)
    right = RULED[task].right(doc, reply, generator)
    return DRAWN if generator.drawn else float(right)


def lmms_rules() -> Iterator[Row]:
    from tunalab.evaluation.published import BENCHMARKS

    outcomes: dict[str, list[tuple[bool, bool]]] = {}
    for task, doc, reply, expected in golden_replies():
        same = by_published_rule(task, doc, reply) == expected["published"], expected["published"] == expected["stock"]
        outcomes.setdefault(BENCHMARKS[task].title, []).append(same)
    for title, pairs in outcomes.items():
        wrong, changed = (sum(not pair[number] for pair in pairs) for number in (0, 1))
        yield Row(f"lmms-eval, {title}", "replies of golden/lmms_rules.json by the paper's rule", len(pairs), wrong, "replies")
        other = "the same by the rule of lmms-eval 0.7.3 beside it: what it changes"
        yield Row(f"lmms-eval, {title}", other, len(pairs), changed, "replies")


def judge_places() -> Iterator[Row]:
    from tunalab.interop.judge import LETTERS, deal

    apart, counts = 0, range(1, 201)
    for candidates in range(2, len(LETTERS) + 1):
        shown_CC = np.zeros((candidates, candidates), dtype=int)
        for ballot in deal([""] * counts[-1], candidates):
            shown_CC[ballot.order, range(candidates)] += 1
            apart = max(apart, int(np.ptp(shown_CC)))
    compared = f"how often a candidate stands in a place, of 2 to {len(LETTERS)} candidates on 1 to {counts[-1]} prompts"
    yield Row("judge", compared, (len(LETTERS) - 1) * len(counts), apart, "ballot" if apart == 1 else "ballots")


ROWS: Sequence[Callable[[], Iterable[Row]]] = (
    dpg,
    clip_score,
    hps,
    geneval_colours,
    image_sizes,
    ssim,
    lmms_rules,
    judge_places,
)
