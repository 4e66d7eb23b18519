"""Predictors: a PyTorch network and an ONNX file, both called like a model, batch of images in, logits out."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from common.runtimes.int8_kernels import sums_saturate
from common.runtimes.onnx_files import SHAPES_OF_IMAGES, free_sizes, read_graph, shape_nodes
from common.runtimes.optimized import OptimizedNote
from common.runtimes.providers import CPU, PROVIDERS

logger = logging.getLogger(__name__)

EXACT_INT8 = "session.x64quantprecision"
EXACT_INT8_FAILURE = "Attempt to replace the existing tensor"  # when a file cannot be prepared for it
MAP_RANK = 3  # of a map of ids
NUMBERS = re.compile(r"tensor\((float|float16|double|bool|u?int(8|16|32|64))\)")  # of an output


class Predictor(Protocol):
    """Images (N, C, H, W) float32, or in the form of a camera's file, on the CPU in, tensors on the CPU out."""

    provider: str  # what computes: an execution provider of ONNX Runtime, or PyTorch and its device

    def __call__(self, images: Tensor) -> Tensor:
        """The first output, for a segmentation network the logits (N, classes, H, W)."""

    def outputs(self, images: Tensor) -> list[Tensor]:
        """All outputs, in the network's order."""


class TorchPredictor:
    """A PyTorch module in eval mode. A call includes the copies to and from `device`, so a clock around it is fair."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device = model.to(device), device
        self.provider = f"PyTorch {device}"

    def __call__(self, images: Tensor) -> Tensor:
        return self.outputs(images)[0]

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> list[Tensor]:
        """All outputs, in the network's order."""
        result = self.model(images.to(self.device))
        return [output.cpu() for output in (result if isinstance(result, tuple) else (result,))]


class OnnxPredictor:
    """An ONNX file in ONNX Runtime. One session, built once; the provider is the one asked for, for every node that
    computes with images.

    Args:
        provider: one of PROVIDERS.
        shape: of all inputs to come, (N, C, H, W), where a provider other than the CPU's is to know it beforehand.
        optimize: whether ONNX Runtime optimises the graph, on the CPU; without, pairs are computed in float.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no ONNX model, or the provider is not there or does not take all of it.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        provider: str = CPU,
        shape: Sequence[int] | None = None,
        optimize: bool = True,
    ):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such ONNX file")
        require_provider(provider)
        try:
            if provider == CPU:
                self.session = _cpu_session(path, threads, optimize)
            else:
                self.session = _session(path, threads, provider, shape)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common public base
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: ONNX Runtime cannot load it for {provider} ({reason})") from error
        self.provider = self.session.get_providers()[0]
        if self.provider != PROVIDERS[provider]:  # it does so when a library of the provider is missing
            raise ValueError(f"{path}: ONNX Runtime fell back from {provider} to {self.provider}")
        if left := [] if provider == CPU else nodes_left_to_cpu(self.session, read_graph(path)):
            raise ValueError(
                f"{path}: ONNX Runtime leaves {len(left)} nodes to the CPU that {provider} does not take, the first is "
                f"{left[0]}; its times would be of both"
            )
        self.input_names = [each.name for each in self.session.get_inputs()]
        outputs = self.session.get_outputs()
        self.path, self.output_names = path, [output.name for output in outputs]
        if strange := [f"{each.name} {each.type}" for each in outputs if not NUMBERS.fullmatch(each.type)]:
            raise ValueError(f"{path}: gives {strange[0]}; wanted a tensor of numbers that NumPy has")

    def __call__(self, images: Tensor) -> Tensor:
        return self.outputs(images)[0]

    def outputs(self, images: Tensor) -> list[Tensor]:
        """All outputs, in the file's order; ValueError where a node fails on these images."""
        try:
            arrays = self.session.run(None, self._fed(images))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common public base
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.path}: ONNX Runtime fails on images {tuple(images.shape)} ({reason})") from error
        return [torch.from_numpy(array) for array in arrays]

    def _fed(self, images: Tensor) -> dict[str, np.ndarray]:
        """Images for one input, or one tensor (N, count C, H, W) for several."""
        parts = images.chunk(len(self.input_names), dim=1)
        contiguous = (np.ascontiguousarray(part.numpy()) for part in parts)
        return dict(zip(self.input_names, contiguous, strict=True))


