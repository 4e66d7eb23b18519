"""AutoSpeed: a detector of the objects that limit the speed, of the YOLO kind."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import conv3x3

CLASSES = 4
INPUT_HW = (640, 640)  # the scene maps of the encoder are bound to it
STRIDES = (8, 16, 32)  # pixels of a cell on the three levels
BOX_BINS = 16  # each side of a box is the mean of a distribution over 0..15 strides

# variant -> channels after each halving, depth of the blocks, whether the blocks are nested (pyramid, last level)
VARIANTS = {
    "n": ((3, 16, 32, 64, 128, 256), 1, (False, True)),
    "s": ((3, 32, 64, 128, 256, 512), 1, (False, True)),
    "m": ((3, 64, 128, 256, 512, 512), 1, (True, True)),
    "l": ((3, 64, 128, 256, 512, 512), 2, (True, True)),
    "x": ((3, 96, 192, 384, 768, 768), 2, (True, True)),
}


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation (SiLU unless said)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.activation = activation or nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class Residual(nn.Module):
    """x + two 3x3 convolutions of x, with `expansion` times the channels between them."""

    def __init__(self, channels: int, expansion: float = 0.5):
        super().__init__()
        hidden = int(channels * expansion)
        self.conv1 = ConvNorm(channels, hidden, 3)
        self.conv2 = ConvNorm(hidden, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class NestedResidual(nn.Module):
    """Two residual blocks beside a shortcut (C3K)."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = ConvNorm(channels, half)
        self.conv2 = ConvNorm(channels, half)
        self.conv3 = ConvNorm(2 * half, channels)
        self.res_m = nn.Sequential(Residual(half, 1.0), Residual(half, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat([self.res_m(self.conv1(x)), self.conv2(x)], dim=1))


class SplitBlock(nn.Module):
    """Split the channels, send the last piece through `depth` blocks, keep every piece (C3K2)."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, nested: bool):
        super().__init__()
        half = out_channels // 2
        block = NestedResidual if nested else Residual
        self.conv1 = ConvNorm(in_channels, 2 * half)
        self.conv2 = ConvNorm((2 + depth) * half, out_channels)
        self.res_m = nn.ModuleList(block(half) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        pieces = list(self.conv1(x).chunk(2, dim=1))
        for block in self.res_m:
            pieces.append(block(pieces[-1]))
        return self.conv2(torch.cat(pieces, dim=1))


class SceneMap(nn.Module):
    """Gate a feature by a map of the scene computed from its mean, then convolve (ASC); bound to one size.

    Shapes: x (N, in_channels, height, width) -> (N, out_channels, height, width).
    """

    def __init__(self, in_channels: int, out_channels: int, height: int, width: int):
        super().__init__()
        self.size = (height, width)
        self.exp0 = nn.Conv1d(in_channels, height * width, kernel_size=3, padding=1)
        self.ctx0 = conv3x3(1, in_channels // 2)
        self.ctx1 = conv3x3(in_channels // 2, in_channels)
        self.ctx2 = conv3x3(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3)).unsqueeze(2)
        scene = F.gelu(F.gelu(self.exp0(mean)).reshape(-1, 1, *self.size))
        gate = F.gelu(self.ctx1(F.gelu(self.ctx0(scene))))
        return self.ctx2(F.gelu(gate * x + x))


class PyramidPooling(nn.Module):
    """Maxima over 5x5, 9x9 and 13x13 beside the feature itself (SPPF)."""

    def __init__(self, channels: int):
        super().__init__()
        self.cv1 = ConvNorm(channels, channels // 2)
        self.cv2 = ConvNorm(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        pieces = [self.cv1(x)]
        for _ in range(3):
            pieces.append(F.max_pool2d(pieces[-1], kernel_size=5, stride=1, padding=2))
        return self.cv2(torch.cat(pieces, dim=1))


class Attention(nn.Module):
    """Self-attention over the positions, with a depthwise convolution of the values as position code.

    Shapes: x (N, channels, H, W) -> the same; heads of 64 channels, keys of 32.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.heads = channels // 64
        self.value_size = channels // self.heads
        self.key_size = self.value_size // 2
        self.qkv = ConvNorm(channels, channels + 2 * self.heads * self.key_size, activation=nn.Identity())
        self.conv1 = ConvNorm(channels, channels, 3, groups=channels, activation=nn.Identity())
        self.conv2 = ConvNorm(channels, channels, activation=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        qkv = self.qkv(x).reshape(-1, self.heads, 2 * self.key_size + self.value_size, height * width)
        q, k, v = qkv.split([self.key_size, self.key_size, self.value_size], dim=2)
        weights = (q.transpose(2, 3) @ k * self.key_size**-0.5).softmax(dim=3)  # (N, heads, queries, keys)
        attended = (v @ weights.transpose(2, 3)).reshape(-1, self.heads * self.value_size, height, width)
        values = v.reshape(-1, self.heads * self.value_size, height, width)
        return self.conv2(attended + self.conv1(values))


class AttentionBlock(nn.Module):
    """x + attention, then x + feed-forward (PSA)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Attention(channels)
        self.conv2 = nn.Sequential(
            ConvNorm(channels, 2 * channels), ConvNorm(2 * channels, channels, activation=nn.Identity())
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv1(x)
        return x + self.conv2(x)


class SplitAttention(nn.Module):
    """Attention on one half of the channels (C2PSA)."""

    def __init__(self, channels: int):
        super().__init__()
        self.cv1 = ConvNorm(channels, channels)
        self.cv2 = ConvNorm(channels, channels)
        self.middle_block = AttentionBlock(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        kept, attended = self.cv1(x).chunk(2, dim=1)
        return self.cv2(torch.cat([kept, self.middle_block(attended)], dim=1))


class Encoder(nn.Module):
    """Image (N, 3, 640, 640) -> features at 1/8, 1/16 and 1/32 of its size."""

    def __init__(self, width: tuple[int, ...]):
        super().__init__()
        height, wide = INPUT_HW
        maps = [(height // step, wide // step) for step in (4, 8, 16, 32)]
        self.p1 = ConvNorm(width[0], width[1], 3, 2)
        self.p2 = nn.Sequential(ConvNorm(width[1], width[2], 3, 2), SceneMap(width[2], width[3], *maps[0]))
        self.p3 = nn.Sequential(ConvNorm(width[3], width[3], 3, 2), SceneMap(width[3], width[4], *maps[1]))
        self.p4 = nn.Sequential(ConvNorm(width[4], width[4], 3, 2), SceneMap(width[4], width[4], *maps[2]))
        self.p5 = nn.Sequential(
            ConvNorm(width[4], width[5], 3, 2),
            SceneMap(width[5], width[5], *maps[3]),
            PyramidPooling(width[5]),
            SplitAttention(width[5]),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p3 = self.p3(self.p2(self.p1(image)))
        p4 = self.p4(p3)
        return p3, p4, self.p5(p4)


class Pyramid(nn.Module):
    """Mix the three levels, from coarse to fine and back."""

    def __init__(self, width: tuple[int, ...], depth: int, nested: tuple[bool, bool]):
        super().__init__()
        w3, w4, w5 = width[3:]
        self.h1 = SplitBlock(w4 + w5, w4, depth, nested[0])
        self.h2 = SplitBlock(w4 + w4, w3, depth, nested[0])
        self.h3 = ConvNorm(w3, w3, 3, 2)
        self.h4 = SplitBlock(w3 + w4, w4, depth, nested[0])
        self.h5 = ConvNorm(w4, w4, 3, 2)
        self.h6 = SplitBlock(w4 + w5, w5, depth, nested[1])

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        p3, p4, p5 = features
        p4 = self.h1(torch.cat([double(p5), p4], dim=1))
        p3 = self.h2(torch.cat([double(p4), p3], dim=1))
        p4 = self.h4(torch.cat([self.h3(p3), p4], dim=1))
        p5 = self.h6(torch.cat([self.h5(p4), p5], dim=1))
        return p3, p4, p5


class BoxMean(nn.Module):
    """The mean of each side's distribution over 0..15: (N, 4 * 16, cells) -> (N, 4, cells), in strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(BOX_BINS, 1, kernel_size=1, bias=False).requires_grad_(False)
        self.conv.weight.copy_(torch.arange(BOX_BINS, dtype=torch.float32).reshape(1, BOX_BINS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        cells = x.shape[2]
        return self.conv(x.reshape(-1, 4, BOX_BINS, cells).transpose(1, 2).softmax(dim=1)).reshape(-1, 4, cells)


class Head(nn.Module):
    """Boxes in pixels and class scores of every cell of the three levels."""

    centres: Tensor
    strides: Tensor

    def __init__(self, channels: tuple[int, int, int], classes: int):
        super().__init__()
        box, score = max(64, channels[0] // 4), max(80, channels[0], classes)
        self.dfl = BoxMean()
        self.box = nn.ModuleList(
            nn.Sequential(ConvNorm(count, box, 3), ConvNorm(box, box, 3), nn.Conv2d(box, 4 * BOX_BINS, 1))
            for count in channels
        )
        self.cls = nn.ModuleList(
            nn.Sequential(
                ConvNorm(count, count, 3, groups=count),
                ConvNorm(count, score),
                ConvNorm(score, score, 3, groups=score),
                ConvNorm(score, score),
                nn.Conv2d(score, classes, 1),
            )
            for count in channels
        )
        # buffers and not made in `forward`: a trace would keep the device that it was made on
        centres, strides = cells()
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def forward(self, levels: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        boxes = torch.cat([box(x).flatten(2) for box, x in zip(self.box, levels, strict=True)], dim=2)
        scores = torch.cat([cls(x).flatten(2) for cls, x in zip(self.cls, levels, strict=True)], dim=2)
        near, far = self.dfl(boxes).chunk(2, dim=1)  # distances of the left-top and the right-bottom corner
        left_top, right_bottom = self.centres - near, self.centres + far
        box = torch.cat([(left_top + right_bottom) / 2, right_bottom - left_top], dim=1) * self.strides
        return torch.cat([box, scores.sigmoid()], dim=1)


class AutoSpeedNetwork(nn.Module):
    """Detector of four classes.

    Shapes: image (N, 3, 640, 640), RGB in 0..1 without mean and deviation, letterboxed
    -> (N, 8, 8400): centre x, centre y, width, height in pixels and four class scores in 0..1 of every cell, the cells
    of the 80x80, 40x40 and 20x20 levels after each other.

    Args:
        variant: n, s, m, l or x; the published weights are of n.
    """

    def __init__(self, variant: str = "n"):
        super().__init__()
        channels, depth, nested = VARIANTS[variant]
        self.net = Encoder(channels)
        self.fpn = Pyramid(channels, depth, nested)
        self.head = Head(channels[3:], CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.fpn(self.net(image)))


def double(x: Tensor) -> Tensor:
    """Repeat every position twice in both directions."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def cells() -> tuple[Tensor, Tensor]:
    """Centres (1, 2, cells), x and y in cells of their level, and the strides (1, 1, cells) in pixels."""
    centres, strides = [], []
    for stride in STRIDES:
        height, width = (side // stride for side in INPUT_HW)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()]))
        strides.append(torch.full((height * width,), float(stride)))
    return torch.cat(centres, dim=1)[None], torch.cat(strides)[None, None]
