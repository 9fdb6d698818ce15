"""Features of the network behind published FIDs: Inception v3 with its official weights, from a local file.

Shapes: N images, H W pixels, C channels, D = 2048 features.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from tunalab.data.buckets import Buckets
from tunalab.data.documents import PREFIX, Reject
from tunalab.data.images import read_image
from tunalab.data.scenes import caption_examples
from tunalab.errors import UserError
from tunalab.evaluation.along import evaluation_mode
from tunalab.evaluation.editing import MOST_DB
from tunalab.evaluation.generation.accuracy import round_trip
from tunalab.evaluation.generation.fidelity import LABELS, features, frechet, jackknife
from tunalab.evaluation.measure import SSIM_INSIDE, Measure, mean
from tunalab.evaluation.parts import ReconstructionSettings
from tunalab.evaluation.samples import draw_grid
from tunalab.evaluation.subject import Subject, kept_array
from tunalab.files import sha256, write_atomically
from tunalab.frontends.contract import signed
from tunalab.frontends.vae import psnr
from tunalab.inference.prompts import device_of
from tunalab.settings.schema import RunConfig

SHA256 = "6726825d"  # as far as the file's published name tells it
_BATCH = 32


def check_weights(weights: Path) -> None:
    """Raises UserError: there is no such file, or it is not the published one: a pickle of unknown origin is not opened."""
    if not weights.is_file():
        raise UserError(f"reconstruction.inception={weights}: no such file (the official weights: {URL_INCEPTION_V3})")
    if not sha256(weights).startswith(SHA256):
        raise UserError(f"reconstruction.inception={weights} is not the file of the official weights ({URL_INCEPTION_V3})")


@torch.no_grad()
def inception_features(weights: Path, images_NHWC: np.ndarray, device: torch.device) -> Tensor:
    """Features (N, D) float64, on the CPU, of uint8 images. Raises UserError as :func:`check_weights`."""
    check_weights(weights)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)).to(device)
    image_NCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2)
    return torch.cat([network(part_NCHW.to(device))[0].double().cpu() for part_NCHW in image_NCHW.split(_BATCH)])


# Images to give back: scenes of the test split, and the photographs that scikit-image brings. The same for every model.
#
# Shapes: N images, H W pixels.

SPLIT = "test"
_SEED = 0  # never the run's
# Of the files in scikit-image itself, which are read without a download, those that a camera took; of a stereo pair one.
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png"),
    *("gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)


def scenes(count: int, image_size: int) -> np.ndarray:
    """Scenes of every kind in turn, levels mixed as in the images that components are trained on: uint8 (N, H, W, 3)."""
    images_NHWC, _ = caption_examples(SPLIT, _SEED, count, image_size)
    return images_NHWC


def photographs(image_size: int) -> np.ndarray:
    """The centre square of each photograph at the model's size: uint8 (N, H, W, 3). Raises UserError when a file is missing."""
    folder = Path(skimage.data.__file__).parent
    try:
        square = Buckets.square(image_size).unbounded()
        return np.stack([read_image(folder / name, square) for name in PHOTOGRAPHS])
    except Reject as reject:
        raise UserError(f"photographs of scikit-image: {reject}; install the version of constraints.txt") from reject


# Reconstruction: PSNR, SSIM and rFID of images given back, through the front-end's space alone and through the model.
#
# ``space alone``: into the space that the front-end generates in and back, which bounds what its model can reach; in
# pixels nothing is lost. Through the model (split ``test``): the clean image stands before the noise that it is sampled
# from again, without guidance, as in the paper: a conditional copy, no bottleneck. Models that were fine-tuned on
# copies (experiments/reconstruction.yaml) and others are measured alike, and the note tells them apart. Images are of
# the model's own size. Chance: another image of the set.
#
# rFID is the Frechet distance between the originals and what becomes of them, in the features of Inception v3 if its
# weights are given, else in those of a stated network (generation/fidelity.py), with an interval from leaving out a
# tenth of the pairs at a time. It depends on the number of images.
#
# Shapes: N images, H W C pixels and channels, D features.

KIND = "reconstruction"
SPACE = "space alone"
NETWORK = "network"  # of generation/fidelity.py
CHUNK = 32  # images that are kept together: so much is sampled again after an interruption
SHOWN = 14
SSIM_WINDOW = 11  # pixels: of a smaller image there is no SSIM


def measure(subject: Subject, settings: ReconstructionSettings) -> list[Measure]:
    """``subject.folder`` gets the images given back by the model, and a picture of them beside the originals for each set.

    Raises UserError: the file of Inception's weights is missing or another.
    """
    if settings.inception:
        check_weights(Path(settings.inception))  # before anything is sampled
    size = subject.config.data.image_size
    found = []
    for name, original_NHWC in (("scenes", scenes(settings.scenes, size)), ("photographs", photographs(size))):
        with evaluation_mode(subject.model):
            through_space_NHWC = round_trip(subject.model, original_NHWC)
        through_model_NHWC = _sampled(subject, name, original_NHWC)
        _draw(subject.folder / f"{name}.png", original_NHWC, through_space_NHWC, through_model_NHWC)
        chances = chances_of(original_NHWC)
        exact = np.array_equal(original_NHWC, through_space_NHWC)
        for split, back_NHWC, note in (
            (SPLIT, through_model_NHWC, training_note(subject.config)),
            (SPACE, through_space_NHWC, f"{SPACE}: pixels, nothing is lost ({MOST_DB:g} dB stand for no error)" if exact else ""),
        ):
            for one in compared(name, original_NHWC, back_NHWC, chances):
                found.append(replace(one, split=split, note="; ".join(filter(None, (note, one.note)))))
            found.append(_rfid(subject, settings.inception, name, split, original_NHWC, back_NHWC))
    return found


