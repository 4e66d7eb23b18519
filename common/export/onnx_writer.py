"""ONNX: the only call of the exporter, and the check against PyTorch before a file is kept."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import opset18
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from common.export.camera import CameraFile
from common.export.half_precision import to_half
from common.export.onnx_integers import (
    hold_float_weights,
    pad_constant_channels,
    share_no_zero_points,
    store_integer_biases,
)
from common.export.onnx_passes import (
    lower_average_pools,
    lower_to_17,
    separate_weights,
    store_weights_in_float,
    store_zero_points,
)
from common.export.optimized import use_integer_operators
from common.export.options import OPSET, ExportOptions
from common.export.same_outputs import SameOutputs
from common.quantization.rewrites import REWRITE
from common.runtimes.agreement import Agreement
from common.runtimes.layer_times import MODULE_NAMES
from common.runtimes.parity import Check
from common.runtimes.predictors import OnnxPredictor, Predictor
from common.runtimes.target_check import require_rules
from common.runtimes.targets import DEFAULT_TARGET, TARGETS, Target
from common.system.files import atomic_path
from common.system.user_code import one_line

INPUT = "input"  # the name of the one input of most networks
OLDEST_WRITTEN = 18  # by the exporter; 17 is made of it


class HalfPrecision(nn.Module):
    """A network that computes in FP16 and is fed and read in FP32. Its weights become FP16 in place."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.half()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.model(x.half())
        if isinstance(outputs, tuple):
            return tuple(output.float() for output in outputs)
        return outputs.float()


