"""A live look: models side by side on an image, a folder of images or a video, with the time of every frame."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from common.data.classes import Classes, classes_of
from common.data.decoding import read_rgb
from common.data.drawing import save_png, strip
from common.data.pairs import IMAGE_SUFFIXES
from common.data.shots import find_images
from common.data.transforms import ImageFormat, resize_image
from common.runtimes.candidates import Candidate
from common.runtimes.predictors import Predictor, class_map, require_class_map
from common.scoring.latency import timed
from common.system.files import atomic_path, new_folder, short_stem
from common.system.progress import progress
from models import Network

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
Shown = tuple[Predictor, ImageFormat]  # a model, and how it takes a frame
MOST_ELONGATED = 16  # one side of an image that is drawn, in sides of the other
PANEL_WIDTH = 640  # pixels of one model's picture, at most; narrower images keep theirs


def show(
    source: Path,
    candidates: Mapping[str, Candidate],
    network: Network,
    threads: int,
    folder: Path,
    image_bits: int | None = None,
) -> list[Path]:
    """Write Original | one overlay per model of every frame of `source` into a new `folder`; the files written.

    An image or a folder of images becomes PNG pictures of the same names, upright, a video an MP4 of the same speed;
    `image_bits` as in `read_rgb`.

    Raises:
        FileNotFoundError: there is no `source`, or no image in it.
        ValueError: it is neither an image, nor a folder, nor a video that can be read, an image is too long and narrow
            to be drawn, or a model's output is no map of the classes.
    """
    classes = classes_of(network)
    if source.suffix.lower() in VIDEO_SUFFIXES and source.is_file():
        frames, rate, count = read_video(source)
        models = _warm(candidates, network, threads)
        pictures = (compose(rgb, models, classes) for rgb in progress(frames, "show", "frame", total=count))
        path = new_folder(folder) / f"{source.stem}.mp4"
        write_video(path, pictures, rate)
        return [path]
    images = [source] if source.suffix.lower() in IMAGE_SUFFIXES and source.is_file() else _images_below(source)
    models = _warm(candidates, network, threads)
    folder, written = new_folder(folder), []
    for index, image in enumerate(progress(images, "show", "image")):
        written.append(folder / f"{index:04d}_{short_stem(image.stem)}.png")
        rgb = read_rgb(image, image_bits)
        require_drawable(rgb, image)
        save_png(written[-1], compose(rgb, models, classes))
    return written


def _warm(candidates: Mapping[str, Candidate], network: Network, threads: int) -> dict[str, Shown]:
    """The models, opened and run once, so that the first frame's time is like the others'."""
    models = {
        label: (candidate.open(threads), ImageFormat.of(network, *candidate.form))
        for label, candidate in candidates.items()
    }
    for label, (predict, _) in models.items():
        predict(torch.zeros(candidates[label].input_shape(3), dtype=candidates[label].dtype))
    return models


def require_drawable(rgb: np.ndarray, path: Path) -> None:
    """Raise ValueError for an image so narrow that its picture would be a line, or larger than a PNG may be."""
    height, width = rgb.shape[:2]
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ValueError(
            f"--show {path}: {width}x{height} pixels, one side more than {MOST_ELONGATED} times the other; cut it"
        )


def _images_below(source: Path) -> list[Path]:
    if not source.exists():
        raise FileNotFoundError(f"--show {source}: no such file or folder")
    if source.is_file():
        known = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise ValueError(f"--show {source}: neither an image nor a video ({known}), nor a folder of images")
    return find_images(source)


def compose(rgb: np.ndarray, models: Mapping[str, Shown], classes: Classes) -> np.ndarray:
    """Original | overlay of each model with its time for this frame, uint8 RGB."""
    width = min(rgb.shape[1], PANEL_WIDTH)
    hw = (round(rgb.shape[0] * width / rgb.shape[1]), width)
    panels = []
    for label, (predict, image_format) in models.items():
        image = image_format.to_tensor(resize_image(rgb, image_format.hw))[None]
        logits, seconds = timed(partial(predict, image))
        require_class_map(logits, len(classes.names), image_format.hw, label)
        ids = class_map(logits)[0].numpy()
        shown = cv2.resize(ids, hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        panels.append((f"{label}: {1000 * seconds:.1f} ms", shown))
    return strip(cv2.resize(rgb, hw[::-1], interpolation=cv2.INTER_AREA), panels, classes)


def read_video(path: Path) -> tuple[Iterator[np.ndarray], float, int | None]:
    """The frames as uint8 RGB (H, W, 3), frames per second, and their number where the file says it.

    Raises:
        ValueError: OpenCV cannot read it.
    """
    capture = cv2.VideoCapture(str(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    good, first = capture.read()
    if not good:
        raise ValueError(f"--show {path}: not a video that OpenCV can read; is the file damaged?")

    def frames() -> Iterator[np.ndarray]:
        good, frame = True, first
        while good:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            good, frame = capture.read()
        capture.release()

    return frames(), rate or 25.0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) or None


def write_video(path: Path, pictures: Iterator[np.ndarray], rate: float) -> None:
    """Write uint8 RGB pictures of one size as MP4, whole or not at all.

    Raises:
        ValueError: this OpenCV has no encoder for it.
    """
    first = next(pictures)
    with atomic_path(path) as temporary, _writer(temporary, first, rate) as writer:
        for picture in pictures:
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


@contextmanager
def _writer(path: Path, first: np.ndarray, rate: float) -> Iterator[cv2.VideoWriter]:
    height, width = first.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    if not writer.isOpened():
        raise ValueError(f"{path}: this OpenCV cannot write MP4")
    try:
        writer.write(cv2.cvtColor(first, cv2.COLOR_RGB2BGR))
        yield writer
    finally:
        writer.release()
