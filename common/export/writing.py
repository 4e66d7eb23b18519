"""A network to a file of its target, ONNX or ExecuTorch, which says of itself what it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from torch import nn
from torch.fx import GraphModule

from common.data.camera import PLAIN
from common.export.camera import CameraFile, require_camera
from common.export.int8_graph import for_target
from common.export.onnx_writer import INPUT, export_onnx
from common.export.options import ExportOptions
from common.export.pte_writer import export_pte
from common.networks.metadata import as_metadata, describe, of_camera
from common.runtimes.agreement import Agreement
from common.runtimes.parity import Check
from common.runtimes.predictors import OnnxPredictor, Predictor
from common.runtimes.pte import PtePredictor
from common.runtimes.targets import DEFAULT_TARGET, TARGETS, of_target
from common.system.environment import versions
from models import Network

# suffix of what is written -> what opens it, with a number of threads
PREDICTORS: Mapping[str, Callable[[Path, int], Predictor]] = {".onnx": OnnxPredictor, ".pte": PtePredictor}


def write_file(
    model: nn.Module,
    path: Path,
    name: str,
    network: Network,
    width: float,
    precision: str,
    input_shape: tuple[int, int, int],
    check: Check,
    options: ExportOptions,
    target: str = DEFAULT_TARGET,
    said: Mapping[str, object] = MappingProxyType({}),
) -> Sequence[Agreement]:
    """Write `model`, the form of the network `name` for a target; whole or not at all.

    Args:
        precision: fp32, fp16 or int8.
        input_shape: (C, H, W), of all inputs in one tensor.
        check: takes the file as a predictor, and raises ValueError where it is not to be kept.
        said: what the file says of itself beside the usual.

    Returns what `check` found of each output.

    Raises:
        ValueError: the network cannot be written so, or the file breaks rules of its target.
    """
    require_camera(options.camera, name, network)
    described = describe(name, network, width, precision, input_shape, versions()) | of_target(target) | dict(said)
    if TARGETS[target].opsets is None:
        assert isinstance(model, GraphModule)
        return export_pte(model, path, input_shape, described, check, options.threads)
    described |= of_camera(options.camera, network)
    camera = None if options.camera == PLAIN else CameraFile(network, input_shape[1:], options.camera)
    return export_onnx(
        model,
        path,
        input_shape,
        as_metadata(described),
        check,
        options.of(precision),
        target,
        camera,
        input_names=tuple(network.inputs) if len(network.inputs) > 1 else (INPUT,),
        output_names=tuple(network.outputs or ()),
    )


def write_candidate(
    name: str,
    network: Network,
    width: float,
    input_shape: tuple[int, int, int],
    options: ExportOptions,
    target: str,
    graph: GraphModule,
    path: Path,
    precision: str,
    named: bool,
) -> None:
    """Write a graph of the network `name` for measurements, in plain form and unchecked; images come one by one.

    Args:
        graph: in float, or as `convert` leaves it; the latter is rewritten for `target`.
        precision: fp32, which ONNX Runtime computes whatever the target, or int8.
        named: nodes say what module they are of.
    """
    options = replace(options, batch=1 if options.batch else None, camera=PLAIN, optimized=False, named=named)
    if precision == "int8":
        graph = for_target(graph, TARGETS[target])
    chosen = target if precision == "int8" else DEFAULT_TARGET
    write_file(graph, path, name, network, width, precision, input_shape, lambda _: [], options, chosen)
