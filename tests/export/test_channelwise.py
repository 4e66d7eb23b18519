"""Batch norms and PReLU between codes as depthwise convolutions and sums: the same codes, and nothing in float."""

import copy

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from common.export.channelwise import use_channelwise_forms
from common.export.conversion import convert_int8
from common.export.in_float import counts, in_float
from common.export.int8_graph import for_target, use_unsigned_activations
from common.export.options import ExportOptions
from common.networks.opening import OpenedNetwork
from common.quantization.integer_reference import as_integer_kernels
from common.quantization.pt2e import DEQUANTIZE, QUANTIZE, quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.runtimes.targets import ONNX_RUNTIME, TARGETS
from models import Network

CHANNELS, SHAPE = 6, (3, 12, 20)
IMAGES = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
aten = torch.ops.aten


class Net(nn.Module):
    """Two convolutions, joined, behind which `middle` stands, and a last one."""

    def __init__(self, middle):
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, CHANNELS // 2, 3, padding=1) for _ in range(2))
        self.middle, self.last = middle, nn.Conv2d(CHANNELS, 4, 1)

    def forward(self, x):
        return self.last(self.middle(torch.cat([self.a(x), self.b(x)], 1)))


def batch_norm():
    norm = nn.BatchNorm2d(CHANNELS)
    for values, low, high in ((norm.weight, -2, 2), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
        nn.init.uniform_(values, low, high)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


def prelu(*slopes):
    activation = nn.PReLU(len(slopes))
    activation.weight = nn.Parameter(torch.tensor(slopes))
    return activation


SLOPES = (0.25, 0.0, 1.0, 0.7, -0.5, 0.01)
STEEP = (0.25, 3.0, 1.0, 1.5, -0.5, 0.01)
MIDDLES = {
    "batch norm": batch_norm,
    "PReLU": lambda: prelu(*SLOPES),
    "PReLU of one slope": lambda: prelu(0.25),
    "steep PReLU": lambda: prelu(*STEEP),
    "batch norm and PReLU": lambda: nn.Sequential(batch_norm(), prelu(*SLOPES)),
    "batch norm and steep PReLU": lambda: nn.Sequential(batch_norm(), prelu(*STEEP)),
}


def opened(middle):
    torch.manual_seed(0)
    network = Network(build=lambda: None, input_shape=SHAPE, classes=tuple("abcd"))
    return OpenedNetwork("Net", network, Net(MIDDLES[middle]()).eval(), 1.0, SHAPE)


def quantized(model):
    """In unsigned codes."""
    int8 = quantize_after_training(copy.deepcopy(model), SHAPE, QuantizationSettings(), [IMAGES])
    use_unsigned_activations(int8)
    return int8


@pytest.mark.parametrize("middle", MIDDLES)
def test_codes_stay_and_nothing_is_left_in_float(middle):
    plain = quantized(opened(middle).model)
    rewritten = copy.deepcopy(plain)
    assert use_channelwise_forms(rewritten) == 1
    assert not {aten.prelu.default, aten.mul.Tensor} & {node.target for node in rewritten.graph.nodes}
    sums = [node for node in rewritten.graph.nodes if node.target == aten.add.Tensor]
    assert {each.target for node in sums for each in node.args} <= {DEQUANTIZE}
    assert {user.target for node in sums for user in node.users} <= {QUANTIZE}
    images = 2 * IMAGES
    step = [node.args[1] for node in rewritten.graph.nodes if node.target == QUANTIZE][-1]
    expected, found = plain(images), rewritten(images)
    assert (expected - found).abs().max() < 3 * step  # a code that differs in the middle reaches more than one
    assert (expected == found).double().mean() > 0.99


@pytest.mark.parametrize("middle", ["batch norm", "PReLU", "PReLU of one slope", "batch norm and steep PReLU"])
def test_onnx_runtime_computes_every_code_in_int8(middle, tmp_path):
    source, path = opened(middle), tmp_path / "a.onnx"
    convert_int8(source, path, ExportOptions(1), QuantizationSettings(), [IMAGES], [IMAGES[:1]])
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not kinds & {"PRelu", "Mul", "Add", "Conv", "BatchNormalization"}

    int8 = quantize_after_training(copy.deepcopy(source.model), SHAPE, QuantizationSettings(), [IMAGES])
    reference = as_integer_kernels(for_target(int8, ONNX_RUNTIME))
    found = torch.from_numpy(session.run(None, {"input": IMAGES.numpy()})[0])
    assert torch.equal(reference(IMAGES), found)


def test_a_channel_that_died_in_training_counts_as_none():
    """Its factor and offset are too small for float32 to divide by."""
    norm = batch_norm()
    with torch.no_grad():
        norm.weight[2], norm.bias[2], norm.running_mean[2] = 1e-41, 1e-41, 0
    plain = quantized(Net(norm).eval())
    rewritten = copy.deepcopy(plain)
    use_channelwise_forms(rewritten)
    assert torch.allclose(plain(IMAGES), rewritten(IMAGES), atol=0.1)
    assert all(values.isfinite().all() for values in dict(rewritten.named_buffers()).values())


class Residual(nn.Module):
    """A sum that is not rounded, so that what follows stays in float."""

    def __init__(self, slopes):
        super().__init__()
        self.first, self.a = nn.Conv2d(3, CHANNELS, 3), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.norm, self.act, self.last = batch_norm(), prelu(*slopes), nn.Conv2d(CHANNELS, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.act(self.norm(x + self.a(x))))


@pytest.mark.parametrize("slopes", [SLOPES, STEEP])
def test_in_float_a_prelu_is_what_it_was(slopes):
    torch.manual_seed(0)
    plain = quantized(Residual(slopes).eval())
    rewritten = copy.deepcopy(plain)
    assert use_channelwise_forms(rewritten) == 1
    assert aten.prelu.default not in {node.target for node in rewritten.graph.nodes}
    assert torch.equal(plain(IMAGES), rewritten(IMAGES))
    assert counts(in_float(rewritten)) == {"add": 1, "batch_norm": 1, "prelu": 1}


def test_behind_a_linear_layer_a_prelu_is_in_float():
    """There is no image, and so no convolution that could multiply its channels."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network += nn.Sequential(nn.Linear(CHANNELS, CHANNELS), prelu(*STEEP), nn.Linear(CHANNELS, 2))
    plain = quantized(network.eval())
    assert counts(in_float(plain)) == {"prelu": 1}
    rewritten = copy.deepcopy(plain)
    assert use_channelwise_forms(rewritten) == 1
    torch.testing.assert_close(rewritten(IMAGES), plain(IMAGES))
    assert counts(in_float(rewritten)) == {"prelu": 1}


def test_what_is_told_before_and_after_is_the_same():
    plain = quantized(opened("batch norm and PReLU").model)
    assert counts(in_float(plain)) == {}
    assert counts(in_float(plain, TARGETS["openvino"])) == {"batch_norm": 1, "prelu": 1}
    use_channelwise_forms(plain)
    assert counts(in_float(plain)) == {}
