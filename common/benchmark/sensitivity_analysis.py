"""Sensitivity: the error of every layer, and what each block in float would bring.

Measured on the calibrated graph with its fake quantizations on or passed over; nothing is trained for it.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.node import Target

from common.benchmark.image_counts import Counts, LabelledInput, count, outputs_of, outputs_with
from common.benchmark.sensitivity import WORST_LAYERS, BlockGain, LayerError, Sensitivity
from common.data.classes import Classes
from common.data.loading import Example
from common.quantization.simulation import (
    QuantizedLayer,
    Simulation,
    blocks_of,
    fake_quantizations,
    inside,
    of_layer,
    quantized_layers,
)
from common.runtimes.agreement import sqnr_db
from common.system.progress import progress

COARSE = 10.0  # dB: the error is a third of the signal (root mean squares), so that the range does not fit
MOST_IN_FLOAT = 3  # blocks that are proposed
LEAST_GAIN = 0.5  # dB; a block that gains less is not proposed


@dataclass
class _Powers:
    """Sums of squares over any number of tensors."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: Tensor, actual: Tensor) -> None:
        self.signal += exact.double().square().sum().item()
        self.noise += (actual.double() - exact.double()).square().sum().item()

    @property
    def sqnr_db(self) -> float | None:
        return sqnr_db(self.signal, self.noise) if self.signal and self.noise else None


class _Exact(Simulation):
    """The network in float; keeps what the fake quantizations in `powers` would round, and measures that rounding."""

    def __init__(self, prepared: GraphModule, powers: Mapping[str, _Powers]):
        super().__init__(prepared, fake_quantizations(prepared))
        self.powers, self.kept = powers, dict[str, Tensor]()

    def call_module(self, target: Target, args: tuple, kwargs: dict) -> Tensor:
        if (name := str(target)) in self.powers:
            module = self.fetch_attr(name)
            self.kept[name] = _in_range(module, args[0]).clone()  # the next operator may work in place
            self.powers[name].add(self.kept[name], module(args[0]))
        return super().call_module(name, args, kwargs)


class _Quantized(Simulation):
    """The network with everything quantized; its tensors are compared with those that `_Exact` kept."""

    def __init__(self, prepared: GraphModule, kept: dict[str, Tensor], powers: Mapping[str, _Powers]):
        super().__init__(prepared)
        self.kept, self.powers = kept, powers

    def call_module(self, target: Target, args: tuple, kwargs: dict) -> Tensor:
        result = super().call_module(name := str(target), args, kwargs)
        if name in self.kept:
            self.powers[name].add(self.kept.pop(name), result)
        return result


def _in_range(quantizer: nn.Module, x: Tensor) -> Tensor:
    """A saturating range cuts off on purpose what the activation behind it makes 0: that is no error."""
    lower = getattr(quantizer, "lower", None)
    return x if lower is None else x.clamp(min=lower)


@torch.inference_mode()
def layer_errors(prepared: GraphModule, images: Sequence[Tensor]) -> dict[QuantizedLayer, LayerError]:
    """The errors of every quantized layer on `images` (1, 3, H, W), the largest error of its own first."""
    own, propagated = ({name: _Powers() for name in fake_quantizations(prepared)} for _ in range(2))
    for image in images:
        exact = _Exact(prepared, own)
        exact.run(image)
        _Quantized(prepared, exact.kept, propagated).run(image)
    errors = {
        layer: LayerError(
            layer.module,
            layer.operator,
            own[layer.weights].sqnr_db if layer.weights else None,
            own[layer.output].sqnr_db,
            propagated[layer.output].sqnr_db,
        )
        for layer in quantized_layers(prepared)
    }
    return dict(sorted(errors.items(), key=lambda item: item[1].own))


def analyse(
    prepared: GraphModule,
    examples: Sequence[Example],
    classes: Classes,
    device: torch.device,
    retraining: Callable[[Sequence[str]], str],
) -> Sensitivity:
    """Errors and gains of a calibrated graph in evaluation mode, which is on `device`.

    Args:
        examples: images (3, H, W) with their class ids (H, W).
        retraining: of modules, the command of a training with them in float.
    """
    inputs = [LabelledInput(example.image[None], example.mask[None], "") for example in examples]
    exact = list(outputs_of(outputs_with(prepared, fake_quantizations(prepared), device), inputs))
    weighted = blocks_of(prepared)

    def score(floats: Collection[str]) -> Counts:
        return count(exact, outputs_with(prepared, floats, device), inputs, classes)

    everything = score(())
    whole = _finite(everything.sqnr_db)

    def gain(floats: Collection[str]) -> tuple[float | None, float | None, float | None]:
        counts = score(floats)
        sqnr = _finite(counts.sqnr_db)
        return sqnr, None if sqnr is None or whole is None else sqnr - whole, counts.miou

    def block_gain(modules: list[str]) -> BlockGain:
        return BlockGain(modules, sum(weighted[one] for one in modules), *gain(inside(prepared, modules)))

    blocks = sorted((block_gain([block]) for block in progress(weighted, "blocks", unit="block")), key=_by_gain)
    best = [block.modules[0] for block in blocks[:MOST_IN_FLOAT] if (block.gain_db or 0) >= LEAST_GAIN]
    errors = list(layer_errors(prepared, [each.image.to(device) for each in inputs]).items())
    worst = [
        replace(error, gain_db=gain(of_layer(prepared, layer))[1])
        for layer, error in progress(errors[:WORST_LAYERS], "layers", unit="layer")
    ]
    layers = worst + [error for _, error in errors[WORST_LAYERS:]]
    return Sensitivity(
        images=len(inputs),
        sqnr_db=whole,
        miou_fp32=everything.miou_fp32,
        miou_int8=everything.miou,
        blocks=blocks,
        proposed=block_gain(best) if best else None,
        command=retraining(best) if best else "",
        layers=layers,
        coarse=list(dict.fromkeys(layer.module for layer in layers if layer.own < COARSE)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _by_gain(block: BlockGain) -> float:
    return math.inf if block.gain_db is None else -block.gain_db
