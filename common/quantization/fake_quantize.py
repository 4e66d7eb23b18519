"""Fake quantization for QAT: ranges as moving averages or from histograms, and the scale and zero point of a range."""

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import FusedMovingAvgObsFakeQuantize

from common.quantization.codes import Grid, round_to_grid
from common.quantization.methods import RANGES
from common.quantization.ranges import ActivationObserver

TINY = torch.finfo(torch.float32).tiny


def resize_as(place: Tensor, value: Tensor) -> None:
    """Let a buffer take a value of another size: ranges by channel get theirs with the first image."""
    if place.shape != value.shape:
        place.resize_(value.shape)


def reads_are_free(device: torch.device) -> bool:
    """Whether a decision on a number of a tensor neither waits for the device nor breaks a graph being compiled."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


class FakeQuantize(FusedMovingAvgObsFakeQuantize):
    """Observe the range of a tensor as a moving average and round the tensor to its codes.

    The values, gradients, ranges and scales are those of PyTorch's kernel in every bit, but for symmetric ranges, which
    are symmetric also where all values have one sign. The kernel that observes sees the ends of the range alone: it
    goes value by value on a CPU, and copies what is channels-last on CUDA. On a CPU, where it is memory that a training
    lacks, the backward pass keeps codes (see `codes`).

    Args:
        lower: inputs below it count as `lower`, so that no code is spent on them.
        of_weights: it rounds what is stored, not what an image causes.

    Attributes:
        of_several: one range for several tensors, as those of a concatenation. A moving average of them in turn would
            end between the narrowest and the widest, and clip the latter: it takes a wider end at once instead, and
            comes back from it as a moving average.
        histogram: what observes in the place of the moving average, between `start_histogram` and `take_histogram`.
    """

    histogram: ActivationObserver | None

    def __init__(self, lower: float | None = None, of_weights: bool = False, **options: Any):
        super().__init__(**options)
        self.lower, self.of_weights = lower, of_weights
        self.of_several = False
        self.histogram = None
        self.observing, self.quantizing = True, True  # as PyTorch's buffers say, without waiting for a device

    def enable_observer(self, enabled: bool = True) -> None:
        super().enable_observer(enabled)
        self.observing = bool(enabled)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        super().enable_fake_quant(enabled)
        self.quantizing = bool(enabled)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.observing, self.quantizing = bool(self.observer_enabled.item()), bool(self.fake_quant_enabled.item())

    def forward(self, x: Tensor) -> Tensor:
        if self.observing:
            self._observe(x)
        if self.is_symmetric_quant or not self.observing:
            self.compute_scale()
        if not self.quantizing:
            return x
        if torch.compiler.is_compiling() or not (self.is_per_channel or reads_are_free(x.device)):
            return self._by_kernel(x)
        return round_to_grid(x, self._grid(x))

    def _by_kernel(self, x: Tensor) -> Tensor:
        """The same by PyTorch's operators, one pass over the values on a GPU, whose time is that of its memory.

        The backward pass keeps values and what was clamped there, or what a compiler decides.
        """
        low, high = self.activation_post_process.quant_min, self.activation_post_process.quant_max
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, self.ch_axis, low, high)
        return torch._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(
            x, self.scale, self.zero_point, torch.ones_like(self.fake_quant_enabled), low, high
        )[0]

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale and zero point that training computed with, for the conversion: INT8 is what was trained.

        PyTorch's answer differs for symmetric ranges: largest / 127, where its kernel trains with largest / 126.5. It
        is taken only for scales below the smallest that runtimes take (`eps`), which the kernel does not know.
        """
        scale, zero_point = self.activation_post_process.calculate_qparams()
        trained = self.scale >= self.activation_post_process.eps
        return torch.where(trained, self.scale, scale), torch.where(trained, self.zero_point, zero_point)

    def compute_scale(self) -> None:
        """Take scale and zero point from the range, which may have been set from outside; do nothing without one."""
        observer = self.activation_post_process
        if not self.has_range():
            return
        # a range holds 0; the kernel takes one that ends there as one of a single sign, and gives it a zero point
        end = TINY if self.is_symmetric_quant else 0.0
        smallest, largest = observer.min_val.clamp(max=-end), observer.max_val.clamp(min=end)
        self._kernel(torch.zeros_like(smallest).unsqueeze(-1), smallest, largest, observe=False)

    def has_range(self) -> bool:
        """Whether an observer has seen a tensor; on a GPU, where a look at its range would wait, only by its size."""
        smallest = self.activation_post_process.min_val
        if smallest.numel() == 0:  # by channel
            return False
        return not reads_are_free(smallest.device) or bool(torch.isfinite(smallest).all())

    @torch.no_grad()
    def use_scale(self, scale: Tensor) -> None:
        """Take the symmetric range whose scale in the training is `scale`: one number, or (channels,) of them."""
        observer = self.activation_post_process
        wanted = scale.to(self.scale).reshape(-1)
        for place in (observer.min_val, observer.max_val, self.scale, self.zero_point):
            resize_as(place, wanted if self.is_per_channel else place)
        for place, sign in ((observer.min_val, -1), (observer.max_val, 1)):
            place.copy_((sign * observer.quant_max * wanted).reshape(place.shape))
        self.compute_scale()
        factors = (wanted / self.scale.reshape(-1)).reshape(observer.min_val.shape)  # scales follow their range
        observer.min_val.mul_(factors)
        observer.max_val.mul_(factors)
        self.compute_scale()

    def start_histogram(self, ranges: str = RANGES[0]) -> None:
        """From now on hand tensors on as they are, and count their values; `ranges` is how a range is found in them."""
        observer = self.activation_post_process
        codes = {"dtype": observer.dtype, "quant_min": observer.quant_min, "quant_max": observer.quant_max}
        histogram = ActivationObserver(ranges=ranges, qscheme=observer.qscheme, eps=observer.eps.item(), **codes)
        self.histogram = histogram.to(self.scale.device)
        self.enable_observer()
        self.disable_fake_quant()

    @torch.no_grad()
    def take_histogram(self) -> None:
        """Round again, in the range that was found in what was counted.

        Without a tensor the range stays as it was.
        """
        histogram, self.histogram = self.histogram, None
        self.enable_fake_quant()
        if histogram is None or not histogram.min_val.isfinite():
            return
        observer = self.activation_post_process
        scale, zero_point = histogram.calculate_qparams()
        low, high = observer.quant_min, observer.quant_max
        if self.is_symmetric_quant:  # the kernel's scale is that of the middle of the codes
            zero_point = zero_point + (low + high) / 2
        for place, code in ((observer.min_val, low), (observer.max_val, high)):
            place.copy_(((code - zero_point) * scale).reshape(place.shape))
        self.compute_scale()

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        if self.histogram is not None:
            self.histogram(x if self.lower is None else x.clamp(min=self.lower))
            return
        observer = self.activation_post_process
        self._kernel(self._ends(x), observer.min_val, observer.max_val, observe=True)

    def _ends(self, x: Tensor) -> Tensor:
        """The smallest and the largest value, (2,), or those of each channel, (channels, 2).

        Clamped at `lower`; the other values need not be: that is the first code.
        """
        if self.is_per_channel:
            ends = torch.stack(torch.aminmax(x.movedim(self.ch_axis, 0).flatten(1), dim=1), dim=1)
        else:
            if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
                x = x.permute(0, 2, 3, 1)  # the order in memory, without which aminmax copies
            ends = torch.stack(torch.aminmax(x))
        if self.lower is not None:
            ends = ends.clamp(min=self.lower)
        return self._to_move_there(ends) if self.of_several else ends

    def _to_move_there(self, ends: Tensor) -> Tensor:
        """What the kernel has to see for its moving average to be at `ends`, where those are outside of the range."""
        observer = self.activation_post_process
        held = torch.stack([observer.min_val, observer.max_val]).reshape(2)
        outside = ends - held
        widens = torch.stack([outside[0] < 0, outside[1] > 0]) & held.isfinite()
        return torch.where(widens, held + outside / observer.averaging_constant, ends)

    @torch.no_grad()
    def _kernel(self, values: Tensor, smallest: Tensor, largest: Tensor, observe: bool) -> None:
        """PyTorch's kernel: move the range by `values` where `observe` says so; scale and zero point from the range."""
        observer, flag = self.activation_post_process, self.observer_enabled
        torch.fused_moving_avg_obs_fake_quant(
            values,
            torch.full_like(flag, observe),
            torch.ones_like(flag),  # compute the scale
            smallest,
            largest,
            self.scale,
            self.zero_point,
            observer.averaging_constant,
            observer.quant_min,
            observer.quant_max,
            0,  # the axis of the channels of `values`
            self.is_per_channel,
            self.is_symmetric_quant,
        )

    def _grid(self, x: Tensor) -> Grid:
        low, high = self.activation_post_process.quant_min, self.activation_post_process.quant_max
        scale, zero_point = self.scale.clone(), self.zero_point  # the next image may move the scale before backward
        inverse = scale.reciprocal()
        if self.is_per_channel:
            shape = [1] * x.dim()
            shape[self.ch_axis] = -1
            scale, inverse, zero_point = (each.reshape(shape) for each in (scale, inverse, zero_point))
        else:
            scale, inverse, zero_point = scale.item(), inverse.item(), zero_point.item()
        if self.is_symmetric_quant:
            zero_point = round((low + high) / 2)
        return Grid(scale, inverse, low - zero_point, high - zero_point)


class PerChannelFakeQuantize(FakeQuantize):
    """Fake quantization by channel under the name by which torchao hands on the axis of the channels.

    It drops `ch_axis` for classes whose names lack "PerChannel": 1 for transposed convolutions, where 0 would take one
    scale for each input channel.
    """
