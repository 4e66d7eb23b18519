"""Measure INT8 files of pairs with full graph optimisation against their optimized form without any, turn by turn."""

import argparse
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.tables import add_file_arguments, tell
from common.cli.flags import make_parser
from common.cli.main import run
from common.export.optimized import use_integer_operators
from common.export.same_outputs import SameOutputs
from common.runtimes.predictors import OnnxPredictor
from common.scoring.latency import interleaved_latency
from common.system.files import require_parent

logger = logging.getLogger(__name__)

PAIRS, OPTIMIZED, FLOAT = "pairs, full optimisation", "optimized, none", "pairs, none"
GOAL = 1.1  # of the time of PAIRS

HEADINGS = {
    "file": "file",
    "session": "session",
    "p50_ms": "p50 ms",
    "least_ms": "min ms",
    "of_pairs": "of pairs",
    "size_mb": "MB",
}


@dataclass(frozen=True)
class Row:
    """The time of one file in one kind of session."""

    file: str
    session: str
    p50_ms: float
    least_ms: float
    of_pairs: float  # p50, as a share of that of PAIRS
    size_mb: float


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m benchmarks.optimized_file SceneSeg_int8.onnx --threads 1")
    add_file_arguments(parser, "INT8, written without --optimized")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.csv:
        require_parent(args.csv)
    rows = [row for path in args.files for row in measure(path, args.threads, args.runs)]
    tell(rows, HEADINGS, f"goal {GOAL}; outputs of the first two equal in every bit", args)


def measure(path: Path, threads: int, runs: int) -> list[Row]:
    """The rows of one file."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / path.name
        shutil.copy(path, optimized)
        use_integer_operators(optimized)
        sizes = {PAIRS: path.stat().st_size, OPTIMIZED: optimized.stat().st_size, FLOAT: path.stat().st_size}
        predictors = {
            PAIRS: OnnxPredictor(path, threads),
            OPTIMIZED: OnnxPredictor(optimized, threads, optimize=False),
            FLOAT: OnnxPredictor(path, threads, optimize=False),
        }
    shape = [side if isinstance(side, int) else 1 for side in predictors[PAIRS].session.get_inputs()[0].shape]
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    SameOutputs(predictors[PAIRS], predictors[OPTIMIZED])(image)
    calls = {name: lambda predict=predict: predict(image) for name, predict in predictors.items()}
    latencies = interleaved_latency(calls, runs)
    base = latencies[PAIRS].p50
    return [
        Row(path.stem, name, each.p50, each.min, each.p50 / base, sizes[name] / 1e6) for name, each in latencies.items()
    ]


if __name__ == "__main__":
    run(main, get_args_parser())
