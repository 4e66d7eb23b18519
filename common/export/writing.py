"""A network to a file of its target, ONNX or ExecuTorch, which says of itself what it is."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import nn
from torch.fx import GraphModule

from common.data.camera import PLAIN
from common.export.camera import CameraFile, require_camera
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