def class_map(output: Tensor) -> Tensor:
    """The class ids of an output of `require_class_map`, uint8 (1, H, W)."""
    if output.dim() == MAP_RANK:
        return output
    return output.max(dim=1).indices.to(torch.uint8)  # argmax takes ten times as long over this axis


def require_class_map(logits: Tensor, classes: int, hw: tuple[int, int], label: str) -> None:
    """Raise ValueError where the output of the model `label` for one image is no map of so many classes in its size,
    or holds what no class can be read from. It is logits (1, classes, H, W), or ids as uint8 (1, H, W)."""
    if logits.dtype == torch.uint8 and logits.shape == (1, *hw):
        if int(logits.max()) >= classes:
            raise ValueError(f"{label}: its map holds the class {int(logits.max())}, there are {classes}")
        return
    wanted = (1, classes, *hw)
    if logits.shape != wanted:
        raise ValueError(f"{label}: output {tuple(logits.shape)}, wanted {wanted}; not a map of the classes")
    if bool(logits.isnan().any()):
        raise ValueError(f"{label}: its output holds NaN; are its weights, or its FP16 or INT8 ranges, damaged?")


def require_provider(provider: str) -> None:
    """Raises ValueError when this ONNX Runtime was built without it."""
    available = ort.get_available_providers()
    if PROVIDERS[provider] not in available:
        here = ", ".join(name for name, full in PROVIDERS.items() if full in available)
        raise ValueError(
            f"provider {provider}: this ONNX Runtime has {here} only; install the onnxruntime package that has it"
        )


def nodes_left_to_cpu(session: ort.InferenceSession, model: onnx.ModelProto) -> list[str]:
    """The nodes of a session of `_session` that compute with images and are not its provider's, as "operator name".

    ONNX Runtime keeps nodes that compute shapes on the CPU by itself; they cost nothing and do not count.
    """
    computed, shapes = session.get_provider_graph_assignment_info(), shape_nodes(model)
    left = [node for part in computed if part.ep_name == PROVIDERS[CPU] for node in part.get_nodes()]
    return [
        f"{node.op_type} {node.name}"
        for node in left
        if node.op_type not in SHAPES_OF_IMAGES and node.name not in shapes
    ]


def _session(path: Path, threads: int, provider: str, shape: Sequence[int] | None) -> ort.InferenceSession:
    """A session on another provider than the CPU's. With the shape of its inputs there is none to compute."""
    options = session_options(threads, exact_int8=False)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, size in free_sizes(read_graph(path), shape).items() if shape else ():
        options.add_free_dimension_override_by_name(name, size)
    return ort.InferenceSession(path, options, providers=[PROVIDERS[provider]])


def _cpu_session(path: Path, threads: int, optimize: bool) -> ort.InferenceSession:
    """A session with exact INT8: where the default kernels saturate sums at 16 bits, with the slower ones that do not.

    ONNX Runtime fails to prepare files for those whose int8 weights share a zero point, which other tools may write;
    they run on the default kernels, with a warning, as do optimized files, whose operators are chosen already.
    """
    try:
        options = session_options(threads, sums_saturate(), optimize)
        session = ort.InferenceSession(path, options, providers=[PROVIDERS[CPU]])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common public base
        if EXACT_INT8_FAILURE not in str(error):
            raise
        logger.warning("%s: ONNX Runtime's exact INT8 kernels cannot take it; sums may saturate", path)
        options = session_options(threads, False, optimize)
        return ort.InferenceSession(path, options, providers=[PROVIDERS[CPU]])
    note = OptimizedNote.of(session.get_modelmeta().custom_metadata_map) if sums_saturate() else None
    if note and note.weight_bits > 7:
        logger.warning("%s: optimized without --reduced_range; sums may saturate on this processor", path)
    return session


def session_options(threads: int, exact_int8: bool, optimize: bool = True) -> ort.SessionOptions:
    """What every session of this toolkit has.

    `exact_int8` halves the speed where the processor has an int8 dot product (measured on an AMD EPYC with AVX-512
    VNNI), though nothing can saturate there: ask for it only where `sums_saturate`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # failures are raised, too; warnings of the optimiser are of no use to a user
    # threads that wait for the next run would take the processors from the model whose turn is next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(EXACT_INT8, str(int(exact_int8)))
    return options