class SeparateInputs(nn.Module):
    """A network that takes the images of one input each for itself."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.model(torch.cat(images, dim=1))


def export_onnx(
    model: nn.Module,
    path: Path,
    input_shape: tuple[int, int, int],
    metadata: dict[str, str],
    check: Check,
    options: ExportOptions,
    target: str = DEFAULT_TARGET,
    camera: CameraFile | None = None,
    input_names: Sequence[str] = (INPUT,),
    output_names: Sequence[str] = (),
) -> Sequence[Agreement]:
    """Write `model` as ONNX with inputs (batch, C, H, W).

    Args:
        input_shape: that of all inputs in one tensor, as `model` takes them; in the file each has its own.
        options: with `batch` None the batch axis is dynamic; with `half` what an INT8 file computes in float is FP16;
            with `optimized` its operators are integer, as ONNX Runtime makes them of pairs, and on the images of
            `check` it gives the same without graph optimisation in every bit.
        camera: the form of the file, which gives what the plain one gives of the same pixels; `check` sees the plain
            one.
        output_names: without them the exporter's.

    The file gets its name only when the ONNX checker, the rules of `target` and `check` accept it: `check` takes the
    file as a predictor and raises ValueError where it disagrees with PyTorch.
    """
    proto = _exported(model, input_shape, options, input_names, output_names)
    _apply_passes(proto, options, TARGETS[target])
    onnx.helper.set_model_props(proto, metadata)
    with atomic_path(path) as temporary:
        return check(_saved(proto, temporary, options, target, camera))


def _exported(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    options: ExportOptions,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> onnx.ModelProto:
    """What PyTorch's exporter makes of a network.

    Raises:
        ValueError: it holds what ONNX has no form of.
    """
    count = len(input_names)
    shape = (options.batch or 2, input_shape[0] // count, *input_shape[1:])
    dynamic = {0: torch.export.Dim("batch", min=1)} if options.batch is None else None
    try:
        program = torch.onnx.export(
            model if count == 1 else SeparateInputs(model),
            tuple(torch.zeros(shape) for _ in input_names),  # one tensor given twice would be one input
            dynamo=True,
            opset_version=max(options.opset or OPSET, OLDEST_WRITTEN),
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=(dynamic,) if count == 1 else ((dynamic,) * count,),
            custom_translation_table={torch.ops.aten.adaptive_avg_pool2d.default: adaptive_average_pool},
            optimize=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"the network cannot be written as ONNX: {one_line(error)}; {REWRITE}") from error
    assert program is not None  # of the exporter that `dynamo` chooses
    optimize_ir(program.model, num_iterations=1)  # the exporter's own goes over the graph once more and finds nothing
    return program.model_proto


def _apply_passes(proto: onnx.ModelProto, options: ExportOptions, target: Target) -> None:
    """Give an exported file the operator set, the precision and what its target wants, in place."""
    _strip_notes(proto, {MODULE_NAMES} if options.named else set())
    store_zero_points(proto)
    separate_weights(proto)
    if options.opset is None:
        if target.slow_pools:
            lower_average_pools(proto)
    elif options.opset < OLDEST_WRITTEN:
        lower_to_17(proto)
    pad_constant_channels(proto)
    if target.integers:
        store_integer_biases(proto)
        share_no_zero_points(proto)
        hold_float_weights(proto)
    if target.float_weights:
        store_weights_in_float(proto)
    if options.half:
        to_half(proto)


def _saved(
    proto: onnx.ModelProto, path: Path, options: ExportOptions, target: str, camera: CameraFile | None
) -> Predictor:
    """Write the file in its form, and read it again; it gives its outputs only where they are those of the plain file.

    Raises:
        ValueError: the file breaks rules of ONNX or of its target, or cannot be brought into its form.
    """
    _save(proto, path, target)
    plain = OnnxPredictor(path, options.threads)
    if camera:
        camera.rewrite(proto)
        _save(proto, path, target)
    if options.optimized:
        use_integer_operators(path)
    if not (camera or options.optimized):
        return plain
    return SameOutputs(plain, OnnxPredictor(path, options.threads, optimize=not options.optimized), camera)


def _save(proto: onnx.ModelProto, path: Path, target: str) -> None:
    onnx.checker.check_model(proto, full_check=True)
    require_rules(proto, target)
    onnx.save(proto, path)


def adaptive_average_pool(x: Any, output_size: Sequence[int]) -> Any:
    """Means of an image's parts, of which ONNX has a form only where they are equal.

    Over the whole image as one node, of which ONNX Runtime has an int8 form, where the exporter writes a ReduceMean;
    of equal parts as an average pool; of parts that overlap as two matrix products, of rows and of columns.
    """
    sizes = [x.shape[axis] for axis in (2, 3)]
    if list(output_size) == [1, 1]:
        return opset18.GlobalAveragePool(x)
    if not any(size % parts for size, parts in zip(sizes, output_size, strict=True)):
        steps = [size // parts for size, parts in zip(sizes, output_size, strict=True)]
        return opset18.AveragePool(x, kernel_shape=steps, strides=steps)
    of_rows, of_columns = (_means(size, parts) for size, parts in zip(sizes, output_size, strict=True))
    rows, columns = (opset18.Constant(value=onnx.numpy_helper.from_array(each)) for each in (of_rows, of_columns.T))
    return opset18.MatMul(opset18.MatMul(rows, x), columns)


def _means(size: int, parts: int) -> np.ndarray:
    """The matrix (parts, size) of the means that PyTorch's adaptive pool takes along an axis."""
    starts = [part * size // parts for part in range(parts)]
    ends = [-(-(part + 1) * size // parts) for part in range(parts)]
    places = np.arange(size)
    return np.stack(
        [((places >= start) & (places < end)) / (end - start) for start, end in zip(starts, ends, strict=True)]
    ).astype(np.float32)


def _strip_notes(proto: onnx.ModelProto, kept: Collection[str]) -> None:
    """Take out the exporter's notes to itself: they hold this machine's source paths and weigh more than the nodes.

    Those of the names in `kept` stay.
    """
    graph = proto.graph
    del graph.value_info[:]
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        notes = [(note.key, note.value) for note in item.metadata_props if note.key in kept]
        del item.metadata_props[:]
        for key, value in notes:
            item.metadata_props.add(key=key, value=value)
        item.doc_string = ""
