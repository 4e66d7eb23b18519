"""A trained INT8 network to files for the runtimes, each checked against exact integer arithmetic in PyTorch."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from common.data.camera import PLAIN
from common.export.in_float import counts, in_float, summary
from common.export.int8_graph import for_target
from common.export.options import ExportOptions
from common.export.writing import PREDICTORS, write_file
from common.networks.checkpoints import Description
from common.networks.registry import file_stem, find_network
from common.quantization.integer_reference import as_integer_kernels
from common.runtimes.agreement import Agreement
from common.runtimes.candidates import Candidate
from common.runtimes.parity import Check, compare, require_equal_pixels
from common.runtimes.predictors import Predictor, TorchPredictor
from common.runtimes.targets import DEFAULT_TARGET, ONNX_RUNTIME, TARGETS, Target
from models import Network

logger = logging.getLogger(__name__)

FILE = "{}_QAT_INT8_final{}"  # of file_stem, and its target's suffix
PTE = "executorch"


def targets_to_write(trained: str, asked: str | None, pte: bool) -> tuple[str, ...]:
    """The targets that files of a checkpoint are written for: its own or the one asked for, and with `pte` ExecuTorch.

    Raises:
        ValueError: the network was trained for a target whose quantization is another.
    """
    wanted = tuple(dict.fromkeys([asked or trained, *[PTE] * pte]))
    for each in wanted:
        if not TARGETS[each].fits(TARGETS[trained]):
            flag = f"--target {each}" if each == asked else "--pte"
            raise ValueError(
                f"{flag}: the checkpoint is trained for {TARGETS[trained].title}, whose quantization is another; train "
                f"with quantize_model_sceneseg.py --target {each}"
            )
    return wanted


def labels_of(targets: Sequence[str]) -> list[str]:
    """What the files for some targets are called in a benchmark."""
    return ["ONNX INT8" if TARGETS[each].opsets else f"{TARGETS[each].title} INT8" for each in targets]


def export_int8(
    int8: GraphModule,
    name: str,
    checkpoint: Description,
    folder: Path,
    compared: Sequence[Tensor],
    min_equal_pixels: float,
    options: ExportOptions,
    targets: Sequence[str] = (DEFAULT_TARGET,),
    corrected: Sequence[str] = (),
) -> tuple[dict[str, Candidate], list[str]]:
    """Write a converted network for some targets, at most one of which takes ONNX files.

    Args:
        name: of the network.
        checkpoint: what the network's checkpoint says of itself.
        compared: images (1, 3, H, W) on which each file has to agree with PyTorch.
        min_equal_pixels: on this share of their pixels, 0..1; less where a target rounds in other places.
        corrected: names of the methods without training from whose weights the training started.

    Returns what there is to benchmark by label, and a note on the agreement of each.

    Raises:
        ValueError: a file disagrees, or breaks its target's rules; it is not kept.
    """
    name, network = find_network(name)
    input_shape = (network.channels, *checkpoint.input_hw)
    candidates: dict[str, Candidate] = {}
    notes = [f"trained from FP32 weights corrected by {', '.join(corrected)}"] if corrected else []
    for target, label in zip(targets, labels_of(targets), strict=True):
        row = TARGETS[target]
        rewritten = for_target(copy.deepcopy(int8), row)
        floats = in_float(rewritten, row)
        share = min(min_equal_pixels, row.equal_pixels)
        check = _check_against(_reference(int8, rewritten, row), network, compared, share)
        path = folder / FILE.format(file_stem(name), row.suffix)
        logger.info("exporting %s", path)
        agreements = write_file(
            rewritten,
            path,
            name,
            network,
            checkpoint.width,
            "int8",
            input_shape,
            check,
            options,
            target,
            {"in_float": counts(floats)} | ({"trained_from": list(corrected)} if corrected else {}),
        )
        takes_onnx = row.opsets is not None
        if takes_onnx:
            notes.append(summary(floats))
        camera = options.camera if takes_onnx else PLAIN
        opener = partial(PREDICTORS[path.suffix], path)
        candidates[label] = Candidate(path, opener, "int8", checkpoint.input_hw, camera=camera)
        runtime = "ONNX Runtime" if takes_onnx else row.title
        notes += _notes(runtime, list(network.outputs or ()), agreements, len(compared))
    return candidates, notes


def _reference(int8: GraphModule, rewritten: GraphModule, target: Target) -> GraphModule:
    """What a file is compared with: exact integer arithmetic, or the arithmetic in float between pairs of a target
    whose quantization has no such form here."""
    if not target.fits(ONNX_RUNTIME):
        return rewritten
    gates = for_target(copy.deepcopy(int8), replace(ONNX_RUNTIME, gates=target.gates))
    return as_integer_kernels(gates)


def _notes(runtime: str, outputs: Sequence[str], agreements: Sequence[Agreement], images: int) -> list[str]:
    names = [f", {name}" if len(outputs) > 1 else "" for name in outputs]
    return [
        f"{runtime} against PyTorch INT8 on {images} validation images{name}: {agreement}"
        for name, agreement in zip(names, agreements, strict=True)
    ]


def _check_against(graph: GraphModule, network: Network, compared: Sequence[Tensor], min_equal_pixels: float) -> Check:
    reference = TorchPredictor(graph, torch.device("cpu"))

    def check(candidate: Predictor) -> list[Agreement]:
        agreements = compare(reference, candidate, compared, network.kinds_of)
        require_equal_pixels(agreements, min_equal_pixels)
        return agreements

    return check
