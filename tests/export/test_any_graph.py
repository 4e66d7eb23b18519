"""Operators of people's networks: INT8 near FP32, the file what PyTorch INT8 is, and a step of training in between.

Each runs alone among the slow tests, and beside others of its kind in a network that is quick.
"""

from functools import partial

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.export.in_float import in_float, in_float_when_converted
from common.export.int8_graph import for_target
from common.export.onnx_writer import export_onnx
from common.export.options import ExportOptions
from common.networks.registry import build_network
from common.quantization.integer_reference import as_integer_kernels
from common.quantization.pt2e import (
    calibrate,
    convert,
    prepare_qat,
    quantize_after_training,
    set_evaluation_mode,
    set_training_mode,
)
from common.quantization.settings import QatSchedule, QuantizationSettings
from common.runtimes.parity import compare
from common.runtimes.predictors import TorchPredictor
from common.runtimes.targets import TARGETS
from models import Network

HW = (22, 34)  # no multiples of 4
CHANNELS = 8
NEAR_FP32, NEAR_TRAINED = 20.0, 40.0  # dB
NEAR_FILE = {"onnxruntime": 40.0, "tensorrt": 30.0}  # the latter against sums in float
CPU = torch.device("cpu")


def conv(channels=CHANNELS, kernel=3, **options):
    return nn.Conv2d(CHANNELS, channels, kernel, padding=options.pop("padding", kernel // 2), **options)


class Plus(nn.Module):
    """x + f(x)."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        return x + self.parts(x)


class Gate(nn.Module):
    """Squeeze and excitation as of MobileNetV3."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(conv(4, 1), nn.ReLU(), nn.Conv2d(4, CHANNELS, 1), nn.Hardsigmoid())

    def forward(self, x):
        return x * self.gate(x.mean((2, 3), keepdim=True))


class Scales(nn.Module):
    """A concatenation of three scales whose ranges differ by much, resized to the size of the largest."""

    def __init__(self):
        super().__init__()
        self.down, self.same, self.last = conv(stride=2), conv(kernel=1), nn.Conv2d(3 * CHANNELS, CHANNELS, 1)

    def forward(self, x):
        down = self.down(x)
        up = F.interpolate(down, size=x.shape[2:], mode="bilinear", align_corners=False)
        mean = F.adaptive_avg_pool2d(down, 1).expand(-1, -1, *x.shape[2:])
        return self.last(torch.cat([5 * self.same(x), up, mean], 1))


class Pyramid(nn.Module):
    """Pooled into 1, 2, 3 and 6 parts, which overlap, as in PSPNet."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(conv(2, 1) for _ in range(4))
        self.last = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x):
        pooled = [part(F.adaptive_avg_pool2d(x, count)) for part, count in zip(self.parts, (1, 2, 3, 6), strict=True)]
        sized = [F.interpolate(each, x.shape[2:], mode="bilinear", align_corners=True) for each in pooled]
        return self.last(torch.cat([x, *sized], 1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.pixels, self.out = conv(3 * CHANNELS, 1), conv(kernel=1)

    def forward(self, x):
        query, key, value = self.pixels(x).flatten(2).chunk(3, 1)
        weights = torch.softmax(query.transpose(1, 2) @ key / CHANNELS**0.5, -1)
        return x + self.out((value @ weights.transpose(1, 2)).reshape(x.shape))


class Tokens(nn.Module):
    """A layer of a transformer."""

    def __init__(self):
        super().__init__()
        self.before, self.attention = nn.LayerNorm(CHANNELS), nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.linear = nn.Sequential(nn.Linear(CHANNELS, 16), nn.GELU(), nn.Linear(16, CHANNELS))

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.before(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return (tokens + self.linear(tokens)).transpose(1, 2).reshape(x.shape)


class Hiding(nn.Module):
    """An attribute that hides `nn.Module.modules`, as of ESPNet."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.modules = list(self.body)

    def forward(self, x):
        for part in self.modules:
            x = part(x)
        return x


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = conv(), conv(kernel=1)

    def forward(self, x):
        y = self.first(x)
        y += x
        y.mul_(0.5)
        F.relu_(y)
        return F.hardtanh_(self.second(y), -2, 2) + y


class Twice(nn.Module):
    """One module, called on two tensors of other ranges."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(conv(bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())

    def forward(self, x):
        return self.part(4 * self.part(x)) + x


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("ramp", torch.linspace(-1, 1, CHANNELS).reshape(1, -1, 1, 1))
        self.factor, self.part = nn.Parameter(torch.full((CHANNELS, 1, 1), 0.5)), conv(kernel=1)

    def forward(self, x):
        return self.part(x + self.ramp) * self.factor


class Dropping(nn.Module):
    """Values, channels and branches."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(conv(), nn.Dropout2d(0.2), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x):
        y = self.branch(x)
        if self.training:
            y = y * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.8).div_(0.8)
        return x + y


class BehindAll(nn.Module):
    """Batch norm behind a sum, a concatenation, a pool, and a convolution that something else takes, too."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = conv(bias=False), conv(kernel=1), nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        sizes = (CHANNELS, CHANNELS, 2 * CHANNELS, CHANNELS)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size, eps=1e-3) for size in sizes)

    def forward(self, x):
        y = self.one(x)
        y = self.norms[0](y) + y
        y = self.norms[1](y + self.two(x)).relu()
        y = self.norms[2](torch.cat([x, y], 1)).relu()
        return self.norms[3](F.avg_pool2d(self.last(y), 3, 1, 1))


def up(kernel, stride, padding=0, output_padding=0, out=CHANNELS, **options):
    return nn.ConvTranspose2d(CHANNELS, out, kernel, stride, padding, output_padding, **options)


def normed(layer, out=CHANNELS, **options):
    return nn.Sequential(layer, nn.BatchNorm2d(out, **options), nn.ReLU(), nn.Conv2d(out, CHANNELS, 1))


# (N, 8, H, W) -> (N, 8, any size)
OPERATORS = {
    "activations": {
        "PReLU": lambda: nn.Sequential(conv(), nn.PReLU(CHANNELS)),
        "PReLU of one slope": lambda: nn.Sequential(conv(), nn.PReLU()),
        "ReLU6": lambda: nn.Sequential(conv(), nn.ReLU6(inplace=True)),
        "LeakyReLU": lambda: nn.Sequential(conv(), nn.LeakyReLU(0.1, inplace=True)),
        "Hardswish": lambda: nn.Sequential(conv(), nn.Hardswish(inplace=True)),
        "ELU": lambda: nn.Sequential(conv(), nn.ELU()),
        "Hardsigmoid": Gate,
    },
    "convolutions": {
        "depthwise": lambda: normed(conv(groups=CHANNELS)),
        "grouped": lambda: normed(conv(groups=2, bias=False)),
        "dilated": lambda: normed(conv(dilation=4, padding=4)),
        "one-sided": lambda: nn.Sequential(conv(kernel=1, bias=False), nn.Conv2d(8, 8, (1, 5), padding=(0, 2))),
        "same": lambda: normed(conv(kernel=4, padding="same")),
        "reflecting": lambda: conv(padding_mode="reflect"),
    },
    "transposed convolutions": {
        "2 by 2": lambda: normed(up(2, 2, bias=False)),
        "3 by 3 with output padding, uneven": lambda: normed(up(3, 2, 1, 1, out=6), out=6),
        "stride 1": lambda: nn.Sequential(conv(stride=4), up(3, 1, 1)),
        "stride 3 and 1": lambda: nn.Sequential(conv(stride=2), up((3, 2), (3, 1))),
        "8 by 8 of stride 4": lambda: nn.Sequential(up(8, 4, 2, bias=False), conv(stride=4)),
        "grouped": lambda: normed(up(2, 2, groups=2)),
        "dilated": lambda: nn.Sequential(conv(stride=2), up(3, 1, 2, dilation=2)),
    },
    "pools and sizes": {
        "means of 3 by 3": lambda: nn.AvgPool2d(3, 2, 1),
        "means without the border": lambda: nn.AvgPool2d(3, 1, 1, ceil_mode=True, count_include_pad=False),
        "largest": lambda: nn.MaxPool2d(2, 1, ceil_mode=True),
        "bilinear, twice": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
        "nearest, to a size": lambda: nn.Upsample(size=(13, 31)),
        "parts": Pyramid,
    },
    "sums and scales": {"scales": Scales, "sum": lambda: Plus(conv(), nn.ReLU()), "shared": Twice, "in place": InPlace},
    "batch norm": {
        "first": lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU(), conv()),
        "behind all": BehindAll,
        "not affine": lambda: normed(conv(), affine=False),
        "hidden modules": Hiding,
    },
    "attention": {"attention": Attention, "tokens": Tokens, "buffers": Buffers, "dropped": Dropping},
}
GROUPS = list(OPERATORS)
ALONE = [(group, name) for group, cases in OPERATORS.items() for name in cases]


class Chain(nn.Module):
    """An image through the parts, one after the other, to a map of four classes."""

    def __init__(self, parts):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, 2, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.parts = nn.ModuleList(parts)
        self.last = conv(4, 1)

    def forward(self, x):
        x = self.first(x)
        for part in self.parts:
            x = part(x)
        return self.last(x)


class Outputs(nn.Module):
    """Two maps of other sizes, as a tuple or a dictionary."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.first, self.a, self.b = kind, nn.Conv2d(3, CHANNELS, 3, 2, 1), conv(4, 1), conv(2, stride=2)

    def forward(self, x):
        x = self.first(x).relu()
        return (self.a(x), self.b(x)) if self.kind == "tuple" else {"out": self.a(x), "aux": self.b(x)}


def built(make):
    """A network of random weights in which nothing is as a fresh module has it."""
    torch.manual_seed(0)
    model = build_network("my_net:NET", Network(make, (3, *HW)))
    for _, module in nn.Module.named_modules(model):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.1, 0.4)
    return model.eval()


