"""Ranges of activations from histograms of all calibration images: those in which rounding and clipping cost least."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.fx import GraphModule
from torchao.quantization.pt2e import HistogramObserver

from common.quantization.fake_quantize import FakeQuantize


@contextmanager
def ranges_from_histograms(prepared: GraphModule) -> Iterator[None]:
    """Within it every image that `prepared` computes counts; at its end the activations' ranges are set by them.

    As in post-training quantization, activations are in float meanwhile, so that no range depends on another, and a
    batch may come in any parts. A moving average of the largest values, as training has it, follows the rarest of
    them: with batches of 8 images that costs ESPNet 3 dB. Ranges without an image stay as they are.
    """
    rounding = [module for module in prepared.modules() if isinstance(module, FakeQuantize)]
    histograms = {module: _histogram(module) for module in rounding if not module.is_symmetric_quant}  # not of weights

    def count(module: FakeQuantize, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach()
        histograms[module](values if module.lower is None else values.clamp(min=module.lower))

    hooks = [module.register_forward_pre_hook(count) for module in histograms]
    for module in histograms:
        module.disable_fake_quant()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in histograms:
            module.enable_fake_quant()
    for module, histogram in histograms.items():
        if histogram.min_val.isfinite():
            module.set_range(*histogram.best_range())


class _Histogram(HistogramObserver):
    def best_range(self) -> tuple[Tensor, Tensor]:
        """The ends between which the values have the smallest error, which PyTorch looks for."""
        return self._non_linear_param_search() if self.min_val < self.max_val else (self.min_val, self.max_val)


def _histogram(module: FakeQuantize) -> _Histogram:
    observer = module.activation_post_process
    codes = {"dtype": observer.dtype, "quant_min": observer.quant_min, "quant_max": observer.quant_max}
    histogram = _Histogram(qscheme=observer.qscheme, eps=observer.eps.item(), **codes)
    return histogram.to(module.scale.device)
