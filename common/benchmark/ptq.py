"""What the training was worth: FP32 weights as they are and quantized without training, as models to compare with."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from common.data.camera import PLAIN
from common.export.conversion import convert_fp32, convert_int8
from common.export.options import ExportOptions
from common.networks.checkpoints import Description
from common.networks.opening import OpenedNetwork, open_network
from common.networks.registry import file_stem
from common.quantization.methods import USUAL, PtqMethods
from common.quantization.settings import QuantizationSettings
from common.runtimes.candidates import Candidate
from common.runtimes.predictors import OnnxPredictor
from common.runtimes.targets import DEFAULT_TARGET

LABELS = ("ONNX FP32", "ONNX INT8 PTQ")
FP32_FILE, PTQ_FILE = "{}_FP32.onnx", "{}_PTQ_INT8.onnx"  # of file_stem


def open_untrained(
    name: str, trained: Description, checkpoint: Path, weights: str | None, num_calibration_samples: int | None
) -> OpenedNetwork:
    """The network of `--compare_ptq` in the input size of the trained one; what cannot be done fails before the work.

    `weights` is the choice between several sets in the file `checkpoint`.

    Raises:
        FileNotFoundError, ValueError: not FP32 weights of the network, or no image to calibrate on.
    """
    if num_calibration_samples == 0:
        raise ValueError("--compare_ptq needs images for the ranges; --num_calibration_samples 1 or more")
    return open_network(name, checkpoint, trained.input_hw, weights)


def fp32_candidate(source: OpenedNetwork, folder: Path, options: ExportOptions) -> dict[str, Candidate]:
    """Write the network `source` to `folder` in FP32: what outputs are compared with."""
    path = folder / FP32_FILE.format(file_stem(source.name))
    convert_fp32(source, path, replace(options, camera=PLAIN))
    return {LABELS[0]: Candidate(path, partial(OnnxPredictor, path), "fp32", source.input_shape[1:])}


def without_training(
    trained: Description,
    source: OpenedNetwork,
    folder: Path,
    calibration: Sequence[Tensor],
    held_out: Sequence[Tensor],
    options: ExportOptions,
    target: str = DEFAULT_TARGET,
    methods: PtqMethods = USUAL,
) -> dict[str, Candidate]:
    """Write the network `source` to `folder` in FP32 and in INT8 by post-training quantization.

    Args:
        trained: what the QAT checkpoint says of itself: its input size and settings are taken.
        calibration, held_out: images (1, 3, H, W); the former give the ranges, the latter judge the file.
        target: that the ONNX file is for.
        methods: of the quantization.

    Raises:
        ValueError: an INT8 file that lost the network.
    """
    settings = replace(QuantizationSettings(**trained.quantization or {}), target=target)
    path = folder / PTQ_FILE.format(file_stem(source.name))
    fp32 = fp32_candidate(source, folder, options)
    convert_int8(source, path, options, settings, calibration, held_out, methods)
    int8 = Candidate(path, partial(OnnxPredictor, path), "int8", trained.input_hw, camera=options.camera)
    return fp32 | {LABELS[1]: int8}
