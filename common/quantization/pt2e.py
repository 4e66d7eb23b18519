"""Quantization-aware training and conversion with PT2E.

The steps and their names are those of the PyTorch 2 Export quantization flow: export -> prepare (insert observers and
fake quantization) -> train or calibrate -> convert (int8 weights, quantize and dequantize around every quantized
operator).
"""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import disable_observer, enable_observer
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from common.quantization.adaptive_rounding import learn_rounding
from common.quantization.batch_norm import (
    batch_norm_attributes,
    fold_batch_norm,
    join_again,
    raise_zero_factors,
    restore_batch_norm,
    set_apart,
)
from common.quantization.bias_correction import correct_biases
from common.quantization.equalization import equalize
from common.quantization.folding import BATCH_NORM, fold_exported_batch_norm
from common.quantization.graphs import DEQUANTIZE as DEQUANTIZE
from common.quantization.graphs import DEQUANTIZE_PER_CHANNEL as DEQUANTIZE_PER_CHANNEL
from common.quantization.graphs import QUANTIZE as QUANTIZE
from common.quantization.graphs import drop_unused_values, export_graph
from common.quantization.methods import ADAROUND, CORRECT_BIASES, EQUALIZE, RANGES, USUAL, PtqMethods
from common.quantization.observing import images_at_once, ranges_from_histograms
from common.quantization.quantizer import NetworkQuantizer, hold_ranges_of_several, modules_matching
from common.quantization.rewrites import without_random_factors
from common.quantization.settings import QatSchedule, QuantizationSettings
from common.quantization.simulation import fake_quantizations, inside, without_rounding
from common.runtimes.targets import TARGETS
from models.backbone import remove_stochastic_depth
from models.fuse import fuse_upsampling

DROPOUT = (torch.ops.aten.dropout.default, torch.ops.aten.dropout_.default)  # (input, p, train)


IMAGES_SIDE_BY_SIDE = 32  # at most, of the methods that change weights


def prepare_qat(
    model: nn.Module, input_hw: tuple[int, int], settings: QuantizationSettings, channels: int = 3
) -> GraphModule:
    """Export `model`, which takes (N, channels, H, W), for any N and insert fake quantization.

    Stochastic depth is taken out first: an exported graph would keep drawing its random numbers in eval mode.
    Parameters keep their names, so `prepared.state_dict()` holds the weights beside the observers' state. `model` is
    changed in place.
    """
    remove_stochastic_depth(model)
    if settings.fused:
        fuse_upsampling(model)
    model = model.train().to(memory_format=torch.channels_last)  # faster; here, so that a resumed run has it too
    quantizer = _quantizer(settings, is_qat=True)
    graph = export_graph(model, (channels, *input_hw))
    without_random_factors(graph)
    attributes = batch_norm_attributes(graph)
    set_apart(graph)
    raise_zero_factors(graph)
    prepared = prepare_qat_pt2e(graph, quantizer)
    join_again(prepared)
    restore_batch_norm(prepared, attributes)
    hold_ranges_of_several(prepared)
    return prepared


def _quantizer(settings: QuantizationSettings, is_qat: bool, methods: PtqMethods = USUAL) -> NetworkQuantizer:
    """What marks a graph by the settings, for training or for calibration alone, where `methods` find the ranges."""
    row = TARGETS[settings.target]
    return NetworkQuantizer(settings.per_channel, is_qat, settings.keep_float, row, settings.reduced_range, methods)


def with_float_modules(prepared: GraphModule, modules: Sequence[str]) -> GraphModule:
    """A copy of a calibrated graph, or one that was trained, with more modules in float, by their names."""
    return without_rounding(prepared, inside(prepared, modules))


def float_form(prepared: GraphModule) -> GraphModule:
    """The network that a graph prepared for training is in float, as `convert` leaves what it does not quantize."""
    floats = without_rounding(prepared, fake_quantizations(prepared))
    set_evaluation_mode(floats)
    fold_batch_norm(floats)
    drop_unused_values(floats)
    floats.training = False  # see export_graph
    return floats


@dataclass(frozen=True)
class Calibrated:
    """A network of which the ranges are known, to be quantized without training, with any of its modules in float.

    Attributes:
        floats: the network in float, with equalized channels where the methods say so.
        prepared: the same with observers that have seen the images.
        seen: images of the methods that change weights.
        kept: modules that stay in float in any case.
        scales: by what equalization divided the channels of each tensor, as `equalize` says.
        fixed: names of operators whose weights, factors and biases stay as they are.
        fixed_biases: of others whose biases stay.
    """

    floats: GraphModule
    prepared: GraphModule
    seen: Sequence[Tensor]
    methods: PtqMethods
    kept: Sequence[str]
    scales: Mapping[str, Tensor]
    fixed: Collection[str]
    fixed_biases: Collection[str]

    def quantized(self, keep_float: Sequence[str] = ()) -> GraphModule:
        """The INT8 network before weights are changed: as fast as in the end; `keep_float` are names of modules."""
        return convert(with_float_modules(self.prepared, [*self.kept, *keep_float]))

    @property
    def changes_weights(self) -> bool:
        """Whether `finished` does more than `quantized`."""
        return ADAROUND in self.methods.on_weights or CORRECT_BIASES in self.methods.on_weights

    def rounded(self, keep_float: Sequence[str] = ()) -> GraphModule:
        """The INT8 network with learned rounding, before biases are corrected for the errors of what is in int8."""
        int8 = self.quantized(keep_float)
        if ADAROUND in self.methods.on_weights:
            learn_rounding(self.floats, int8, self.seen, self.methods.time_limit, self.fixed)
        return int8

    def finished(self, keep_float: Sequence[str] = ()) -> GraphModule:
        """The INT8 network."""
        int8 = self.rounded(keep_float)
        if CORRECT_BIASES in self.methods.on_weights:
            correct_biases(self.floats, int8, self.seen, {*self.fixed, *self.fixed_biases})
        return int8


