"""Rounding to codes for QAT, and what the backward pass keeps of it: two bytes a value, for all who take the result.

Autograd keeps the input of every convolution and of every activation. Behind fake quantization these inputs have at
most 256 values, and the straight-through estimator asks only whether a value was clamped: one int16 holds both. So the
same training takes less memory than in float, and its gradients are the same in every bit.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

# a float, or a tensor with a number for each channel; PyTorch's stubs take either and not their union
Number = Any


@dataclass(frozen=True)
class Grid:
    """The values of a fake-quantized tensor: `scale` * k, for the whole numbers k from `first` to `last`."""

    scale: Number
    inverse: Number  # 1 / scale in float32
    first: Number  # the lowest code less the zero point
    last: Number

    def steps(self, x: Tensor) -> Tensor:
        """The number of every value on the grid, as floats, beyond its ends where `x` is."""
        return x.mul(self.inverse).round_()

    def values(self, steps: Tensor, dtype: torch.dtype) -> Tensor:
        """The values of `steps`, float or int16; beyond the ends those of the ends."""
        return steps.clamp(self.first, self.last).to(dtype).mul_(self.scale)


@dataclass(frozen=True)
class Codes:
    """A fake-quantized tensor: int16 numbers of its values on a grid, one beyond its ends where it was clamped."""

    steps: Tensor
    grid: Grid
    version: int  # of the float tensor: as long as nothing is written to it, its values are these


class RoundToGrid(torch.autograd.Function):
    """Round a tensor to a grid; the gradient passes where nothing was clamped (straight-through estimator).

    With `keep`, returns the int16 steps beside it, else None.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, keep: bool) -> tuple[Tensor, Tensor | None]:
        steps = grid.steps(x)
        kept = steps.clamp_(grid.first - 1, grid.last + 1).to(torch.int16) if keep else None
        if keep:
            ctx.save_for_backward(kept)
            ctx.mark_non_differentiable(kept)
            ctx.grid = grid
        return grid.values(steps, x.dtype), kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        (steps,) = ctx.saved_tensors
        first, last = ctx.grid.first, ctx.grid.last
        if isinstance(first, Tensor):
            return gradient * ((steps >= first) & (steps <= last)), None, None
        # 0 outside the ends, in vectors; on a CPU a comparison and a choice are not
        inside = torch.ops.aten.hardtanh_backward(gradient, steps.to(gradient.dtype), first - 0.5, last + 0.5)
        return inside, None, None


def round_to_grid(x: Tensor, grid: Grid) -> Tensor:
    """`x` on a grid, with its codes beside it for `codes_for_backward`."""
    y, steps = RoundToGrid.apply(x, grid, torch.is_grad_enabled())
    if steps is not None:
        y.untyped_storage().codes = Codes(steps, grid, y._version)  # lives as long as the values do
    return y


def codes_for_backward() -> saved_tensors_hooks:
    """A context in which a forward pass keeps the codes of fake-quantized tensors for backward, not their values."""
    return saved_tensors_hooks(_codes_of, _values_of)


@dataclass(frozen=True)
class _Saved:
    """Codes that stand for a tensor, which may be a view of all their values."""

    codes: Codes
    dtype: torch.dtype
    geometry: tuple[torch.Size, tuple[int, ...], int | torch.SymInt]  # size, stride, offset in the storage


def _codes_of(tensor: Tensor) -> Tensor | _Saved:
    codes = getattr(tensor.untyped_storage(), "codes", None)
    if codes is None or codes.version != tensor._version:
        return tensor
    return _Saved(codes, tensor.dtype, (tensor.size(), tensor.stride(), tensor.storage_offset()))


def _values_of(saved: Tensor | _Saved) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    values = saved.codes.grid.values(saved.codes.steps, saved.dtype)
    return values.as_strided(*saved.geometry)
