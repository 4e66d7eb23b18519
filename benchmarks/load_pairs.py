"""Measure how fast an image and its mask become tensors, stage by stage, against a walk over the pixels in Python."""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.tables import write_csv
from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.types import non_negative_float, non_negative_int, positive_int
from common.data.cache import load_cached
from common.data.datasets import find_spec
from common.data.decoding import read_mask, read_rgb
from common.data.labels import CLASS_WEIGHT_OFFSET, class_weights, palette_labels
from common.data.loading import Example, SampleDataset, load_sample
from common.data.pairs import Sample, find_pairs
from common.data.transforms import ImageFormat, resize_image, resize_mask
from common.report.text import table
from common.scoring.latency import latency, timed
from common.system.files import require_parent
from examples.make_scenes import SCENE_SETS, draw_at, write_image
from models.family import NETWORKS

DATASET, HEIGHT_WIDTH = "ACDC", (1080, 1920)
NAME = "SceneSeg"  # the network that the pairs are for
NETWORK = NETWORKS[NAME]
LABELS, FORMAT = palette_labels(NETWORK.mask_colours, NETWORK.classes, NAME), ImageFormat.of(NETWORK)
OURS = "loader, all of it"
CACHED, JPEG, REDUCED = "loader, from the cache", "loader, JPEG image", "loader, JPEG image at reduced scale"


@dataclass(frozen=True)
class Row:
    """The timed calls of one stage."""

    stage: str
    p50_ms: float
    p90_ms: float | None  # None: of too few calls, see `common.scoring.latency`
    share: float  # of the loader's median
    calls: int


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m benchmarks.load_pairs --pairs 4 --rounds 10 --csv load_pairs.csv")
    parser.set_defaults(threads=1)
    parser.add_argument("--pairs", type=positive_int, default=4, help="1920x1080 PNG pairs to generate")
    parser.add_argument(
        "--rounds", type=positive_int, default=10, help="timed passes over the pairs, after one untimed"
    )
    parser.add_argument("--walk_rounds", type=non_negative_int, default=3, help="rounds that also walk over the pixels")
    parser.add_argument(
        "--noise",
        type=non_negative_float,
        default=4.0,
        help="of the camera, standard deviation in levels",
    )
    parser.add_argument("--csv", type=Path, metavar="PATH", help="also write the rows and the machine here")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.csv:
        require_parent(args.csv)
    cv2.setNumThreads(args.threads)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        samples = write_pairs(Path(folder), args.pairs, args.noise, args.seed)
        check_that_all_agree(samples[0])
        seconds = measure(samples, other_loaders(samples, Path(folder)), args.rounds, args.walk_rounds)
    rows = summarise(seconds)
    print(table([{**asdict(row), **formatted(row)} for row in rows]))
    print(f"{np.median(seconds[OURS]) / np.median(seconds[CACHED]):.1f} times as fast again from the cache")
    decoding = np.median(seconds["decode image"]) + np.median(seconds["decode mask"])
    print(f"{decoding / np.median(seconds[OURS]):.0%} of the loader's time is the decoder's own")
    for name in [name for name in WALKS if name in seconds]:
        ratio = np.median(seconds[name]) / np.median(seconds[OURS])
        print(f"{ratio:.1f} times as fast as the {name} ({args.threads} thread, files in the page cache)")
    if args.csv:
        settings = {"size": "{1}x{0}".format(*HEIGHT_WIDTH), "pairs": args.pairs, "threads": args.threads}
        settings |= {"noise": args.noise, "seed": args.seed, "opencv": cv2.__version__}
        write_csv(args.csv, rows, settings)
        print(f"wrote {args.csv}")


def write_pairs(folder: Path, count: int, noise: float, seed: int) -> list[Sample]:
    """Draw scenes with the noise of a camera and write them as PNG."""
    for part in ("images", "gt_masks"):
        (folder / part).mkdir()
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        image, mask = draw_at(rng, SCENE_SETS[DATASET], *HEIGHT_WIDTH)
        noisy = image + rng.normal(0, noise, image.shape)
        write_image(folder / "images" / f"{index}.png", noisy.round().clip(0, 255).astype(np.uint8))
        write_image(folder / "gt_masks" / f"{index}.png", mask)
    return find_pairs(folder, DATASET, LABELS)


