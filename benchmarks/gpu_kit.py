"""Gather what benchmarks.gpu_check needs on a machine without a network: wheels, and a small part of a dataset."""

import argparse
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import cv2

from benchmarks.gpu_context import samples_of
from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.types import positive_float, positive_int
from common.data.datasets import SPLITS, evenly_spaced
from common.data.decoding import read_rgb
from common.data.pairs import Sample
from common.system.files import atomic_path

logger = logging.getLogger(__name__)

# beside PyTorch, torchvision, ONNX, ONNX Runtime and what these need; of executorch's own requirements only those that
# its quantizer imports, of segmentation-models-pytorch's what its import takes
WHEELS = (
    *("torchao", "executorch", "ruamel-yaml", "expecttest", "flatbuffers", "tabulate"),
    *("segmentation-models-pytorch", "timm", "safetensors", "huggingface-hub"),
    *("httpx2", "httpcore2", "h11", "idna", "truststore"),
)
LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"  # their versions
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)) + ("manylinux2014_x86_64",)
JPEG_QUALITY = 95


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m benchmarks.gpu_kit --output kit --data data --dataset CamVid")
    parser.add_argument("--output", type=Path, default=Path("kit"), metavar="DIR", help="folder of the kit, made anew")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data root to take images from; default: no images")
    parser.add_argument("--dataset", default="CamVid", metavar="NAME", help="dataset below --data")
    parser.add_argument("--images", type=positive_int, default=200, help="pairs at even distances over the dataset")
    parser.add_argument("--python_version", default="3.12", metavar="X.Y", help="of the machine without a network")
    parser.add_argument("--most_mb", type=positive_float, default=60.0, help="size that the kit may have")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.output.exists() and not (args.output / "wheels").is_dir() and any(args.output.iterdir()):
        raise ValueError(f"--output {args.output}: not empty, and no kit; name another folder")
    shutil.rmtree(args.output, ignore_errors=True)
    wheels = args.output / "wheels"
    wheels.mkdir(parents=True)
    download(wheels, args.python_version)
    if args.data:
        splits = (samples_of(args.data, args.dataset, split) for split in SPLITS)
        pairs = sorted(chain.from_iterable(splits), key=lambda sample: sample.image.name)
        write_small(evenly_spaced(pairs, args.images), args.output / "data" / args.dataset / args.dataset)
    files = [path for path in args.output.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{args.output}: {len(files)} files, {size:.1f} MB")
    if size > args.most_mb:
        raise ValueError(f"{args.output}: {size:.1f} MB, --most_mb is {args.most_mb:g}; take fewer --images")


def download(folder: Path, python_version: str) -> None:
    """The wheels for a Linux machine with an x86-64 processor.

    Raises:
        ValueError: pip cannot get one; it has told why.
    """
    platforms = [flag for platform in PLATFORMS for flag in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [
        "--python-version",
        python_version,
        "--implementation",
        "cp",
        *platforms,
        "--dest",
        str(folder),
        *pins(),
    ]
    if subprocess.run(command, check=False).returncode:
        raise ValueError("pip could not download all wheels, see above")


def pins() -> list[str]:
    """The wheels with their versions, such as "timm==1.0.31"."""
    versions = dict(re.findall(r"^(\S+)(==\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    return [name + versions[name] for name in WHEELS]


def write_small(samples: Sequence[Sample], folder: Path) -> None:
    """The pairs in the layout of a dataset, the images as JPEG, which takes a third of their PNG."""
    for part in ("images", "gt_masks"):
        (folder / part).mkdir(parents=True)
    for sample in samples:
        rgb = read_rgb(sample.image)
        _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        with atomic_path(folder / "images" / f"{sample.image.stem}.jpg", durable=False) as path:
            path.write_bytes(data)
        shutil.copyfile(sample.mask, folder / "gt_masks" / sample.mask.name)
        (folder / "gt_masks" / sample.mask.name).chmod(0o644)


if __name__ == "__main__":
    run(main, get_args_parser())
