"""Reconstruction: PSNR, SSIM and rFID of images given back, through the front-end's space alone and through the model.

``space alone``: into the space that the front-end generates in and back, which bounds what its model can reach; in pixels nothing
is lost. Through the model (split ``test``): the clean image stands before the noise that it is sampled from again, without
guidance, as in the paper: a conditional copy, no bottleneck. Models that were fine-tuned on copies
(experiments/reconstruction.yaml) and others are measured alike, and the note tells them apart. Images are of the model's own size.
Chance: another image of the set.

rFID is the Frechet distance between the originals and what becomes of them, in the features of Inception v3 if its weights are
given, else in those of a stated network (generation/features.py), with an interval from leaving out a tenth of the pairs at a time.
It depends on the number of images.

Shapes: N images, H W C pixels and channels, D features.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from tunalab.config import RunConfig
from tunalab.data.copies import PREFIX
from tunalab.evaluation.editing.verdict import MOST_DB
from tunalab.evaluation.generation.accuracy import round_trip
from tunalab.evaluation.generation.features import LABELS, features
from tunalab.evaluation.generation.fidelity import frechet, jackknife
from tunalab.evaluation.measure import SSIM_INSIDE, Measure, mean
from tunalab.evaluation.mode import evaluation_mode
from tunalab.evaluation.reconstruction.inception import check_weights, inception_features
from tunalab.evaluation.reconstruction.originals import SPLIT, photographs, scenes
from tunalab.evaluation.samples import draw_grid
from tunalab.evaluation.settings import ReconstructionSettings
from tunalab.evaluation.subject import Subject, kept_array
from tunalab.files import write_atomically
from tunalab.frontends.psnr import psnr
from tunalab.inference.prefix import device_of

KIND = "reconstruction"
SPACE = "space alone"
NETWORK = "network"  # of generation/features.py
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
    image_NCHW, original_NCHW = (_channels_first(some_NHWC).float() / 127.5 - 1 for some_NHWC in (images_NHWC, original_NHWC))
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