def walk(sample: Sample, pixels_of: Callable[[Image.Image], Callable[[tuple[int, int]], tuple]]) -> Example:
    """The same example, with the class of each pixel looked up in a dict, one pixel after the other."""
    classes = {colour: NETWORK.classes.index(name) for colour, name in NETWORK.mask_colours.items()}
    with Image.open(sample.image) as image, Image.open(sample.mask) as mask:
        box = find_spec(sample.dataset).region(*image.size)
        rgb = np.asarray(image.convert("RGB").crop(box))
        cropped = mask.convert("RGB").crop(box)
    width, height = cropped.size
    pixel, counts = pixels_of(cropped), [0] * len(NETWORK.classes)
    ids = np.empty((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            class_id = classes[pixel((x, y))]
            ids[y, x] = class_id
            counts[class_id] += 1
    weights = torch.tensor([width * height / (count + CLASS_WEIGHT_OFFSET) for count in counts])
    mask_tensor = torch.from_numpy(resize_mask(ids, FORMAT.hw)).long()
    return Example(FORMAT.to_tensor(resize_image(rgb, FORMAT.hw)), mask_tensor, weights)


WALKS = {
    "walk over the pixels, load()": partial(walk, pixels_of=lambda image: image.load().__getitem__),
    "walk over the pixels, getpixel()": partial(walk, pixels_of=lambda image: image.getpixel),
}


def check_that_all_agree(sample: Sample) -> None:
    """Raise RuntimeError unless the walks give the loader's tensors: otherwise the comparison would mean nothing."""
    for label, walked in WALKS.items():
        for name, ours, theirs in zip(Example._fields, SampleDataset([sample], FORMAT)[0], walked(sample), strict=True):
            if not torch.allclose(ours, theirs, rtol=1e-6, atol=0):
                raise RuntimeError(f"the {label} gives another {name} than the loader; there is nothing to compare")


def other_loaders(samples: list[Sample], folder: Path) -> dict[str, SampleDataset]:
    """The same scenes from the cache, and with the image as JPEG, decoded at full and at half size."""
    (folder / "cache").mkdir()
    cached = SampleDataset(samples, FORMAT, load=partial(load_cached, folder / "cache"))
    jpegs = [replace(sample, image=sample.image.with_suffix(".jpg")) for sample in samples]
    for sample, jpeg in zip(samples, jpegs, strict=True):
        write_image(jpeg.image, read_rgb(sample.image))
    reduced = SampleDataset(jpegs, FORMAT, load=partial(load_sample, reduced=True))
    return {CACHED: cached, JPEG: SampleDataset(jpegs, FORMAT), REDUCED: reduced}


def measure(
    samples: list[Sample], others: dict[str, SampleDataset], rounds: int, walk_rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call by stage; loader, stages and walks take turns, so that a slow moment meets all of them."""
    seconds = {}
    loader = SampleDataset(samples, FORMAT)
    for number in range(rounds + 1):
        timings = {} if number == 0 else seconds  # the first round only warms up
        for index, sample in enumerate(samples):
            timings.setdefault(OURS, []).append(timed(lambda index=index: loader[index])[1])
            for label, other in others.items():  # the first round fills the cache
                timings.setdefault(label, []).append(timed(lambda other=other, index=index: other[index])[1])
            time_stages(sample, timings)
            for label, walked in WALKS.items() if 0 < number <= walk_rounds else ():
                timings.setdefault(label, []).append(timed(lambda walked=walked, sample=sample: walked(sample))[1])
    return seconds


def time_stages(sample: Sample, timings: dict[str, list[float]]) -> None:
    """The loader's steps, one clock for each."""

    def step(stage: str, call: Callable) -> object:
        result, seconds = timed(call)
        timings.setdefault(stage, []).append(seconds)
        return result

    image = step("decode image", lambda: read_rgb(sample.image))
    mask = step("decode mask", lambda: read_mask(sample.mask))
    left, top, right, bottom = find_spec(sample.dataset).region(image.shape[1], image.shape[0])
    ids = step("colours to classes", lambda: LABELS.class_ids(mask[top:bottom, left:right]))
    step("class weights", lambda: class_weights(ids, LABELS.class_count))
    resized = step("resize image", lambda: resize_image(image[top:bottom, left:right], FORMAT.hw))
    step("resize mask", lambda: resize_mask(ids, FORMAT.hw))
    step("normalise", lambda: FORMAT.to_tensor(resized))


def summarise(seconds: dict[str, list[float]]) -> list[Row]:
    """One row a stage, the loader first and the walks last."""
    whole = float(np.median(seconds[OURS]))
    rows = []
    for stage, values in sorted(seconds.items(), key=lambda item: item[0] in WALKS):
        timing = latency(values)
        rows.append(Row(stage, timing.p50, timing.p90, timing.p50 / 1000 / whole, timing.n))
    return rows


def formatted(row: Row) -> dict[str, str]:
    """The figures of a row as they are printed."""
    share = f"{row.share:.1%}" if row.stage not in WALKS else f"{row.share:.1f}x"
    p90 = "–" if row.p90_ms is None else f"{row.p90_ms:.2f}"
    return {"p50_ms": f"{row.p50_ms:.2f}", "p90_ms": p90, "share": share}


if __name__ == "__main__":
    run(main, get_args_parser())
