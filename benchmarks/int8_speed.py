"""Measure how fast one network runs as FP32 and INT8, plain and rewritten, in every runtime that is installed.

All variants run turn by turn in one process. Rows of OpenVINO and of NNCF appear where their packages are installed.
"""

import argparse
import copy
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.int8_limit import float_share, giga_operations, int8_rate
from benchmarks.ort_profile import operator_profile
from benchmarks.others import HAS_NNCF, HAS_OPENVINO, OpenVinoPredictor, quantize_by_nncf, quantize_statically
from benchmarks.tables import cells, told, write_csv
from common.cli.flags import add_name_argument, make_parser
from common.cli.main import run
from common.cli.types import fraction, height_width, positive_int
from common.export.int8_graph import for_target
from common.export.onnx_writer import INPUT, export_onnx
from common.export.options import ExportOptions
from common.export.pte_writer import export_pte
from common.export.subpixel import with_subpixel_convolutions
from common.networks.metadata import as_metadata, describe
from common.networks.registry import build_network, find_network
from common.quantization.pt2e import quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.report.text import table
from common.runtimes.predictors import OnnxPredictor
from common.runtimes.pte import PtePredictor
from common.runtimes.targets import DEFAULT_TARGET, ONNX_RUNTIME, TARGETS
from common.scoring.latency import Latency, interleaved_latency, timed
from common.system.environment import versions
from common.system.files import require_parent
from common.system.process import seed_everything
from models import DEFAULT_NETWORK, check_input_hw
from models.fuse import fuse_upsampling

logger = logging.getLogger(__name__)

FLOAT_OPERATORS = ("Conv", "ConvTranspose", "FusedConv", "Gelu")
BASE, STRAIGHT, INT8 = "FP32", "INT8, straight PT2E", "INT8"
Call = Callable[[Tensor], object]


@dataclass(frozen=True)
class Variant:
    """A file and how it is opened: as something to call with images (1, C, H, W)."""

    path: Path
    open: Callable[[Path], Call]


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
    int8_convolutions: int | None  # in the graph as ONNX Runtime runs it; None in other runtimes
    float_operators: int | None  # FLOAT_OPERATORS
    nodes: int | None


@dataclass(frozen=True)
class Limit:
    """How near the INT8 file comes to what the processor can do."""

    giga_operations: float  # of one input
    giga_operations_per_s: float  # of int8, measured in the same run
    float_share: float  # of the INT8 file's time, 0 to 1

    def sentence(self, rows: Sequence[Row]) -> str:
        """It, beside the times of the rows."""
        milliseconds = {row.variant: row.p50_ms for row in rows}
        least = 1000 * self.giga_operations / self.giga_operations_per_s
        return (
            f"{self.giga_operations:.1f} GOP at the {self.giga_operations_per_s:.0f} GOP/s of a large int8 convolution "
            f"take {least:.1f} ms, {milliseconds[BASE] / least:.1f} times as fast as {BASE}: {INT8} needs "
            f"{milliseconds[INT8] / least:.2f} times that; {self.float_share:.0%} of its time are in float"
        )


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m benchmarks.int8_speed --threads 1 --csv int8_speed.csv")
    parser.set_defaults(threads=1)
    add_name_argument(parser, default=DEFAULT_NETWORK)  # with random weights
    parser.add_argument("--width", type=fraction, default=1.0, help="scale of its decoder's channels")
    parser.add_argument("--input_hw", type=height_width, metavar="H,W", help="default: the network's own")
    parser.add_argument(
        "--runs", type=positive_int, default=20, help="timed runs of each variant, an untimed one before each"
    )
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
        variants = write_variants(name, args.width, input_shape, Path(folder), args.threads)
        rows = measure(variants, input_shape, args.runs)
        print(table([formatted(row) for row in rows]))
        profile = operator_profile(variants[INT8].path, torch.randn(1, *input_shape).numpy(), args.threads)
        print(f"\n{INT8} by operator, milliseconds of one run, {args.threads} threads:")
        print(table(profile))
        operations = giga_operations(fuse_upsampling(build_network(name, network, args.width).eval()), input_shape)
    limit = Limit(operations, int8_rate(args.threads), float_share(profile))
    print(limit.sentence(rows))
    if args.csv:
        settings = {"network": name, "width": args.width, "hw": hw, "threads": args.threads, "runs": args.runs}
        write_csv(args.csv, rows, settings | asdict(limit))
        print(f"wrote {args.csv}")


