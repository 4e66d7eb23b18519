"""Measure INT8 files of pairs with full graph optimisation against their optimized form without any, turn by turn."""

import argparse
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.tables import write_csv
from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.types import positive_int
from common.export.optimized import use_integer_operators
from common.export.same_outputs import SameOutputs
from common.report.text import table
from common.runtimes.predictors import OnnxPredictor
from common.scoring.latency import interleaved_latency
from common.system.files import require_parent

logger = logging.getLogger(__name__)

PAIRS, OPTIMIZED, FLOAT = "pairs, full optimisation", "optimized, none", "pairs, none"
GOAL = 1.1  # of the time of PAIRS


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
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.onnx", help="INT8, written without --optimized")
    parser.add_argument("--runs", type=positive_int, default=15, help="timed runs of each")
    parser.add_argument("--csv", type=Path, help="also write the table, with the machine, as CSV")
    parser.set_defaults(threads=1)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.csv:
        require_parent(args.csv)
    rows = [row for path in args.files for row in measure(path, args.threads, args.runs)]
    shown = [
        {
            "file": row.file,
            "session": row.session,
            "p50 ms": f"{row.p50_ms:.2f}",
            "min ms": f"{row.least_ms:.2f}",
            "of pairs": f"{row.of_pairs:.3f}",
            "MB": f"{row.size_mb:.2f}",
        }
        for row in rows
    ]
    print(table(shown))
    print(f"{args.runs} runs, threads: {args.threads}; goal {GOAL}; outputs of the first two equal in every bit")
    if args.csv:
        write_csv(args.csv, rows, {"threads": args.threads, "runs": args.runs})


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
