"""transformers' Mask2Former as a detector for GenEval, from a local folder. The official scores come from mmdet's.

Shapes: N detections, H W C image pixels and channels.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunalab.errors import UserError
from tunalab.evaluation.published_generation.detection import THRESHOLD, Detection
from tunalab.evaluation.published_generation.local import described, stamps
from tunalab.frontends.loading import read_transformers

# Other names of classes -> GenEval's: it renamed three of COCO's, and checkpoints write some as VOC does.
_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


class Mask2Former:
    """A checkpoint for instances, such as facebook/mask2former-swin-small-coco-instance in a folder of its own.

    Raises UserError, one line: no such folder, another kind of model, weights that do not fit.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

        source, config, self.processor = described(folder, "detector", Mask2FormerImageProcessor)
        if not isinstance(config, Mask2FormerConfig):
            raise UserError(f"{source.what} is a {config.model_type}: a mask2former is needed")
        self.labels = {number: _NAMES.get(label, label) for number, label in dict(config.id2label or {}).items()}
        self.model: Any = read_transformers(Mask2FormerForUniversalSegmentation, source, config).to(device).eval()
        self.name = f"Mask2Former of transformers ({folder.resolve().name}), not official"
        self.identity = stamps(folder)
        self.things = frozenset(self.labels.values())

    @torch.no_grad()
    def detect(self, pixels_HWC: np.ndarray) -> list[Detection]:
        inputs = self.processor(images=pixels_HWC, return_tensors="pt").to(self.model.device)
        (found,) = self.processor.post_process_instance_segmentation(
            self.model(**inputs), threshold=THRESHOLD, target_sizes=[pixels_HWC.shape[:2]], return_binary_maps=True
        )
        if not found["segments_info"]:
            return []
        masks_NHW = found["segmentation"].bool().cpu().numpy()
        return [
            Detection(self.labels[info["label_id"]], info["score"], _box(mask_HW), mask_HW)
            for info, mask_HW in zip(found["segments_info"], masks_NHW, strict=True)
        ]


def _box(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """Around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
