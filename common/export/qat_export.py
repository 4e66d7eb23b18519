"""A trained INT8 network to files for the runtimes, each checked against exact integer arithmetic in PyTorch."""

import copy
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from common.export.in_float import counts, in_float, summary
from common.export.int8_graph import SILU_GATES, for_onnx_runtime, for_xnnpack
from common.export.onnx_writer import export_onnx, input_names_of
from common.export.pte_writer import export_pte
from common.networks.checkpoints import Description
from common.networks.metadata import as_metadata, describe
from common.networks.registry import file_stem, find_network
from common.quantization.integer_reference import as_integer_kernels
from common.runtimes.agreement import Agreement
from common.runtimes.candidates import Candidate
from common.runtimes.parity import Check, compare, require_equal_pixels
from common.runtimes.predictors import OnnxPredictor, Predictor, TorchPredictor
from common.runtimes.pte import PtePredictor
from common.system.environment import versions
from models import Network

logger = logging.getLogger(__name__)

ONNX_LABEL, PTE_LABEL = "ONNX INT8", "ExecuTorch INT8"
ONNX_FILE, PTE_FILE = "{}_QAT_INT8_final.onnx", "{}_QAT_INT8_final.pte"  # of file_stem
PTE_EQUAL_PIXELS = 0.98  # XNNPACK rounds in other places than the reference: 0.994 on CamVid, an eighth-width SceneSeg


def export_int8(
    int8: GraphModule,
    name: str,
    checkpoint: Description,
    folder: Path,
    compared: Sequence[Tensor],
    min_equal_pixels: float,
    threads: int,
    pte: bool = False,
) -> tuple[dict[str, Candidate], list[str]]:
    """Write the ONNX file, and with `pte` the ExecuTorch program, of a converted network.

    Args:
        name: of the network.
        checkpoint: what the network's checkpoint says of itself.
        compared: images (1, 3, H, W) on which each file has to agree with PyTorch.
        min_equal_pixels: on this share of their pixels, 0..1.

    Returns what there is to benchmark by label, and a note on the agreement of each.

    Raises:
        ValueError: a file disagrees; it is not kept.
    """
    name, network = find_network(name)
    input_shape = (network.channels, *checkpoint.input_hw)
    described = describe(name, network, checkpoint.width, "int8", input_shape, versions())
    unsigned = for_onnx_runtime(copy.deepcopy(int8))
    floats = in_float(unsigned)
    check = _check_against(unsigned, network, compared, min_equal_pixels)
    path, outputs = folder / ONNX_FILE.format(file_stem(name)), list(network.outputs or ())
    logger.info("exporting %s", path)
    metadata, names = as_metadata(described | {"in_float": counts(floats)}), input_names_of(network)
    agreements = export_onnx(unsigned, path, input_shape, outputs, metadata, check, threads, input_names=names)
    candidates = {ONNX_LABEL: Candidate(path, partial(OnnxPredictor, path), "int8", checkpoint.input_hw)}
    notes = [summary(floats), *_notes("ONNX Runtime", outputs, agreements, len(compared))]
    if pte:
        path = folder / PTE_FILE.format(file_stem(name))
        logger.info("exporting %s", path)
        reference = for_onnx_runtime(copy.deepcopy(int8), gates=SILU_GATES)  # those of for_xnnpack
        check = _check_against(reference, network, compared, min(min_equal_pixels, PTE_EQUAL_PIXELS))
        program = for_xnnpack(copy.deepcopy(int8))
        agreements = export_pte(program, path, input_shape, described, check, threads)
        candidates[PTE_LABEL] = Candidate(path, partial(PtePredictor, path), "int8", checkpoint.input_hw)
        notes += _notes("ExecuTorch", outputs, agreements, len(compared))
    return candidates, notes


def _notes(runtime: str, outputs: Sequence[str], agreements: Sequence[Agreement], images: int) -> list[str]:
    names = [f", {name}" if len(outputs) > 1 else "" for name in outputs]
    return [
        f"{runtime} against PyTorch INT8 on {images} validation images{name}: {agreement}"
        for name, agreement in zip(names, agreements, strict=True)
    ]


def _check_against(int8: GraphModule, network: Network, compared: Sequence[Tensor], min_equal_pixels: float) -> Check:
    reference = TorchPredictor(as_integer_kernels(int8), torch.device("cpu"))

    def check(candidate: Predictor) -> list[Agreement]:
        agreements = compare(reference, candidate, compared, network.kinds_of)
        require_equal_pixels(agreements, min_equal_pixels)
        return agreements

    return check
