"""Measure the processor time from a frame of bytes to classes: plain file with NumPy, and the file for a camera."""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.tables import write_csv
from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.types import positive_int
from common.data.camera import CameraFormat
from common.export.camera import CameraFile
from common.networks.registry import find_network
from common.report.text import table
from common.runtimes.onnx_files import fixed_hw, read_graph
from common.runtimes.predictors import OnnxPredictor
from common.scoring.latency import Latency, latency, no_garbage_collection
from common.system.files import require_parent

PLAIN, CAMERA = "plain file and NumPy", "file for a camera"
FORM = CameraFormat("nhwc", "uint8", "bgr", "classes")


@dataclass(frozen=True)
class Row:
    """The time from bytes to classes of one file in one form."""

    file: str
    form: str
    p50_ms: float
    least_ms: float
    of_plain: float  # p50, as a share of that of PLAIN


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m benchmarks.camera_file SceneSeg_int8.onnx --threads 1")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE.onnx", help="plain ones of networks of this toolkit"
    )
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
            "form": row.form,
            "p50 ms": f"{row.p50_ms:.2f}",
            "min ms": f"{row.least_ms:.2f}",
            "of plain": f"{row.of_plain:.3f}",
        }
        for row in rows
    ]
    print(table(shown))
    print(f"{args.runs} runs, threads: {args.threads}; the classes are equal in every pixel")
    if args.csv:
        write_csv(args.csv, rows, {"threads": args.threads, "runs": args.runs})


def measure(path: Path, threads: int, runs: int) -> list[Row]:
    """The rows of one file, on random bytes.

    Raises:
        ValueError: the maps of classes differ.
    """
    network = find_network({entry.key: entry.value for entry in read_graph(path).metadata_props}["network"])[1]
    hw = fixed_hw(read_graph(path)) or network.input_shape[1:]
    camera = CameraFile(network, hw, FORM)
    proto = onnx.load(path)
    camera.rewrite(proto)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / path.name
        onnx.save(proto, written)
        plain, other = OnnxPredictor(path, threads).session, OnnxPredictor(written, threads).session
    name = plain.get_inputs()[0].name
    frame = np.random.default_rng(0).integers(0, 256, (1, *hw, 3), np.uint8)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (network.mean, network.std))

    def with_numpy() -> np.ndarray:
        planes = np.ascontiguousarray(frame[0, :, :, ::-1].transpose(2, 0, 1)).astype(np.float32)
        planes /= 255
        planes -= mean
        planes /= std
        return plain.run(None, {name: planes[None]})[0].argmax(1).astype(np.uint8)

    calls: dict[str, Callable[[], np.ndarray]] = {PLAIN: with_numpy, CAMERA: lambda: other.run(None, {name: frame})[0]}
    if not np.array_equal(*(call() for call in calls.values())):
        raise ValueError(f"{path}: the maps of classes differ")
    latencies = cpu_latency(calls, runs)
    base = latencies[PLAIN].p50
    return [Row(path.stem, form, each.p50, each.min, each.p50 / base) for form, each in latencies.items()]


def cpu_latency(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, Latency]:
    """The processor's time of each call, turn by turn after one untimed turn.

    What is measured are some of a hundred milliseconds, less than the clock of a machine with other work varies by.
    """
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    with no_garbage_collection():
        for turn in range(1 + runs):
            for label, call in calls.items():
                start = time.process_time()
                call()
                if turn:
                    seconds[label].append(time.process_time() - start)
    return {label: latency(measured) for label, measured in seconds.items()}


if __name__ == "__main__":
    run(main, get_args_parser())
