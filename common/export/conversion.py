"""A network to an ONNX file in FP32, FP16 or INT8, each judged against the FP32 network in PyTorch."""

import copy
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from common.data.camera import PLAIN
from common.export.camera import CameraFile
from common.export.in_float import counts, in_float, tell
from common.export.int8_graph import for_target
from common.export.onnx_writer import HalfPrecision
from common.export.options import ExportOptions
from common.export.subpixel import with_subpixel_convolutions
from common.export.writing import PREDICTORS, write_file
from common.networks.opening import OpenedNetwork
from common.quantization.methods import USUAL, PtqMethods
from common.quantization.pt2e import Calibrated, calibrate_network
from common.quantization.settings import QuantizationSettings
from common.runtimes.agreement import Agreement
from common.runtimes.parity import TOLERANCE, Check, compare, example_inputs, require_agreement
from common.runtimes.predictors import Predictor, TorchPredictor
from common.runtimes.targets import DEFAULT_TARGET, TARGETS
from common.scoring.latency import interleaved_latency
from models.fuse import FusedUpsampleStage, fuse_upsampling

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
HALF_TOLERANCE = 2e-2  # of the output range; FP16 has 11 bits, and every layer rounds
SMALLEST_SQNR = 3.0  # dB; an INT8 file below it computes something else
TIMED_RUNS = 5


def convert_fp32(source: OpenedNetwork, path: Path, options: ExportOptions) -> Sequence[Agreement]:
    """Write FP32 ONNX; the agreement of each output with PyTorch on example inputs."""
    model = _as_written(_float_model(source, options), source)
    return _export(source, model, path, "fp32", _parity_check(source, options, TOLERANCE), options)


def convert_half(source: OpenedNetwork, path: Path, options: ExportOptions) -> Sequence[Agreement]:
    """Write FP16 ONNX with FP32 input and outputs; the agreement of each output with FP32 on example inputs."""
    half = _as_written(HalfPrecision(_float_model(source, options)).eval(), source)
    return _export(source, half, path, "fp16", _parity_check(source, options, HALF_TOLERANCE), options)


def convert_int8(
    source: OpenedNetwork,
    path: Path,
    options: ExportOptions,
    settings: QuantizationSettings,
    calibration: Sequence[Tensor],
    held_out: Sequence[Tensor],
    methods: PtqMethods = USUAL,
) -> Sequence[Agreement]:
    """Write INT8 by `methods` from `calibration`; the agreement of each output with FP32 on `held_out`.

    The file is of the kind that `settings.target` takes.

    Raises:
        ValueError: the INT8 outputs have little to do with FP32's.
    """
    calibrated = calibrate_source(source, settings, calibration, methods)
    return write_int8(source, calibrated.finished(), path, options, settings.target, held_out, methods)


def calibrate_source(
    source: OpenedNetwork, settings: QuantizationSettings, calibration: Sequence[Tensor], methods: PtqMethods = USUAL
) -> Calibrated:
    """A copy of the network with ranges from images (1, C, H, W)."""
    return calibrate_network(copy.deepcopy(source.model), source.input_shape, settings, calibration, methods)


def write_int8(
    source: OpenedNetwork,
    int8: GraphModule,
    path: Path,
    options: ExportOptions,
    target: str,
    held_out: Sequence[Tensor],
    methods: PtqMethods = USUAL,
) -> Sequence[Agreement]:
    """Write a network that `methods` quantized, whose graph is rewritten for `target`; else as `convert_int8`."""
    int8 = for_target(int8, TARGETS[target])
    floats = in_float(int8, TARGETS[target])
    tell(floats)

    def check(candidate: Predictor) -> list[Agreement]:
        images = [_as_batch(image, options) for image in held_out]
        agreements = compare(TorchPredictor(source.model, CPU), candidate, images)
        if bad := [agreement for agreement in agreements if not agreement.sqnr_db >= SMALLEST_SQNR]:
            raise ValueError(f"INT8 lost the network: {bad[0]}; wanted an SQNR of at least {SMALLEST_SQNR} dB")
        return agreements

    said = {"in_float": counts(floats), "ptq": methods.names}
    return _export(source, int8, path, "int8", check, options, target, said)


def _float_model(source: OpenedNetwork, options: ExportOptions) -> nn.Module:
    """A copy of the network to write; `source.model` stays what the file is compared with."""
    model = copy.deepcopy(source.model)
    return fuse_upsampling(model) if options.fuse else model


def _as_written(model: nn.Module, source: OpenedNetwork) -> nn.Module:
    """The operators that ONNX Runtime is fast at, where there are fused stages."""
    fused = any(isinstance(module, FusedUpsampleStage) for _, module in model.named_modules())
    return with_subpixel_convolutions(model, source.input_shape) if fused else model


def _export(
    source: OpenedNetwork,
    model: nn.Module,
    path: Path,
    precision: str,
    check: Check,
    options: ExportOptions,
    target: str = DEFAULT_TARGET,
    said: Mapping[str, object] = MappingProxyType({}),
) -> Sequence[Agreement]:
    logger.info("exporting %s (width %g) as %s with input %s", source.name, source.width, precision, source.input_shape)
    network, width = source.network, source.width
    return write_file(
        model, path, source.name, network, width, precision, source.input_shape, check, options, target, said
    )


def _parity_check(source: OpenedNetwork, options: ExportOptions, tolerance: float) -> Check:
    inputs = example_inputs(source.input_shape, options.seed)
    if options.batch:
        inputs = [_as_batch(images[:1], options) for images in inputs]

    def check(candidate: Predictor) -> list[Agreement]:
        agreements = compare(TorchPredictor(source.model, CPU), candidate, inputs)
        require_agreement(agreements, tolerance)
        return agreements

    return check


def _as_batch(image: Tensor, options: ExportOptions) -> Tensor:
    """One image as the batch that the file takes."""
    return image.expand(options.batch or 1, -1, -1, -1).contiguous()


def compare_with_fp32(source: OpenedNetwork, path: Path, image: Tensor, options: ExportOptions) -> list[dict[str, str]]:
    """Rows of size and time of a file and of the FP32 file of the same network, timed turn by turn on `image`."""
    images = _as_batch(image, options)
    fed = {"FP32": images, "INT8": CameraFile(source.network, source.input_shape[1:], options.camera).fed(images)}
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder) / "fp32.onnx"
        convert_fp32(source, fp32, replace(options, camera=PLAIN))
        files = {"FP32": fp32, "INT8": path}
        sizes = {label: file.stat().st_size for label, file in files.items()}
        predictors: dict[str, Predictor] = {
            label: PREDICTORS[file.suffix](file, options.threads) for label, file in files.items()
        }
    calls = {label: lambda predict=predict, given=fed[label]: predict(given) for label, predict in predictors.items()}
    latencies = interleaved_latency(calls, TIMED_RUNS)
    return [
        {
            "model": label,
            "size MB": f"{sizes[label] / 1e6:.2f}",
            "of FP32": f"{sizes[label] / sizes['FP32']:.3f}",
            f"p50 ms, threads: {options.threads}": f"{latencies[label].p50:.2f}",
            "speed": f"{latencies['FP32'].p50 / latencies[label].p50:.2f}x",
        }
        for label in files
    ]
