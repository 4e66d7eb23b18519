"""Exact fusion of the upsampling stages: fewer multiplications for the same numbers.

A stage computes conv3x3(up(x) + skip(f)) with no activation in between, so it is linear up to its first GELU, and

    conv3x3(up(x) + skip(f)) = conv4x4_transposed(x) + conv3x3'(f)

up        transposed convolution 2x2, stride 2, weights T (in, u, 2, 2), bias t
skip      convolution 1x1, weights S (u, s), bias r
conv3x3   weights D (m, u, 3, 3), bias d

- Position i of x reaches positions 2i + p of the upsampled map (p in 0, 1), and tap a of the 3x3 kernel takes those to
  2i + p - a + 1: together a transposed convolution of 4x4, stride 2, padding 1, with K[k] = sum of D[a] T[p] over all
  p - a + 2 = k.
- The transposed convolution is one 2x2 convolution with padding 1 on the small map, whose 4 m outputs are shuffled to
  2x2 pixels each: pixel 2j + q - 1 is K[q] x[j] + K[q + 2] x[j - 1]. The outermost pixels are cropped.
- The biases t + r are a constant map that conv3x3 pads with zeros, so at the border a part of it is missing. A channel
  of constants beside x, with weights t + r for all four p, has the same border; so have several that share them.

For SceneSeg at 320x640 that makes 231 GFLOP of 367, for 50.9 M instead of 48.4 M parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import UpsampleStage

# The constant channel: as large as the activations beside it, or its weights alone would set the scale of per-tensor
# INT8 (measured with 1: 19.2 dB, with 8: 22.0 dB of the logits of an eighth-width SceneSeg)
CONSTANT = 8.0
# How many there are. ONNX Runtime's blocked float kernels take channels in fours, and no convolution of an odd number:
# with four constants instead of one, SceneSeg takes 3.15 s instead of 3.47 (one thread, AVX2). int8 kernels do not mind
FLOAT_CONSTANTS, INT8_CONSTANTS = 4, 1


class FusedUpsampleStage(nn.Module):
    """An `UpsampleStage` in its fused form.

    Shapes: x (N, in_channels, H, W), skip (N, skip_channels, 2H, 2W) or None -> (N, out_channels, 2H, 2W).

    Args:
        channels_last: how the pixels are shuffled, see `fuse_upsampling`.
    """

    def __init__(
        self, in_channels: int, skip_channels: int, mid_channels: int, refine: nn.Sequential, channels_last: bool
    ):
        super().__init__()
        self.shuffle = shuffle_channels_last if channels_last else shuffle
        self.constants = INT8_CONSTANTS if channels_last else FLOAT_CONSTANTS
        self.upsample = nn.Conv2d(in_channels + self.constants, 4 * mid_channels, kernel_size=2, padding=1)
        self.skip = nn.Conv2d(skip_channels, mid_channels, kernel_size=3, padding=1) if skip_channels else None
        self.refine = refine  # GELU, convolution, GELU

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        n, _, height, width = x.shape
        # takes no value of x, which is int8 in an exported file
        constant = x.new_full((n, self.constants, height, width), CONSTANT)
        x = self.shuffle(self.upsample(torch.cat([x, constant], dim=1)))
        if self.skip is not None:
            x = x + self.skip(skip)
        return self.refine(x)


def shuffle(x: Tensor) -> Tensor:
    """(N, 4 C, H + 1, W + 1), channels ordered (C, row, column) -> (N, C, 2 H, 2 W), without the outermost pixels."""
    return F.pixel_shuffle(x, 2)[:, :, 1:-1, 1:-1]


def shuffle_channels_last(x: Tensor) -> Tensor:
    """(N, 4 C, H + 1, W + 1), channels ordered (row, column, C) -> (N, C, 2 H, 2 W), without the outermost pixels."""
    n, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(n, height, width, 2, 2, channels // 4).permute(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(n, 2 * height, 2 * width, channels // 4)
    return pixels[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


def fuse_upsampling(model: nn.Module, channels_last: bool = False) -> nn.Module:
    """Replace every `UpsampleStage` below `model` by its fused form, in place; the outputs stay the same.

    Composed in float64: the sums run over up to 1280 channels.

    Args:
        channels_last: write the shuffle as one transpose of long runs, which int8 kernels want, whose data is
            channels-last. In float it stays a pixel shuffle, which ONNX Runtime has as one node (DepthToSpace).
    """
    for name, child in model.named_children():
        if isinstance(child, UpsampleStage):
            setattr(model, name, _fused(child, channels_last))
        else:
            fuse_upsampling(child, channels_last)
    return model


@torch.no_grad()
def _fused(stage: UpsampleStage, channels_last: bool) -> FusedUpsampleStage:
    first, *rest = stage.refine
    up, down = stage.upsample.weight.double(), first.weight.double()
    bias = stage.upsample.bias.double()
    if stage.skip is not None:
        bias = bias + stage.skip.bias.double()
    skip_channels = stage.skip.in_channels if stage.skip is not None else 0
    with torch.device(first.weight.device):
        fused = FusedUpsampleStage(up.shape[0], skip_channels, first.out_channels, nn.Sequential(*rest), channels_last)
    constant = (bias / CONSTANT / fused.constants).reshape(1, -1, 1, 1).expand(fused.constants, -1, 2, 2)
    kernel = _compose(torch.cat([up, constant]), down)
    pixels = _as_small_convolution(kernel)
    pixels = pixels.flatten(0, 1) if channels_last else pixels.transpose(0, 1).flatten(0, 1)
    fused.upsample.weight.copy_(pixels)
    fused.upsample.bias.zero_()
    if fused.skip is None:
        fused.upsample.bias.copy_(first.bias.repeat(4) if channels_last else first.bias.repeat_interleave(4))
    else:
        fused.skip.weight.copy_(torch.einsum("muyx,us->msyx", down, stage.skip.weight.double()[:, :, 0, 0]))
        fused.skip.bias.copy_(first.bias)
    return fused.to(first.weight.dtype).train(stage.training)


def _compose(up: Tensor, down: Tensor) -> Tensor:
    """The 4x4 kernel (in, m, 4, 4) of a transposed 2x2 convolution (in, u, 2, 2) and a 3x3 one (m, u, 3, 3)."""
    kernel = up.new_zeros(up.shape[0], down.shape[0], 4, 4)
    for row in range(2):
        for column in range(2):
            for y in range(3):
                for x in range(3):
                    kernel[:, :, row - y + 2, column - x + 2] += up[:, :, row, column] @ down[:, :, y, x].T
    return kernel


def _as_small_convolution(kernel: Tensor) -> Tensor:
    """The weights (4, m, in, 2, 2) of the 2x2 convolution, the four pixels ordered (row, column)."""
    pixels = []
    for row in range(2):
        for column in range(2):
            taps = kernel[:, :, [row + 2, row]][:, :, :, [column + 2, column]]  # of x[j - 1] and of x[j]
            pixels.append(taps.transpose(0, 1))
    return torch.stack(pixels)
