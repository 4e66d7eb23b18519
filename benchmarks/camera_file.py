"""Measure the processor time from a frame of bytes to classes: plain file with NumPy, and the file for a camera."""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.tables import add_file_arguments, tell
from common.cli.flags import make_parser
from common.cli.main import run
from common.data.camera import CameraFormat
from common.export.camera import CameraFile
from common.networks.registry import find_network
from common.runtimes.onnx_files import fixed_hw, read_graph
from common.runtimes.predictors import OnnxPredictor
from common.scoring.latency import Latency, latency, no_garbage_collection
from common.system.files import require_parent

PLAIN, CAMERA = "plain file and NumPy", "file for a camera"
FORM = CameraFormat("nhwc", "uint8", "bgr", "classes")

HEADINGS = {"file": "file", "form": "form", "p50_ms": "p50 ms", "least_ms": "min ms", "of_plain": "of plain"}


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
    add_file_arguments(parser, "plain ones of networks of this toolkit")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.csv:
        require_parent(args.csv)
    rows = [row for path in args.files for row in measure(path, args.threads, args.runs)]
    tell(rows, HEADINGS, "the classes are equal in every pixel", args)


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