def calibrate_network(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    settings: QuantizationSettings,
    batches: Iterable[Tensor],
    methods: PtqMethods = USUAL,
) -> Calibrated:
    """The network with ranges of what `batches` (N, C, H, W) cause.

    Works for every network of the family; `model` is in eval mode and is changed in place.
    """
    if settings.fused:
        fuse_upsampling(model)
    graph = export_graph(model, input_shape)
    fold_exported_batch_norm(graph)
    return calibrate_folded(graph, settings, batches, methods)


def calibrate_folded(
    graph: GraphModule,
    settings: QuantizationSettings,
    batches: Iterable[Tensor],
    methods: PtqMethods,
    fixed: Collection[str] = (),
    fixed_biases: Collection[str] = (),
) -> Calibrated:
    """The same of a float graph without batch norm, which equalization changes in place.

    Methods that change weights see the first of the batches, as many as there is memory for at a time.

    Args:
        batches: images (N, C, H, W), on the device of the graph.
        fixed: names of operators whose weights, factors and biases stay as they are.
        fixed_biases: of others whose biases stay.
    """
    seen: list[Tensor] = []
    scales: dict[str, Tensor] = {}
    if methods.on_weights:
        batches = list(batches)
        seen = _side_by_side(graph, batches)
    if EQUALIZE in methods.on_weights:
        scales = equalize(graph, seen, settings.per_channel, fixed)
    kept = modules_matching(graph, settings.keep_float)
    if not TARGETS[settings.target].fuses_activations:  # where pairs stand before what takes them, each has its own
        settings = replace(settings, keep_float=())
    quantizer = _quantizer(settings, is_qat=False, methods=methods)
    prepared = prepare_pt2e(copy.deepcopy(graph), quantizer)
    calibrate(prepared, batches)
    return Calibrated(graph, prepared, seen, methods, kept, scales, fixed, fixed_biases)


def quantize_after_training(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    settings: QuantizationSettings,
    batches: Iterable[Tensor],
    methods: PtqMethods = USUAL,
) -> GraphModule:
    """Post-training quantization: the INT8 network of `calibrate_network`."""
    return calibrate_network(model, input_shape, settings, batches, methods).finished()


def _side_by_side(graph: GraphModule, batches: Sequence[Tensor]) -> list[Tensor]:
    """The first images of `batches`, one by one, for all of which there is memory: two graphs hold values of each."""
    images = [image for batch in batches for image in batch.split(1)][:IMAGES_SIDE_BY_SIDE]
    if not images:
        raise ValueError("methods that change weights need an image; without one leave them out")
    return images[: max(1, images_at_once(graph, torch.cat([*images, *images])) // 2)]


def set_mode(prepared: GraphModule, *, dropout: bool, batch_norm: bool, observers: bool) -> None:
    """Switch what an exported graph cannot switch by `train()` and `eval()`.

    Args:
        dropout: drop activations.
        batch_norm: normalise by the batch and update the running statistics; otherwise use the running statistics.
        observers: update the quantization ranges.
    """
    for node in prepared.graph.nodes:
        if node.target == BATCH_NORM:
            node.update_arg(5, batch_norm)
        elif node.target in DROPOUT:
            node.update_arg(2, dropout)
    prepared.recompile()
    prepared.apply(enable_observer if observers else disable_observer)


def set_training_mode(prepared: GraphModule, schedule: QatSchedule, epoch: int, *, dropout: bool = True) -> None:
    """What is trained in an epoch, by the schedule."""
    batch_norm, observers = epoch < schedule.freeze_batch_norm, epoch < schedule.freeze_observers
    set_mode(prepared, dropout=dropout, batch_norm=batch_norm, observers=observers)


def set_evaluation_mode(prepared: GraphModule) -> None:
    """Nothing is updated: images that are only scored leave no trace in batch norm or in the quantization ranges."""
    set_mode(prepared, dropout=False, batch_norm=False, observers=False)


@torch.no_grad()
def calibrate(prepared: GraphModule, batches: Iterable[Tensor], ranges: str = RANGES[0]) -> None:
    """Set the ranges of activations by histograms of what `batches` (N, 3, H, W) cause; weights stay as they are.

    A graph that is prepared for QAT finds them as `ranges` says, one of RANGES; any other as its own observers do.
    A batch that does not fit into memory at a time is computed in parts, which changes little. Without a batch all
    ranges stay.
    """
    set_evaluation_mode(prepared)
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        return
    at_once = images_at_once(prepared, first)
    with ranges_from_histograms(prepared, ranges):
        for images in chain([first], batches):
            for part in images.split(at_once):
                prepared(part)
    set_evaluation_mode(prepared)


def convert(prepared: GraphModule) -> GraphModule:
    """The INT8 network with the ranges that `prepared` holds; `prepared` itself is left as it was.

    Raises:
        ValueError: an observer never saw an image, so that its range is unknown.
    """
    empty = [name for name, module in prepared.named_modules() if _is_empty(module)]
    if empty:
        raise ValueError(
            f"{len(empty)} observers never saw an image, the first is {empty[0]}; train or calibrate before"
        )
    prepared = copy.deepcopy(prepared)
    set_evaluation_mode(prepared)
    fold_batch_norm(prepared)
    int8 = convert_pt2e(prepared)
    drop_unused_values(int8)
    int8.training = False  # see export_graph
    return int8


def _is_empty(module: nn.Module) -> bool:
    smallest = getattr(module, "min_val", None)
    return smallest is not None and (smallest.numel() == 0 or not bool(torch.isfinite(smallest).all()))