def compared(name: str, original_NHWC: np.ndarray, back_NHWC: np.ndarray, chances: Mapping[str, float]) -> list[Measure]:
    """PSNR (at most ``MOST_DB``) and SSIM, image by image."""
    return [
        mean(
            KIND,
            name,
            of(back_NHWC, original_NHWC),
            metric=metric,
            chance=chances[metric],
            note=SSIM_INSIDE if metric == "SSIM" else "",
        )
        for metric, of in _metrics(original_NHWC).items()
    ]


def chances_of(original_NHWC: np.ndarray) -> dict[str, float]:
    """By metric, the mean of every image given back as the one before it."""
    other_NHWC = np.roll(original_NHWC, 1, axis=0)
    return {metric: float(np.mean(of(other_NHWC, original_NHWC))) for metric, of in _metrics(original_NHWC).items()}


def psnr_of(images_NHWC: np.ndarray, original_NHWC: np.ndarray) -> list[float]:
    """In dB, of each image."""
    image_NCHW, original_NCHW = (signed(_channels_first(some_NHWC)) for some_NHWC in (images_NHWC, original_NHWC))
    found: list[float] = psnr(image_NCHW, original_NCHW).clamp(max=MOST_DB).tolist()
    return found


def ssim_of(images_NHWC: np.ndarray, original_NHWC: np.ndarray) -> list[float]:
    """Structural similarity of each image, 1 for the same one, at sides of at least :data:`SSIM_WINDOW` pixels.

    As Wang et al. 2004 define it: a Gaussian of deviation 1.5, 11 pixels wide, over the windows that lie wholly in the image.
    scikit-image's; torchmetrics' counts the border too, where windows are filled up with reflections. Mean over the channels.
    """
    gaussian: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return [
        float(structural_similarity(image_HWC, other_HWC, data_range=255, channel_axis=2, **gaussian))
        for image_HWC, other_HWC in zip(images_NHWC, original_NHWC, strict=True)
    ]


def _metrics(original_NHWC: np.ndarray) -> dict[str, Callable[[np.ndarray, np.ndarray], list[float]]]:
    small = min(original_NHWC.shape[1:3]) < SSIM_WINDOW
    return {"PSNR": psnr_of} if small else {"PSNR": psnr_of, "SSIM": ssim_of}


def training_note(config: RunConfig) -> str:
    """Whether a model was trained on copies: what its reconstructions are to be judged by."""
    names = [name for name, stage in config.stages.items() if stage.tokens and _copies(stage.mix)]
    stages = f"fine-tuned on copies (stage {', '.join(names)})" if names else "not fine-tuned on copies"
    return f"through the model: {stages}"


def _copies(mix: dict[str, float]) -> bool:
    return any(source.startswith(PREFIX) and weight > 0 for source, weight in mix.items())


def _sampled(subject: Subject, name: str, original_NHWC: np.ndarray) -> np.ndarray:
    """What the model makes of noise behind each clean image, kept in files."""
    sampling = replace(subject.config.sampling, guidance=1.0, edit_guidance=0.0)
    chunks = []
    firsts: Iterable[int] = range(0, len(original_NHWC), CHUNK)
    for first in subject.progress(firsts, f"{KIND} of {name}"):
        path = subject.folder / f"{name}-{first:06d}.npy"
        if not path.exists():
            part = list(original_NHWC[first : first + CHUNK])
            seeds = range(first, first + len(part))
            content = io.BytesIO()
            np.save(content, subject.edited(part, [""] * len(part), seeds, sampling))
            write_atomically(path, content.getvalue())
        chunks.append(kept_array(path))
    return np.concatenate(chunks)


def _rfid(subject: Subject, inception: str, name: str, split: str, original_NHWC: np.ndarray, back_NHWC: np.ndarray) -> Measure:
    low = high = None
    if inception:
        device = device_of(subject.model)
        before_ND, after_ND = (inception_features(Path(inception), some, device) for some in (original_NHWC, back_NHWC))
        value, metric, note = _distance(before_ND, after_ND), "rFID", "rFID: features of Inception v3, its official weights"
    else:
        before_ND, after_ND = features(NETWORK, original_NHWC), features(NETWORK, back_NHWC)
        value, low, high = jackknife(_distance, before_ND[:, None], after_ND[:, None])
        metric, note = f"rFID ({NETWORK})", f"rFID ({NETWORK}): features of {LABELS[NETWORK]}"
    return Measure(KIND, name, metric, value, len(before_ND), split, low, high, note=note)


def _distance(before_ND: Tensor, after_ND: Tensor) -> float:
    """Rounding takes that of equal sets a little below 0."""
    return max(0.0, frechet(before_ND, after_ND))


def _draw(path: Path, *columns_NHWC: np.ndarray) -> None:
    """Rows of original, through the space, through the model."""
    shown = np.stack([images_NHWC[:SHOWN] for images_NHWC in columns_NHWC], axis=1)
    captions = ["original", SPACE, "through the model"] * len(shown)
    draw_grid(shown.reshape(-1, *shown.shape[2:]), captions, columns=6).save(path)


def _channels_first(images_NHWC: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2)