def images(count, seed=0):
    return torch.randn(count, 3, *HW, generator=torch.Generator().manual_seed(seed))


def outputs_of(model):
    return TorchPredictor(model, CPU).outputs(images(2, seed=9))


def decibels(expected, actual):
    pairs = zip(expected, actual, strict=True)
    return min(10 * torch.log10(a.square().sum() / (a - b).square().sum().clamp(min=1e-20)).item() for a, b in pairs)


def require_equal_file(int8, path, target):
    """The ONNX file of a graph gives what its integer arithmetic in PyTorch does; returns what is in float."""
    rewritten = for_target(int8, TARGETS[target])
    floats = in_float(rewritten, TARGETS[target])
    reference = TorchPredictor(as_integer_kernels(rewritten) if target == "onnxruntime" else rewritten, CPU)
    tests = [images(1, seed=9), images(3, seed=10)]  # any batch
    names = [f"output_{index}" for index in range(len(reference.outputs(tests[0])))]
    check = partial(compare, reference, batches=tests)
    options = ExportOptions(1)
    for agreement in export_onnx(rewritten, path, (3, *HW), {}, check, options, target, output_names=names):
        assert agreement.sqnr_db > NEAR_FILE[target], str(agreement)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert not {kind for kind in kinds if "Random" in kind or kind == "BatchNormalization"}
    return floats


