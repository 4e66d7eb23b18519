"""Measure a C++ program against Python on the same file, image and number of threads, turn by turn."""

import argparse
import re
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.types import positive_int
from common.export.calibration import image_preparer
from common.report.text import table
from common.runtimes.onnx_files import fixed_hw, read_graph
from common.runtimes.predictors import OnnxPredictor, Predictor, TorchPredictor
from common.runtimes.traced import read_torchscript, torchscript_hw
from common.scoring.latency import latency, timed
from models.family import NETWORKS

CPU = torch.device("cpu")
GOAL = 1.02  # of Python's median


class Side(NamedTuple):
    """One side's milliseconds; on a busy machine only the least says something."""

    least: float
    p50: float


def get_args_parser() -> argparse.ArgumentParser:
    example = "python -m benchmarks.cpp_latency build/onnx_rt/deploy_onnx_rt SceneSeg.onnx image.png --threads 1"
    parser = make_parser(__doc__, example)
    parser.add_argument("program", type=Path, help="deploy_libtorch for a .pt, deploy_onnx_rt for an .onnx")
    parser.add_argument("model", type=Path, help="a file of SceneSeg")
    parser.add_argument("image", type=Path)
    parser.add_argument("--rounds", type=positive_int, default=9, help="turns of each side")
    parser.add_argument("--repeat", type=positive_int, default=20, help="timed runs in a turn, after 3 untimed")
    parser.set_defaults(threads=1)
    return parser


def main(args: argparse.Namespace) -> None:
    predict, input_hw = open_predictor(args.model, args.threads)
    image = image_preparer(NETWORKS["SceneSeg"], input_hw)(args.image)
    turns = [(python_turn(predict, image, args.repeat), cpp_turn(args)) for _ in range(args.rounds)]
    python, cpp = (
        Side(min(turn.least for turn in side), statistics.median(turn.p50 for turn in side))
        for side in zip(*turns, strict=True)
    )
    sides = {"Python": python, "C++": cpp, "C++ / Python": Side(cpp.least / python.least, cpp.p50 / python.p50)}
    print(table([{"ms": name, "min": f"{side.least:.3f}", "p50": f"{side.p50:.3f}"} for name, side in sides.items()]))
    print(f"{args.rounds} turns of {args.repeat} runs, threads: {args.threads}; goal {GOAL}")


def open_predictor(path: Path, threads: int) -> tuple[Predictor, tuple[int, int]]:
    """The file in the runtime of its kind, and the height and width of its input."""
    if path.suffix == ".onnx":
        return OnnxPredictor(path, threads), fixed_hw(read_graph(path))
    return TorchPredictor(read_torchscript(path, CPU), CPU), torchscript_hw(path)


def python_turn(predict: Predictor, image: torch.Tensor, repeat: int) -> Side:
    """Milliseconds of `repeat` calls after three untimed ones."""
    seconds = [timed(lambda: predict(image))[1] for _ in range(3 + repeat)][3:]
    return Side(1000 * min(seconds), latency(seconds).p50)


def cpp_turn(args: argparse.Namespace) -> Side:
    """What the program prints for as many calls.

    Raises:
        ValueError: the program failed.
    """
    numbers = ["--threads", str(args.threads), "--warmup", "3", "--repeat", str(args.repeat)]
    with tempfile.TemporaryDirectory() as folder:
        command = [args.program.resolve(), args.model, args.image, "--output", folder, *numbers]
        process = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"^infer +\S+ +(\S+) +(\S+)", process.stdout, re.MULTILINE)
    if process.returncode or not found:
        raise ValueError(f"{args.program}: {process.stderr.strip()}")
    return Side(float(found[1]), float(found[2]))


if __name__ == "__main__":
    run(main, get_args_parser())
