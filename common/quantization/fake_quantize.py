"""Fake quantization for QAT: the same bits as PyTorch's kernel, in fewer passes over the values."""

import torch
from torch import Tensor
from torchao.quantization.pt2e import FusedMovingAvgObsFakeQuantize


class FakeQuantize(FusedMovingAvgObsFakeQuantize):
    """Observe the range of a tensor as a moving average and round the tensor to its codes.

    PyTorch's kernel for the CPU goes value by value, and the one for CUDA copies what is not contiguous, as images
    channels-last are not; `python -m benchmarks.qat_step` measures what is left. Scales by channel (of weights, which
    are small) stay with PyTorch's.

    Args:
        lower: inputs below it count as `lower`, so that no code is spent on them.

    Attributes:
        of_several: one range for several tensors, as those of a concatenation. A moving average of them in turn would
            end between the narrowest and the widest, and clip the latter: it takes a wider end at once instead, and
            comes back from it as a moving average.
    """

    def __init__(self, lower: float | None = None, **options):
        super().__init__(**options)
        self.lower = lower
        self.of_several = False

    def forward(self, x: Tensor) -> Tensor:
        if self.is_per_channel:
            return super().forward(x if self.lower is None else x.clamp(min=self.lower))
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # which takes no decisions on values, either
            return self._without_waiting(x)
        if self.observer_enabled.item():
            self._compute(self._ends(x), observe=self.observer_enabled)
        else:
            self.compute_scale()
        if not self.fake_quant_enabled.item():
            return x
        observer = self.activation_post_process
        return RoundToCodes.apply(x, self.scale, self.zero_point, observer.quant_min, observer.quant_max)

    def _without_waiting(self, x: Tensor) -> Tensor:
        """The same with switches, scale and zero point left where they are: reading them would wait for a GPU."""
        self._compute(self._ends(x), observe=self.observer_enabled)
        observer = self.activation_post_process
        return torch._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(
            x, self.scale, self.zero_point, self.fake_quant_enabled, observer.quant_min, observer.quant_max
        )[0]

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale and zero point that training computed with, for the conversion: INT8 is what was trained.

        PyTorch's answer differs for symmetric ranges: largest / 127, where its kernel trains with largest / 126.5. It
        is taken only for scales below the smallest that runtimes take (`eps`), which the kernel does not know.
        """
        scale, zero_point = self.activation_post_process.calculate_qparams()
        trained = self.scale >= self.activation_post_process.eps
        return torch.where(trained, self.scale, scale), torch.where(trained, self.zero_point, zero_point)

    @torch.no_grad()
    def _ends(self, x: Tensor) -> Tensor:
        """The smallest and the largest value, clamped at `lower`; other values need not be: that is the first code."""
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

    def compute_scale(self) -> None:
        """Take scale and zero point from the range, which may have been set from outside; do nothing without one."""
        smallest = self.activation_post_process.min_val
        if smallest.numel() and bool(torch.isfinite(smallest).all()):
            self._compute(torch.zeros_like(smallest).flatten(), observe=torch.zeros_like(self.observer_enabled))

    @torch.no_grad()
    def _compute(self, values: Tensor, observe: Tensor) -> None:
        """Let PyTorch's kernel move the range by `values`, where `observe` says so, and compute the scale from it."""
        observer = self.activation_post_process
        torch.fused_moving_avg_obs_fake_quant(
            values,
            observe,
            torch.ones_like(self.fake_quant_enabled),
            observer.min_val,
            observer.max_val,
            self.scale,
            self.zero_point,
            observer.averaging_constant,
            observer.quant_min,
            observer.quant_max,
            self.ch_axis,
            self.is_per_channel,
            self.is_symmetric_quant,
        )


class RoundToCodes(torch.autograd.Function):
    """Round to `scale` * (whole number - `zero_point`), clamped to codes from `low` to `high`.

    The gradient passes where nothing was clamped (straight-through estimator).
    """

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        offset = zero_point.item()  # taken from the ends, not added to the values: two passes less
        steps = x.mul(scale.reciprocal().item()).round_()
        ctx.save_for_backward(steps)
        ctx.ends = low - offset - 0.5, high - offset + 0.5
        return steps.clamp(low - offset, high - offset).mul_(scale.item())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (steps,) = ctx.saved_tensors
        # 0 outside the ends, in vectors; a comparison and a choice are not
        return torch.ops.aten.hardtanh_backward(gradient, steps, *ctx.ends), None, None, None, None