def check_after_training(make, per_channel, folder, target="onnxruntime"):
    settings = QuantizationSettings(per_channel=per_channel, target=target)
    model = built(make)
    expected = outputs_of(model)
    int8 = quantize_after_training(model, (3, *HW), settings, [images(2, seed) for seed in range(4)])
    assert decibels(expected, outputs_of(int8)) > NEAR_FP32
    require_equal_file(int8, folder / "ptq.onnx", target)


def check_in_training(make, per_channel, folder, target="onnxruntime"):
    prepared = prepare_qat(built(make), HW, QuantizationSettings(per_channel=per_channel, target=target))
    calibrate(prepared, [images(2, seed) for seed in range(4)])
    set_evaluation_mode(prepared)
    assert decibels(outputs_of(built(make)), outputs_of(prepared)) > NEAR_FP32
    set_training_mode(prepared, QatSchedule(), 0)
    optimizer = torch.optim.AdamW(prepared.parameters(), 1e-4)
    output = prepared(images(2))
    (output[0] if isinstance(output, tuple) else output).square().mean().backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in prepared.parameters())
    set_evaluation_mode(prepared)
    trained, expected = outputs_of(prepared), in_float_when_converted(prepared, TARGETS[target])
    int8 = convert(prepared)
    assert decibels(trained, outputs_of(int8)) > NEAR_TRAINED
    assert require_equal_file(int8, folder / "qat.onnx", target) == expected


@pytest.mark.parametrize("check", [check_after_training, check_in_training])
@pytest.mark.parametrize("group", GROUPS)
def test_operators_of_a_kind(group, check, tmp_path):
    check(lambda: Chain(make() for make in OPERATORS[group].values()), GROUPS.index(group) % 2 == 0, tmp_path)


@pytest.mark.parametrize("check", [check_after_training, check_in_training])
@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_outputs(kind, check, tmp_path):
    check(lambda: Outputs(kind), True, tmp_path)


@pytest.mark.parametrize(
    "group", [pytest.param(group, marks=[] if group == "sums and scales" else pytest.mark.slow) for group in GROUPS]
)
def test_operators_of_a_kind_for_tensorrt(group, tmp_path):
    """The export checks the rules of the target."""
    check = (check_after_training, check_in_training)[GROUPS.index(group) % 2]
    check(lambda: Chain(make() for make in OPERATORS[group].values()), True, tmp_path, "tensorrt")


@pytest.mark.slow
@pytest.mark.parametrize("target", NEAR_FILE)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("check", [check_after_training, check_in_training])
@pytest.mark.parametrize(("group", "name"), ALONE)
def test_an_operator_alone(group, name, check, per_channel, target, tmp_path):
    check(lambda: Chain([OPERATORS[group][name]()]), per_channel, tmp_path, target)
