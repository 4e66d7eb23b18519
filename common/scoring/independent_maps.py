"""Maps of independent logits, a foreground or lanes: the IoU of each, where it is above 0 against where it is there."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from common.data.labels import IGNORED
from common.data.shots import ShotFormat
from common.data.transforms import resize_mask
from common.scoring.figures import Evidence, Figure, column, share
from common.scoring.metrics import mean_of_known


class IndependentMaps:
    """Of each map the pixels of all images are counted once: IoU = there in both / there in one of them.

    A map that no label of the images shows has none, and does not count in the mean.
    """

    def __init__(self, task: str, names: Sequence[str]):
        self.task, self.names = task, tuple(names)
        each = tuple(Figure(f"iou_of_{name.replace(' ', '_')}", f"IoU of {name}", True) for name in names)
        self.figures = (Figure("miou", "mean IoU", True), *each) if len(names) > 1 else (Figure("iou", "IoU", True),)

    def evidence(self, outputs: Sequence[Tensor], label: np.ndarray, _: ShotFormat) -> Evidence:
        """Outputs: logits (1, C, h, w); label: uint8 (C, H, W) of 0, 1 and IGNORED, resized to the output's h, w."""
        logits = outputs[0]
        if logits.dim() != 4 or tuple(logits.shape[:2]) != (1, len(self.names)):
            raise ValueError(f"output {tuple(logits.shape)}, wanted (1, {len(self.names)}, H, W): {self.names}")
        hw = (logits.shape[2], logits.shape[3])
        truth = np.stack([resize_mask(each, hw) for each in label])
        there, said, known = truth == 1, (logits[0] > 0).numpy(), truth != IGNORED
        counts = {"intersection": said & there, "union": (said | there) & known, "labelled": there}
        return {key: pixels.sum(axis=(1, 2)).tolist() for key, pixels in counts.items()}

    def values(self, evidence: Sequence[Evidence], counts: np.ndarray) -> np.ndarray:
        """IoU of each map, behind their mean where there are several: (R, F)."""
        intersection, union, labelled = (
            counts @ column(evidence, key) for key in ("intersection", "union", "labelled")
        )
        each = np.where(labelled > 0, share(intersection, union), np.nan)
        return each if len(self.names) == 1 else np.concatenate([mean_of_known(each)[:, None], each], axis=1)

    def images_with(self, evidence: Sequence[Evidence]) -> np.ndarray:
        """Of a map those that show it."""
        each = np.count_nonzero(column(evidence, "labelled"), axis=0)
        return each if len(self.names) == 1 else np.concatenate([[len(evidence)], each])
