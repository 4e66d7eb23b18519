"""Write a network for every target, without training: the rules of each, its distance from FP32, and its time.

Every file is judged on images that did not calibrate, in the runtime that is named beside its time: TensorRT's in ONNX
Runtime, which has no part in TensorRT's time; OpenVINO's in OpenVINO where that is installed.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.int8_speed import Call
from benchmarks.others import HAS_OPENVINO, OpenVinoPredictor
from benchmarks.tables import cells, write_csv
from common.cli.flags import add_input_size_argument, add_name_argument, add_weights_argument, make_parser
from common.cli.main import run
from common.cli.types import positive_int
from common.export.calibration import folder_images
from common.export.conversion import convert_fp32, convert_int8
from common.export.options import ExportOptions
from common.networks.opening import open_network
from common.quantization.settings import QuantizationSettings
from common.report.text import table
from common.runtimes.agreement import Agreement
from common.runtimes.predictors import OnnxPredictor
from common.runtimes.pte import PtePredictor
from common.runtimes.target_check import check_file
from common.runtimes.targets import TARGETS
from common.scoring.latency import interleaved_latency
from common.system.process import seed_everything
from models import DEFAULT_NETWORK

FP32 = "FP32"
ONNX_RUNTIME, OPENVINO, EXECUTORCH = (TARGETS[name].title for name in ("onnxruntime", "openvino", "executorch"))


@dataclass(frozen=True)
class Row:
    """One file."""

    target: str
    weights: str  # per channel or per tensor
    broken_rules: int | None  # None: no rules are known of such files
    sqnr_db: str  # against FP32, of each output
    equal_pixels: str  # share of the pixels whose class is FP32's, of each output that is a map of classes
    size_mb: float
    runtime: str  # that ran it here
    p50_ms: float = math.nan  # all are timed together, at the end
    faster_than_fp32: float = math.nan  # FP32 in ONNX Runtime


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m benchmarks.targets -p SceneSeg.pth --images drive --csv targets.csv")
    parser.set_defaults(threads=1)
    add_name_argument(parser, default=DEFAULT_NETWORK)
    parser.add_argument("-p", "--checkpoint", type=Path, required=True, metavar="CKPT", help="FP32 weights")
    add_weights_argument(parser)
    add_input_size_argument(parser)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="to calibrate and to judge on")
    parser.add_argument("--num_calibration_samples", type=positive_int, default=32, help="of these images")
    parser.add_argument("--runs", type=positive_int, default=20, help="timed runs of each file")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="also write the rows and the machine here")
    return parser


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    source = open_network(args.name, args.checkpoint, args.input_hw, args.weights)
    images = folder_images(source, args.images, args.num_calibration_samples, args.seed, None, None, args.weights)
    calibrating, judging = images.to_calibrate(), images.to_judge()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "fp32.onnx"
        convert_fp32(source, base, ExportOptions(args.threads))
        runs = {FP32: partial(OnnxPredictor(base, threads=args.threads), judging[0])}
        rows = []
        for target, wanted in TARGETS.items():
            options = ExportOptions(args.threads, batch=wanted.batch)
            path = Path(folder) / f"{target}{wanted.suffix}"
            settings = QuantizationSettings(wanted.per_channel, target=target)
            agreements = convert_int8(source, path, options, settings, calibrating, judging)
            runtime, call = opened(target, path, args.threads)
            runs[target] = partial(call, judging[0])
            rows.append(row_of(target, path, agreements, runtime))
        latencies = interleaved_latency(runs, args.runs, warmup=1, untimed=1)
    times = {name: latency.p50 for name, latency in latencies.items()}
    fp32 = times[FP32]
    rows = [replace(row, p50_ms=times[row.target], faster_than_fp32=fp32 / times[row.target]) for row in rows]
    print(table([cells(row, 2) for row in rows]))
    print(f"{FP32}: {fp32:.1f} ms in {ONNX_RUNTIME}, {args.threads} threads")
    if args.csv:
        settings = {"network": source.name, "threads": args.threads, "fp32_ms": fp32}
        write_csv(args.csv, rows, settings | {"input_shape": source.input_shape})


def row_of(target: str, path: Path, agreements: Sequence[Agreement], runtime: str) -> Row:
    """What there is to say of a file before it is timed."""
    wanted = TARGETS[target]
    return Row(
        target,
        "per channel" if wanted.per_channel else "per tensor",
        len(check_file(path, target)) if wanted.opsets else None,
        " ".join(f"{each.sqnr_db:.1f}" for each in agreements),
        " ".join(f"{each.equal_pixels:.4f}" for each in agreements if each.equal_pixels is not None),
        path.stat().st_size / 1e6,
        runtime,
    )


def opened(target: str, path: Path, threads: int) -> tuple[str, Call]:
    """The runtime that a file is run in, and it as something to call with images (1, C, H, W)."""
    if path.suffix != ".onnx":
        return EXECUTORCH, PtePredictor(path, threads=threads)
    if target == "openvino" and HAS_OPENVINO:
        return OPENVINO, OpenVinoPredictor(path, threads)
    return ONNX_RUNTIME, OnnxPredictor(path, threads=threads)


if __name__ == "__main__":
    run(main, get_args_parser())
