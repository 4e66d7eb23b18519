"""Generate small driving scenes with masks, in the folder layout of the real datasets, to try the toolkit on."""

import argparse
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.types import positive_int
from common.system.files import atomic_path
from common.system.progress import progress
from examples.scenes import Generator, Mood, make_scene

DRAWN_WIDTH = 640  # scenes are drawn at most this wide and enlarged to the dataset's native size


@dataclass(frozen=True)
class SceneSet:
    """How the scenes of a dataset look."""

    sizes: tuple[tuple[int, int], ...]  # (height, width) of its images
    suffix: str
    mood: Callable[[Generator], Mood]
    horizon: float = 0.42
    bottom: float = 1.0


def adverse(rng: Generator) -> Mood:
    """Night, fog, rain or snow."""
    night = Mood(brightness=0.3, cast=(0.9, 0.95, 1.15), night=True)
    return (night, Mood(0.9, fog=rng.uniform(0.3, 0.8)), Mood(0.7, rain=1), Mood(0.95, fog=0.2, snow=1))[
        rng.integers(4)
    ]


def mixed(rng: Generator) -> Mood:
    """Off-tone daylight, haze and rain."""
    return Mood(
        rng.uniform(0.6, 1.1), tuple(rng.uniform(0.85, 1.15, 3)), rng.uniform(0, 0.4), rain=rng.choice((0, 0.6))
    )


def dusk(rng: Generator) -> Mood:
    """Low sun, or night."""
    return Mood(rng.uniform(0.25, 0.7), (1.1, 0.9, 0.8), night=bool(rng.random() < 0.5))


def day(rng: Generator) -> Mood:
    """Daylight."""
    return Mood(rng.uniform(0.8, 1.15))


SCENE_SETS = {
    "ACDC": SceneSet(((1080, 1920),), ".png", adverse, horizon=0.4),
    "IDDAW": SceneSet(((1536, 2048),), ".jpg", mixed, horizon=0.58),
    "MUSES": SceneSet(((1080, 1920),), ".jpg", dusk, horizon=0.38),
    "Mapillary_Vistas": SceneSet(((540, 960), (720, 1280), (600, 800)), ".jpg", day),
    "comma10k": SceneSet(((874, 1164),), ".png", day, horizon=0.32, bottom=0.72),
}


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m examples.make_scenes --output demo/data --images_per_dataset 40")
    parser.add_argument("--output", required=True, type=Path, metavar="ROOT", help="data root to write")
    parser.add_argument("--images_per_dataset", type=positive_int, default=40, help="scenes of each dataset")
    parser.add_argument("--datasets", nargs="+", choices=list(SCENE_SETS), default=list(SCENE_SETS), help="datasets")
    parser.add_argument("--overwrite", action="store_true", help="write into folders that are not empty")
    return parser


def main(args: argparse.Namespace) -> None:
    for name in args.datasets:
        write_dataset(args.output, name, args.images_per_dataset, args.seed, overwrite=args.overwrite)
    print(f"wrote {args.images_per_dataset} scenes of each of {', '.join(args.datasets)} below {args.output}")


def write_dataset(
    root: Path, name: str, count: int, seed: int, size: tuple[int, int] | None = None, overwrite: bool = False
) -> None:
    """Write `count` scenes to `root`/name/name/{images,gt_masks}; scene i depends on seed, name and i alone.

    Args:
        name: a known dataset, whose native size and look are taken, or any other name, which needs `size`.
        size: (height, width) of the images.

    Raises:
        FileExistsError: the dataset's folder holds something already.
    """
    folder = root / name / name
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} is not empty; choose another --output or add --overwrite")
    look = SCENE_SETS.get(name) or SceneSet((size,), ".jpg", day)
    for part in ("images", "gt_masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in progress(range(count), f"draw {name}", unit="scene"):
        rng = np.random.default_rng((seed, zlib.crc32(name.encode()), index))
        height, width = size or look.sizes[index % len(look.sizes)]
        image, mask = draw_at(rng, look, height, width)
        write_image(folder / "images" / f"{index:04d}{look.suffix}", image)
        write_image(folder / "gt_masks" / f"{index:04d}.png", mask)


def draw_at(rng: Generator, look: SceneSet, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene of `look` at a size: drawn small, then enlarged."""
    drawn_width = min(width, DRAWN_WIDTH)
    drawn_height = round(height * drawn_width / width)
    image, mask = make_scene(rng, drawn_height, drawn_width, look.mood(rng), look.horizon, look.bottom)
    if drawn_width < width:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, mask


def write_image(path: Path, rgb: np.ndarray) -> None:
    """Encode by the suffix of `path`, whole or not at all."""
    options = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 90], ".png": [cv2.IMWRITE_PNG_COMPRESSION, 1]}[path.suffix]
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


if __name__ == "__main__":
    run(main, get_args_parser())
