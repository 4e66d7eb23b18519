"""Outputs without a truth to hold them against, as pictures: what each model says, and where two differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from common.data.classes import distinct_colours
from common.data.drawing import OPACITY, beside, file_name, save_png
from common.data.shots import Shot
from common.system.files import short_stem
from models.network import Colour

DIFFERENT = (220, 38, 38)
PALE = 0.6  # of the white over the grey image below a difference


def is_map(output: np.ndarray) -> bool:
    """Whether an output of one image, without the batch axis, is a map that can be drawn: (C, H, W)."""
    return output.ndim == 3 and min(output.shape[1:]) > 1


def output_picture(
    rgb: np.ndarray, output: np.ndarray, kind: str, limits: tuple[float, float], colours: tuple[Colour, ...] = ()
) -> np.ndarray:
    """What a map says, over its image where it tells classes apart.

    Shapes: uint8 RGB (H, W, 3), output (C, h, w) of the kind models.network.OUTPUT_KINDS -> uint8 RGB (H, W, 3). The
    first channel of `values` is drawn, from dark to light between `limits`.
    """
    if kind == "values":
        return _shades(_share(output[0], limits), rgb.shape[:2])
    colours = colours if len(colours) == len(output) else distinct_colours(len(output))
    painted = rgb.copy()
    ids = output.argmax(axis=0)
    for index, colour in enumerate(colours):
        there = ids == index if kind == "classes" else output[index] > 0
        painted[_enlarged(there, rgb.shape[:2])] = colour
    return cv2.addWeighted(painted, OPACITY, rgb, 1 - OPACITY, 0)


def difference_picture(
    rgb: np.ndarray, first: np.ndarray, second: np.ndarray, kind: str, limits: tuple[float, float]
) -> np.ndarray:
    """Where two maps say different things: in red over a pale grey image, or the difference of values as a share of
    `limits`, in shades of which the lightest is a tenth."""
    if kind == "values":
        span = (limits[1] - limits[0]) / 10
        return _shades(_share(np.abs(first[0] - second[0]), (0.0, span)), rgb.shape[:2])
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = cv2.addWeighted(grey, 1 - PALE, np.full_like(grey, 255), PALE, 0)
    different = (
        first.argmax(axis=0) != second.argmax(axis=0)
        if kind == "classes"
        else ((first > 0) != (second > 0)).any(axis=0)
    )
    picture[_enlarged(different, rgb.shape[:2])] = DIFFERENT
    return picture


def _share(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def _shades(shares: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    levels = cv2.resize(np.nan_to_num(255 * shares).astype(np.uint8), hw[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def _enlarged(mask: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


def limits_of(output: np.ndarray) -> tuple[float, float]:
    """Between which values a map is drawn: without the outermost hundredth on each side."""
    low, high = np.nanpercentile(output[0], (1, 99))
    return float(low), float(high)


def save_outputs(
    folder: Path,
    shot: Shot,
    label: str,
    rgb: np.ndarray,
    outputs: Mapping[str, np.ndarray],
    kind: str,
    before: Sequence[tuple[str, np.ndarray]] = (),
) -> Path | None:
    """Write Original | each model's output | where each of the others differs from the first, to `folder`/pictures;
    `before` are other pictures behind the original.

    Returns the file; None for an output that is no map.
    """
    reference, *others = outputs
    if not is_map(outputs[reference]):
        return None
    limits = limits_of(outputs[reference])
    panels = [("Original", rgb), *before]
    panels += [(name, output_picture(rgb, output, kind, limits)) for name, output in outputs.items()]
    panels += [
        (f"{name}, difference", difference_picture(rgb, outputs[reference], outputs[name], kind, limits))
        for name in others
    ]
    (folder / "pictures").mkdir(exist_ok=True)
    path = folder / "pictures" / f"{file_name(shot.dataset)}_{short_stem(shot.image.stem)}_{file_name(label)}.png"
    save_png(path, beside(panels))
    return path
