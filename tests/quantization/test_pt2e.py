import pytest
import torch
from torch import nn

from common.export.int8_graph import for_target
from common.quantization.batch_norm import BATCH_NORM
from common.quantization.pt2e import (
    DEQUANTIZE,
    DEQUANTIZE_PER_CHANNEL,
    DROPOUT,
    QUANTIZE,
    calibrate,
    convert,
    prepare_qat,
    quantize_after_training,
    set_evaluation_mode,
    set_mode,
    set_training_mode,
)
from common.quantization.quantizer import SMALLEST_SCALE
from common.quantization.settings import QatSchedule, QuantizationSettings
from common.runtimes.targets import ONNX_RUNTIME
from models.fuse import fuse_upsampling
from models.scene_seg import SceneSegNetwork

HW = (32, 64)


def images(count, seed=0):
    return torch.randn(count, 3, *HW, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    graph = prepare_qat(SceneSegNetwork(1 / 32), HW, QuantizationSettings())
    set_mode(graph, dropout=False, batch_norm=True, observers=False)
    with torch.no_grad():
        for seed in range(10):  # the statistics of batch norm, without which maps vanish in the depth of the network
            graph(images(4, seed))
    return graph


@pytest.fixture(scope="module")
def int8(prepared):
    calibrate(prepared, [images(1, seed) for seed in range(4)])
    return convert(prepared)


def plain_network():
    """Without batch norm, which takes PyTorch seconds to prepare."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 3, 1))


def quantized(network, trained, batch, **settings):
    """In INT8 with ranges from `batch`, by way of a graph for training or without."""
    options = QuantizationSettings(**settings)
    if not trained:
        return quantize_after_training(network, (3, *HW), options, [batch])
    prepared = prepare_qat(network, HW, options)
    calibrate(prepared, [batch])
    return convert(prepared)


def changed(prepared, call):
    before = {key: value.clone() for key, value in prepared.state_dict().items()}
    call()
    return {key for key, value in prepared.state_dict().items() if not torch.equal(value, before[key])}


def flags(prepared):
    batch_norm = {node.args[5] for node in prepared.graph.nodes if node.target == BATCH_NORM}
    dropout = {node.args[2] for node in prepared.graph.nodes if node.target in DROPOUT}
    return batch_norm, dropout


def test_no_random_node_but_dropout_is_in_the_graph(prepared):
    targets = {str(node.target) for node in prepared.graph.nodes}
    assert not any("bernoulli" in target or "rand" in target for target in targets)


def test_weights_keep_their_names(prepared):
    names = set(fuse_upsampling(SceneSegNetwork(1 / 32)).state_dict())
    assert names <= set(prepared.state_dict())


def test_the_schedule_freezes_batch_norm_then_observers(prepared):
    schedule = QatSchedule(freeze_batch_norm=1, freeze_observers=2)
    for epoch, (batch_norm_moves, ranges_move) in enumerate([(True, True), (False, True), (False, False)]):
        set_training_mode(prepared, schedule, epoch)
        assert flags(prepared) == ({batch_norm_moves}, {True})
        moved = changed(prepared, lambda epoch=epoch: prepared(5 * images(2, epoch)))
        assert any(key.endswith("running_mean") for key in moved) == batch_norm_moves
        assert any(key.endswith("max_val") for key in moved) == ranges_move


def test_a_schedule_that_freezes_ranges_first_is_refused():
    with pytest.raises(ValueError, match="before batch norm"):
        QatSchedule(freeze_batch_norm=2, freeze_observers=1)


def test_scoring_leaves_no_trace(prepared):
    set_evaluation_mode(prepared)
    assert flags(prepared) == ({False}, {False})
    moved = changed(prepared, lambda: prepared(100 * images(2)))
    assert not [key for key in moved if not key.endswith("num_batches_tracked")]
    torch.testing.assert_close(prepared(images(2)), prepared(images(2)), rtol=0, atol=0)


def test_calibration_moves_ranges_and_nothing_else(prepared):
    moved = changed(prepared, lambda: calibrate(prepared, [3 * images(1)]))
    assert any(key.endswith("max_val") for key in moved)
    assert all("activation_post_process" in key or key.endswith("num_batches_tracked") for key in moved)


def test_ranges_survive_conversion(prepared, int8):
    """Every activation scale of the INT8 graph is that of a range which the observers hold."""
    used = {node.args[1] for node in int8.graph.nodes if node.target == QUANTIZE}
    observers = [module for name, module in prepared.named_modules() if name.startswith("activation_post_process")]
    ranges = {(o.max_val.clamp(min=0) - o.min_val.clamp(max=0)).item() for o in observers if hasattr(o, "min_val")}
    learned = {max(size / 255, SMALLEST_SCALE) for size in ranges}
    assert len(used) > 50
    assert all(any(abs(scale - known) <= 1e-6 * known for known in learned) for scale in used)


def test_int8_follows_fake_quantization(prepared, int8):
    batch = images(2, seed=9)
    with torch.no_grad():
        expected, actual = prepared(batch), int8(batch)
    assert actual.shape == expected.shape
    error = (expected - actual).square().mean() / expected.square().mean()
    assert error < 1e-3  # they differ by where batch norm is folded: rare steps of rounding


def test_int8_weights_are_int8_and_any_batch_works(int8):
    weights = [value for value in int8.state_dict().values() if value.dtype == torch.int8]
    assert sum(weight.dim() == 4 for weight in weights) == 100
    with torch.no_grad():
        torch.testing.assert_close(int8(images(3))[1:2], int8(images(3)[1:2]))


def test_converting_without_an_image_seen_is_an_error():
    fresh = prepare_qat(plain_network(), HW, QuantizationSettings())
    with pytest.raises(ValueError, match="observers never saw an image"):
        convert(fresh)


@pytest.mark.parametrize("sign", [0, 1, -1])
@pytest.mark.parametrize("per_channel", [False, True])
def test_int8_weights_are_the_trained_ones_on_every_axis_and_of_one_sign(per_channel, sign):
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(8, 6, 2, stride=2)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), up)
    with torch.no_grad():
        for layer in (network[0], up) if sign else ():
            layer.weight.abs_().mul_(sign)
    prepared = prepare_qat(network, HW, QuantizationSettings(per_channel=per_channel))
    calibrate(prepared, [images(2)])
    int8 = convert(prepared)
    pairs = [node for node in int8.graph.nodes if node.target in (DEQUANTIZE, DEQUANTIZE_PER_CHANNEL)]
    pairs = [node for node in pairs if node.args[0].op == "get_attr"]
    if per_channel:
        scales, zero_points = ([getattr(int8, node.args[place].target) for node in pairs] for place in (1, 2))
        assert [scale.numel() for scale in scales] == [8, 6]
        assert [node.args[3] for node in pairs] == [0, 1]
        assert not any(each.any() for each in zero_points)
    else:
        assert [node.args[2] for node in pairs] == [0, 0]
    with torch.no_grad():
        expected, actual = prepared(images(2)), int8(images(2))
    assert (expected - actual).square().mean() < 1e-6 * expected.square().mean()


def test_ranges_in_front_of_activations_end_where_the_activation_does(int8):
    """SiLU and GELU are 0 to within a step below -8 and -3: no code of their input stands for less."""
    lower = {torch.ops.aten.silu_.default: -8.0, torch.ops.aten.gelu.default: -3.0}
    seen = 0
    for node in int8.graph.nodes:
        if node.target in lower:
            scale, zero_point, smallest = node.args[0].args[1:4]
            assert (smallest - zero_point) * scale > lower[node.target] - scale
            seen += 1
    assert seen == 49 + 16


@pytest.mark.parametrize("trained", [True, False])
def test_a_module_stays_in_float_and_the_others_do_not(tiny_network, trained):
    int8 = quantized(tiny_network, trained, images(1), keep_float=("sec*",))
    unsigned = for_target(int8, ONNX_RUNTIME)
    convolutions = [node for node in unsigned.graph.nodes if node.target == torch.ops.aten.conv2d.default]
    in_float = [node.args[1].op == "get_attr" for node in convolutions]
    assert in_float == [False, True, False]
    assert torch.ops.aten.gelu.default in {node.target for node in unsigned.graph.nodes}
    assert unsigned(images(3)).isfinite().all()


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="--keep_float neck.*largest are 0, 1, 2"):
        prepare_qat(plain_network(), HW, QuantizationSettings(keep_float=("neck*",)))


@pytest.mark.parametrize("trained", [False, True])
def test_images_of_small_values_keep_their_codes(trained):
    """Divided by 255 twice, as ESPNet takes them: in steps of 2^-12 they would have 60 codes left."""
    torch.manual_seed(0)
    network, batch = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-6)).eval(), images(2) / 255
    network[1].running_var.fill_(1e-5)
    expected = network(batch)
    int8 = quantized(network, trained, batch)
    first = next(node for node in int8.graph.nodes if node.target == QUANTIZE)
    assert first.args[1] < 2**-12
    assert 10 * torch.log10(expected.var() / (int8(batch) - expected).square().mean()) > 33


@pytest.mark.parametrize("trained", [False, True])
def test_parts_of_an_output_keep_scales_of_their_own(trained):
    """Boxes in hundreds of pixels beside scores of hundredths, which one scale would round to 0."""

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.boxes, self.scores = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return torch.cat([500 * self.boxes(x), (self.scores(x) - 3).sigmoid()], 1)

    torch.manual_seed(0)
    network, batch = Detector().eval(), images(2)
    int8 = quantized(network, trained, batch)
    with torch.no_grad():
        expected, found = network(batch), int8(batch)
    for part in (slice(0, 4), slice(4, 6)):
        noise = (found - expected)[:, part].square().mean()
        assert 10 * torch.log10(expected[:, part].var() / noise) > 30


def test_a_sum_that_is_an_output_and_goes_on_stays_in_int8():
    """One that is an output alone is not rounded."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            features = self.a(x) + self.b(x)
            return features, self.last(features) + features

    int8 = quantized(Two().eval(), False, images(2))
    sums = [node for node in int8.graph.nodes if node.target == torch.ops.aten.add.Tensor]
    assert [QUANTIZE in {user.target for user in node.users} for node in sums] == [True, False]
