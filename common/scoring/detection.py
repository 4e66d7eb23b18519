"""Objects found: average precision at an IoU of 0.5, after non-maximum suppression within each class.

The area below the precision that is at least reached at each recall, at all its points (PASCAL VOC from 2010 on).
Thresholds as in the validation of the YOLO detectors: scores from 0.001 on, 300 objects an image at most.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, nms

from common.data.label_files import Objects
from common.data.shots import ShotFormat, letterbox_place
from common.scoring.figures import Evidence, Figure
from common.scoring.metrics import mean_of_known

MATCHED = 0.5  # IoU with an object, from which one that is found is right
SUPPRESSED = 0.7  # IoU with one of a higher score, above which one is left out
LEAST_SCORE = 0.001
MOST_CANDIDATES = 3000  # before the suppression
MOST_FOUND = 300  # after it, in an image
BOX = 4  # values of a cell before its scores
CELLS_AT_ONCE = 4_000_000  # of weights of resamples: 32 MB


class Detection:
    """Average precision of each class that labels show, and their mean."""

    def __init__(self, task: str, names: Sequence[str]):
        self.task, self.names = task, tuple(names)
        each = tuple(Figure(f"ap_50_of_{name.replace(' ', '_')}", f"AP at IoU 0.5 of {name}", True) for name in names)
        self.figures = (Figure("map_50", "mAP at IoU 0.5", True), *(each if len(names) > 1 else ()))

    def evidence(self, outputs: Sequence[Tensor], label: Objects, shots: ShotFormat) -> Evidence:
        """Outputs: (1, 4 + C, cells), see `found_objects`; label: boxes in pixels of the image before its resize."""
        output = outputs[0]
        if output.dim() != 3 or tuple(output.shape[:2]) != (1, BOX + len(self.names)):
            raise ValueError(
                f"output {tuple(output.shape)}, wanted (1, {BOX + len(self.names)}, cells): box and scores"
            )
        kinds, scores, boxes = found_objects(output[0].double())
        truth = torch.from_numpy(in_input(label, shots))
        right = torch.zeros(len(kinds), dtype=torch.bool)
        for kind in range(len(self.names)):
            mine = kinds == kind
            right[mine] = matched(boxes[mine], truth[truth[:, 0] == kind, 1:])
        objects = torch.bincount(truth[:, 0].long(), minlength=len(self.names))
        return {
            "found": [[*each] for each in zip(kinds.tolist(), scores.tolist(), right.int().tolist(), strict=True)],
            "objects": objects.tolist(),
        }

    def values(self, evidence: Sequence[Evidence], counts: np.ndarray) -> np.ndarray:
        """Average precision of each class, behind their mean: (R, F)."""
        found = [np.array(each["found"], np.float64).reshape(-1, 3) for each in evidence]
        images = np.repeat(np.arange(len(found)), [len(each) for each in found])
        kinds, scores, right = np.concatenate(found).T
        objects = counts @ np.array([each["objects"] for each in evidence], np.float64)
        by_class = []
        for kind in range(len(self.names)):
            mine = kinds == kind
            by_class.append(average_precision(scores[mine], right[mine], images[mine], counts, objects[:, kind]))
        each = np.stack(by_class, axis=1)
        return np.concatenate([mean_of_known(each)[:, None], *([each] if len(self.names) > 1 else [])], axis=1)

    def images_with(self, evidence: Sequence[Evidence]) -> np.ndarray:
        """Of a class those that show it."""
        each = np.count_nonzero(np.array([one["objects"] for one in evidence]), axis=0)
        return np.concatenate([[len(evidence)], *([each] if len(self.names) > 1 else [])])


def found_objects(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a detector (4 + C, cells) finds: of each cell centre x, centre y, width, height in pixels, C scores in 0..1.

    Returns class ids (n,), scores (n,) from the highest on, and boxes (n, 4) of left, top, right, bottom.

    Raises:
        ValueError: it holds infinity.
    """
    if not torch.isfinite(output).all():
        raise ValueError("its boxes or scores hold infinity; are its weights, or its FP16 ranges, damaged?")
    kinds, cells = (output[BOX:] >= LEAST_SCORE).nonzero(as_tuple=True)
    scores = output[BOX:][kinds, cells]
    order = scores.argsort(descending=True, stable=True)[:MOST_CANDIDATES]
    kinds, scores, cells = kinds[order], scores[order], cells[order]
    centres, sides = output[:2, cells].T, output[2:BOX, cells].T.clamp(min=0)
    boxes = box_convert(torch.cat([centres, sides], dim=1), "cxcywh", "xyxy")
    kept = torch.zeros(len(kinds), dtype=torch.bool)
    for kind in kinds.unique():
        mine = (kinds == kind).nonzero()[:, 0]
        kept[mine[nms(boxes[mine], scores[mine], SUPPRESSED)]] = True
    chosen = kept.nonzero()[:MOST_FOUND, 0]
    return kinds[chosen], scores[chosen], boxes[chosen]


def in_input(label: Objects, shots: ShotFormat) -> np.ndarray:
    """The boxes in pixels of the network's input, float64 (objects, 5): class, left, top, right, bottom."""
    height, width = shots.image.hw
    place = letterbox_place(label.hw, (height, width)) if shots.letterboxed else (0, 0, width, height)
    left, top, placed_width, placed_height = place
    scale = np.array([placed_width / label.hw[1], placed_height / label.hw[0]])
    boxes = label.boxes.copy()
    boxes[:, 1:] = boxes[:, 1:] * np.tile(scale, 2) + np.tile([left, top], 2)
    return boxes


def matched(boxes: Tensor, objects: Tensor) -> Tensor:
    """Which of the boxes (n, 4), from the highest score on, are right: each takes the object (m, 4) that it covers best
    of those that none before it took, from an IoU of MATCHED on. bool (n,)."""
    overlaps, right = box_iou(boxes, objects), torch.zeros(len(boxes), dtype=torch.bool)
    for index in range(len(boxes) if len(objects) else 0):
        best = overlaps[index].argmax()
        if overlaps[index, best] >= MATCHED:
            right[index] = True
            overlaps[:, best] = 0
    return right


def average_precision(
    scores: np.ndarray, right: np.ndarray, images: np.ndarray, counts: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """Average precision of one class for draws of images, (R,); nan where a draw has no object.

    Objects of equal scores are found at once: in INT8 there are many, and their order says nothing.

    Args:
        scores, right, images: of each that was found (n,); the image is an index into `counts`.
        counts: how often each image counts, (R, N).
        objects: there are in each draw, (R,).
    """
    if not len(scores):
        return np.where(objects > 0, 0.0, np.nan)
    order = np.argsort(-scores, kind="stable")
    scores, right, images = scores[order], right[order], images[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    at_once = max(1, CELLS_AT_ONCE // len(scores))
    parts = range(0, len(counts), at_once)
    return np.concatenate(
        [
            _precision(right, ends, counts[start : start + at_once, images], objects[start : start + at_once])
            for start in parts
        ]
    )


def _precision(right: np.ndarray, ends: np.ndarray, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
    weights = weights.astype(np.float64)
    found = weights.cumsum(axis=1)[:, ends]
    hits = (weights * right).cumsum(axis=1)[:, ends]
    precision = hits / np.maximum(found, 1)
    reached = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or a higher one
    gained = np.diff(hits, axis=1, prepend=0)
    area = (gained * reached).sum(axis=1)
    return np.divide(area, objects, out=np.full(len(objects), np.nan), where=objects > 0)
