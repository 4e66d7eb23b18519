"""Measure how fast one network runs as FP32 and INT8 ONNX, plain and fused, all variants turn by turn in one run."""

import argparse
import copy
import logging
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import nn
from torch.fx import GraphModule

from benchmarks.tables import write_csv
from common.cli import fraction, height_width, make_parser, positive_int, run, seed_everything
from common.description import as_metadata, describe
from common.environment import versions
from common.files import require_parent
from common.int8_graph import for_onnx_runtime
from common.latency import Latency, interleaved_latency, timed
from common.onnx_export import export_onnx
from common.predictors import OnnxPredictor
from common.quantization import QuantizationSettings, quantize_after_training
from common.report import table
from models import check_input_hw, find_network
from models.fuse import fuse_upsampling

logger = logging.getLogger(__name__)

FLOAT_CONVOLUTIONS = ("Conv", "ConvTranspose", "FusedConv")
BASE, STRAIGHT = "FP32", "INT8, straight PT2E"


@dataclass(frozen=True)
class Row:
    """One variant."""

    variant: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    faster_than_fp32: float  # ratio of the medians
    faster_than_straight: float
    size_mb: float
    of_fp32_size: float
    session_s: float  # to load the file and optimise its graph
    int8_convolutions: int  # in the graph as ONNX Runtime runs it
    float_convolutions: int
    nodes: int


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m benchmarks.int8_speed --threads 1 --csv int8_speed.csv")
    parser.set_defaults(threads=1)
    parser.add_argument("-n", "--name", default="SceneSeg", metavar="NETWORK", help="network, with random weights")
    parser.add_argument("--width", type=fraction, default=1.0, help="scale of its decoder's channels")
    parser.add_argument("--input_hw", type=height_width, metavar="H,W", help="default: the network's own")
    parser.add_argument("--runs", type=positive_int, default=20, help="timed runs of each variant, after two untimed")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="also write the rows and the machine here")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.csv:
        require_parent(args.csv)
    seed_everything(args.seed)
    name, network = find_network(args.name)
    hw = args.input_hw or network.input_shape[1:]
    check_input_hw(network, hw)
    input_shape = (network.input_shape[0], *hw)
    with tempfile.TemporaryDirectory() as folder:
        files = write_variants(name, args.width, input_shape, Path(folder), args.threads)
        rows = measure(files, input_shape, args)
    print(table([formatted(row) for row in rows]))
    if args.csv:
        write_csv(
            args.csv, rows, {"network": name, "width": args.width, "hw": hw, "threads": args.threads, "runs": args.runs}
        )
        print(f"wrote {args.csv}")


def write_variants(name: str, width: float, input_shape: tuple, folder: Path, threads: int) -> dict[str, Path]:
    """Export every variant of the network; weights are random, which costs the same time as trained ones."""
    _, network = find_network(name)
    model = network.build(width=width).eval()
    images = torch.randn(1, *input_shape)

    def int8(fused: bool) -> GraphModule:
        return quantize_after_training(copy.deepcopy(model), input_shape, QuantizationSettings(fused=fused), [images])

    plain, fused = int8(False), int8(True)
    variants: dict[str, nn.Module] = {
        BASE: model,
        "FP32, fused": fuse_upsampling(copy.deepcopy(model)),
        STRAIGHT: plain,
        "INT8": for_onnx_runtime(copy.deepcopy(plain)),
        "INT8, fused": for_onnx_runtime(fused),
    }
    files = {}
    for index, (label, variant) in enumerate(variants.items()):
        logger.info("exporting %s", label)
        files[label] = folder / f"{index}.onnx"
        precision = "int8" if "INT8" in label else "fp32"
        metadata = as_metadata(describe(name, network, width, precision, input_shape, versions()))
        export_onnx(variant, files[label], input_shape, list(network.outputs), metadata, lambda _: [], threads)
    return files


def measure(files: dict[str, Path], input_shape: tuple, args: argparse.Namespace) -> list[Row]:
    """Load each file once, then time them turn by turn."""
    images, predictors, loading = torch.randn(1, *input_shape), {}, {}
    for label, path in files.items():
        predictors[label], loading[label] = timed(lambda path=path: OnnxPredictor(path, args.threads))
    calls = {label: lambda predict=predict: predict(images) for label, predict in predictors.items()}
    latencies = interleaved_latency(calls, args.runs, warmup=2)
    return [row(label, path, latencies, loading[label], files, args) for label, path in files.items()]


def row(label: str, path: Path, latencies: dict[str, Latency], loading: float, files: dict[str, Path], args) -> Row:
    """The figures of one variant."""
    counts = optimised_nodes(path)
    size, latency = path.stat().st_size, latencies[label]
    return Row(
        variant=label,
        p50_ms=latency.p50,
        p90_ms=latency.p90,
        p99_ms=latency.p99,
        faster_than_fp32=latencies[BASE].p50 / latency.p50,
        faster_than_straight=latencies[STRAIGHT].p50 / latency.p50,
        size_mb=size / 1e6,
        of_fp32_size=size / files[BASE].stat().st_size,
        session_s=loading,
        int8_convolutions=counts["QLinearConv"],
        float_convolutions=sum(counts[kind] for kind in FLOAT_CONVOLUTIONS),
        nodes=counts.total(),
    )


def optimised_nodes(path: Path) -> Counter:
    """Operator -> count in the graph that ONNX Runtime makes of a file."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def formatted(row: Row) -> dict[str, str]:
    """The figures as they are printed."""
    values = {key: f"{value:.2f}" if isinstance(value, float) else str(value) for key, value in asdict(row).items()}
    return {**values, "of_fp32_size": f"{row.of_fp32_size:.3f}"}


if __name__ == "__main__":
    run(main, get_args_parser())