def write_variants(name: str, width: float, input_shape: tuple, folder: Path, threads: int) -> dict[str, Variant]:
    """Export every variant of the network; weights are random, which costs the same time as trained ones."""
    _, network = find_network(name)
    model = build_network(name, network, width).eval()
    images = torch.randn(1, *input_shape)
    outputs, described = list(network.outputs or ()), partial(describe, name, network, width, input_shape=input_shape)

    def int8(fused: bool, **settings: Any) -> GraphModule:
        chosen = QuantizationSettings(fused=fused, **settings)
        return quantize_after_training(copy.deepcopy(model), input_shape, chosen, [images])

    def onnx_variant(label: str, variant: nn.Module, precision: str, target: str = DEFAULT_TARGET) -> Variant:
        logger.info("exporting %s", label)
        path = folder / f"{len(variants)}.onnx"
        if label == STRAIGHT:  # which keeps no target's rules
            torch.onnx.export(
                variant, (images,), path, dynamo=True, input_names=[INPUT], external_data=False, verbose=False
            )
        else:
            metadata = as_metadata(described(precision, versions=versions()))
            options = ExportOptions(threads)
            export_onnx(variant, path, input_shape, metadata, lambda _: [], options, target, output_names=outputs)
        return Variant(path, partial(OnnxPredictor, threads=threads))

    variants: dict[str, Variant] = {}
    plain, fused = int8(False), int8(True)
    for label, variant in {
        BASE: model,
        "FP32, fused": with_subpixel_convolutions(fuse_upsampling(copy.deepcopy(model)), input_shape),
        STRAIGHT: plain,
        "INT8, not fused": for_target(copy.deepcopy(plain), ONNX_RUNTIME),
        "INT8, GELU and SiLU in float": for_target(copy.deepcopy(fused), replace(ONNX_RUNTIME, gates=())),
        INT8: for_target(copy.deepcopy(fused), ONNX_RUNTIME),
        "INT8, per channel": for_target(int8(True, per_channel=True), ONNX_RUNTIME),
        "INT8, reduced range": for_target(int8(True, reduced_range=True), ONNX_RUNTIME),  # for AVX2 without VNNI
    }.items():
        variants[label] = onnx_variant(label, variant, "int8" if "INT8" in label else "fp32")
    variants[f"{INT8}, {2 * threads} threads"] = Variant(
        variants[INT8].path, partial(OnnxPredictor, threads=2 * threads)
    )
    logger.info("quantizing by ONNX Runtime")
    static = Variant(folder / "static.onnx", variants[BASE].open)
    quantize_statically(variants[BASE].path, [images], static.path)
    variants["INT8, ONNX Runtime's quantize_static"] = static
    logger.info("exporting an ExecuTorch program")
    program = folder / "program.pte"
    for_target(fused, TARGETS["executorch"])
    export_pte(fused, program, input_shape, described("int8", versions=versions()), lambda _: [], threads)
    variants["INT8, ExecuTorch XNNPACK"] = Variant(program, partial(PtePredictor, threads=threads))
    in_openvino = partial(OpenVinoPredictor, threads=threads)
    if HAS_OPENVINO:
        for label in (BASE, STRAIGHT, INT8):
            variants[f"{label}, OpenVINO"] = Variant(variants[label].path, in_openvino)
        own = for_target(int8(True, target="openvino"), TARGETS["openvino"])
        written = onnx_variant("a file for OpenVINO", own, "int8", "openvino")
        variants["INT8, --target openvino, OpenVINO"] = replace(written, open=in_openvino)
    if HAS_NNCF:
        logger.info("quantizing by NNCF")
        quantize_by_nncf(variants[BASE].path, [images], folder / "nncf.xml")
        variants["INT8, NNCF, OpenVINO"] = Variant(folder / "nncf.xml", in_openvino)
    return variants


def measure(variants: dict[str, Variant], input_shape: tuple, runs: int) -> list[Row]:
    """Load each file once, then time them turn by turn; what OpenVINO refuses is left out."""
    images, predictors, loading = torch.randn(1, *input_shape), {}, {}
    for label, variant in variants.items():
        try:
            predictors[label], loading[label] = timed(partial(variant.open, variant.path))
        except RuntimeError as error:
            if "OpenVINO" not in label:
                raise
            logger.warning("%s is left out: %s", label, " ".join(str(error).split()))
    latencies = interleaved_latency(
        {label: partial(predict, images) for label, predict in predictors.items()}, runs, warmup=1, untimed=1
    )
    return [make_row(label, variants, latencies, loading[label]) for label in predictors]


def make_row(label: str, variants: dict[str, Variant], latencies: dict[str, Latency], loading: float) -> Row:
    """The figures of one variant."""
    path, latency = variants[label].path, latencies[label]
    size = size_of(path)
    in_onnx_runtime = path.suffix == ".onnx" and "OpenVINO" not in label
    counts = optimised_nodes(path) if in_onnx_runtime else None
    return Row(
        variant=label,
        p50_ms=latency.p50,
        p90_ms=latency.p90,
        p99_ms=latency.p99,
        faster_than_fp32=latencies[BASE].p50 / latency.p50,
        faster_than_straight=latencies[STRAIGHT].p50 / latency.p50,
        size_mb=size / 1e6,
        of_fp32_size=size / size_of(variants[BASE].path),
        session_s=loading,
        int8_convolutions=counts and counts["QLinearConv"],
        float_operators=counts and sum(counts[kind] for kind in FLOAT_OPERATORS),
        nodes=counts and counts.total(),
    )


def size_of(path: Path) -> int:
    """Bytes of a model's file; OpenVINO's own has its weights beside it."""
    return sum(part.stat().st_size for part in {path, path.with_suffix(".bin")} if part.is_file())


def optimised_nodes(path: Path) -> Counter:
    """Operator -> count in the graph that ONNX Runtime makes of a file."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def formatted(row: Row) -> dict[str, str]:
    """The figures as they are printed."""
    return {**cells(row, 2), "of_fp32_size": told(row.of_fp32_size)}


if __name__ == "__main__":
    run(main, get_args_parser())
