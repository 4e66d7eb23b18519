"""Exact fusion of the upsampling stages: fewer multiplications for the same numbers.

A stage computes conv3x3(up(x) + skip(f)) with no activation in between, so it is linear up to its first GELU, and

    conv3x3(up(x) + skip(f)) = conv4x4_transposed(x) + conv3x3'(f)

up        transposed convolution 2x2, stride 2, weights T (in, u, 2, 2), bias t
skip      convolution 1x1, weights S (u, s), bias r
conv3x3   weights D (m, u, 3, 3), bias d

- Position i of x reaches positions 2i + p of the upsampled map (p in 0, 1), and tap a of the 3x3 kernel takes those to
  2i + p - a + 1: together a transposed convolution of 4x4, stride 2, padding 1, with K[k] = sum of D[a] T[p] over all
  p - a + 2 = k.
- The biases t + r are a constant map that conv3x3 pads with zeros, so at the border a part of it is missing. A channel
  of constants beside x, with weights t + r for all four p, has the same border; so have several that share them.

For SceneSeg at 320x640 that makes 231 GFLOP of 367, for 50.9 M instead of 48.4 M parameters.
"""

import torch
from torch import Tensor, nn

from models.blocks import UpsampleStage

# The constant channels. Four, because ONNX Runtime's fast kernels, float and int8, take input channels in fours; as
# large together as one of 8, because with less their weights would set the scale of per-tensor INT8 (an eighth-width
# SceneSeg with one constant: of 1 19.2 dB of the logits, of 8 22.0 dB)
CONSTANTS, CONSTANT = 4, 2.0


class FusedUpsampleStage(nn.Module):
    """An `UpsampleStage` in its fused form.

    Shapes: x (N, in_channels, H, W), skip (N, skip_channels, 2H, 2W) or None -> (N, out_channels, 2H, 2W).
    """

    def __init__(self, in_channels: int, skip_channels: int, mid_channels: int, refine: nn.Sequential):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels + CONSTANTS, mid_channels, kernel_size=4, stride=2, padding=1)
        self.skip = nn.Conv2d(skip_channels, mid_channels, kernel_size=3, padding=1) if skip_channels else None
        self.refine = refine  # GELU, convolution, GELU

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        n, _, height, width = x.shape
        # takes no value of x, which is int8 in an exported file
        constant = x.new_full((n, CONSTANTS, height, width), CONSTANT)
        x = self.upsample(torch.cat([x, constant], dim=1))
        if self.skip is not None:
            x = x + self.skip(skip)
        return self.refine(x)


def fuse_upsampling(model: nn.Module) -> nn.Module:
    """Replace every `UpsampleStage` below `model` by its fused form, in place; the outputs stay the same.

    Composed in float64: the sums run over up to 1280 channels.
    """
    for name, child in model.named_children():
        if isinstance(child, UpsampleStage):
            setattr(model, name, _fused(child))
        else:
            fuse_upsampling(child)
    return model


@torch.no_grad()
def _fused(stage: UpsampleStage) -> FusedUpsampleStage:
    first, *rest = stage.refine
    assert isinstance(first, nn.Conv2d)
    up, down = stage.upsample.weight.double(), first.weight.double()
    bias = _bias(stage.upsample).double()
    if stage.skip is not None:
        bias = bias + _bias(stage.skip).double()
    skip_channels = stage.skip.in_channels if stage.skip is not None else 0
    with torch.device(first.weight.device):
        fused = FusedUpsampleStage(up.shape[0], skip_channels, first.out_channels, nn.Sequential(*rest))
    constant = (bias / CONSTANT / CONSTANTS).reshape(1, -1, 1, 1).expand(CONSTANTS, -1, 2, 2)
    fused.upsample.weight.copy_(_compose(torch.cat([up, constant]), down))
    _bias(fused.upsample).zero_()
    if fused.skip is not None and stage.skip is not None:
        fused.skip.weight.copy_(torch.einsum("muyx,us->msyx", down, stage.skip.weight.double()[:, :, 0, 0]))
        _bias(fused.skip).copy_(_bias(first))
    else:
        _bias(fused.upsample).copy_(_bias(first))
    return fused.to(first.weight.dtype).train(stage.training)


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The bias, which every layer of a stage has."""
    assert layer.bias is not None
    return layer.bias


def _compose(up: Tensor, down: Tensor) -> Tensor:
    """The 4x4 kernel (in, m, 4, 4) of a transposed 2x2 convolution (in, u, 2, 2) and a 3x3 one (m, u, 3, 3)."""
    kernel = up.new_zeros(up.shape[0], down.shape[0], 4, 4)
    for row in range(2):
        for column in range(2):
            for y in range(3):
                for x in range(3):
                    kernel[:, :, row - y + 2, column - x + 2] += up[:, :, row, column] @ down[:, :, y, x].T
    return kernel
