import importlib.util
import json
import zlib

import numpy as np
import pytest
import torch

from common.networks.registry import build_network
from models import check_input_hw
from models.backbone import remove_stochastic_depth
from models.checkpoint_keys import from_published, infer_width, to_published
from models.domain_seg import DomainSegNetwork
from models.family import NETWORKS, find_network
from models.scene_3d import Scene3DNetwork
from models.scene_seg import SceneSegNetwork


def fill(state):
    """Weights that depend on key and shape alone, not on a library's random numbers."""
    filled = {}
    for key, value in state.items():
        words = np.random.PCG64(zlib.crc32(key.encode())).random_raw(value.numel() or 1) >> np.uint64(40)
        numbers = torch.from_numpy(words.astype(np.float64) / 2**24)[: value.numel()].reshape(value.shape)
        fan_in = max(value[0].numel(), 1) if value.dim() > 1 else 1
        if key.endswith("num_batches_tracked"):
            numbers = torch.zeros(value.shape)
        elif value.dim() > 1:
            numbers = (numbers - 0.5) * (12 / fan_in) ** 0.5
        elif not key.endswith(("bias", "running_mean")):
            numbers = numbers + 0.5
        filled[key] = numbers.to(value.dtype)
    return filled


def test_a_frozen_case_of_our_own(check_golden):
    network = SceneSegNetwork(1 / 32).eval()
    network.load_state_dict(fill(network.state_dict()), strict=True)
    image = torch.sin(torch.arange(3 * 64 * 96) * 0.37).reshape(1, 3, 64, 96)
    with torch.no_grad():
        check_golden(network(image)[:, :, ::8, ::8], rtol=1e-4, atol=1e-5)


def load_golden_fill(shared):
    spec = importlib.util.spec_from_file_location("golden_fill", shared / "golden" / "golden_fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_published_state_dict_and_its_outputs(shared, name):
    golden_fill = load_golden_fill(shared)
    manifest = json.loads((shared / "spec" / "manifests" / f"{name}.json").read_text())
    network = NETWORKS[name].build().eval()
    state = to_published(NETWORKS[name], network.state_dict())
    assert list(state) == list(manifest)
    assert [list(value.shape) for value in state.values()] == [entry["shape"] for entry in manifest.values()]
    assert [str(value.dtype) for value in state.values()] == [f"torch.{entry['dtype']}" for entry in manifest.values()]

    weights = golden_fill.fill(state)
    digests = json.loads((shared / "golden" / "digests.json").read_text())[name]
    assert golden_fill.digest(weights) == digests["weights_A"], "the recipe's weights differ on this machine"
    network.load_state_dict(from_published(NETWORKS[name], weights), strict=True)
    with torch.no_grad():
        outputs = network(golden_fill.make_input((1, *NETWORKS[name].input_shape), seed=1))
    expected = np.load(shared / "golden" / "public" / f"{name}_seed1.npz")
    described = json.loads((shared / "golden" / "public" / f"{name}_seed1.json").read_text())["outputs"]
    for index, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
        values = golden_parts(output, described[index], expected, f"out{index}")
        assert values
        for actual, wanted in values:
            assert np.abs(actual.numpy() - wanted).max() <= 1e-4 * np.ptp(wanted)


def golden_parts(output, described, expected, key):
    """(part of our output, the published values of that part); the published description names the parts."""
    if described["slice"] == "full":
        return [(output[0], expected[key])]
    step = int(described["slice"].rsplit(":", 1)[1].rstrip("]"))
    parts = [(output[..., ::step] if output.dim() == 3 else output[..., ::step, ::step], expected[f"{key}_slice"])]
    if "crops" in described:
        crop = expected[f"{key}_crop_br"]
        parts.append((output[..., -crop.shape[-2] :, -crop.shape[-1] :], crop))
    return parts


@pytest.mark.parametrize("name", sorted(NETWORKS))
@torch.no_grad()
def test_each_row_of_a_batch_is_the_batch_of_one(name):
    torch.manual_seed(0)
    row = NETWORKS[name]
    narrow, has_width = row.size_multiple is not None, row.width_key is not None
    network = (row.build(width=1 / 16) if narrow and has_width else row.build()).eval()
    inputs = torch.randn(3, row.input_shape[0], *((64, 96) if narrow else row.input_shape[1:]))
    batch, rows = network(inputs), [network(one[None]) for one in inputs]
    if not isinstance(batch, tuple):
        batch, rows = (batch,), [(output,) for output in rows]
    for index, output in enumerate(batch):
        torch.testing.assert_close(output, torch.cat([outputs[index] for outputs in rows]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("build", "parts"), [(Scene3DNetwork, 1), (DomainSegNetwork, 3)])
def test_a_network_on_a_pretrained_scene_seg_takes_its_parts_frozen(build, parts):
    scene_seg = SceneSegNetwork(1 / 16)
    network = build(1 / 16, scene_seg)
    frozen = {name.split(".")[0] for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone", "context", "neck"} if parts == 3 else {"backbone"}
    taken = scene_seg.state_dict()
    for key, value in network.state_dict().items():
        if key.split(".")[0] in frozen:
            assert torch.equal(value, taken[key])
    build(1 / 16).load_state_dict(network.state_dict(), strict=True)  # its checkpoint needs no SceneSeg


@pytest.mark.parametrize("hw", [(32, 32), (64, 160), (320, 640)])
def test_any_multiple_of_32_is_an_input_size(narrow_network, hw):
    with torch.no_grad():
        assert narrow_network(torch.zeros(1, 3, *hw)).shape == (1, 3, *hw)


def test_other_input_sizes_are_refused():
    network = NETWORKS["SceneSeg"]
    check_input_hw(network, (352, 640))
    for hw in ((300, 640), (320, 600), (0, 640)):
        with pytest.raises(ValueError, match="multiples of 32"):
            check_input_hw(network, hw)


@pytest.mark.parametrize("width", [1 / 32, 3 / 32, 1 / 8, 0.5])
def test_the_width_follows_from_the_shapes(width):
    state = to_published(NETWORKS["SceneSeg"], SceneSegNetwork(width).state_dict())
    assert infer_width(NETWORKS["SceneSeg"], state) == width


@pytest.mark.parametrize("width", [0, -1, 0.3, 1 / 64])
def test_a_width_without_whole_channels_is_refused(width):
    with pytest.raises(ValueError, match="use a multiple of 1/32"):
        SceneSegNetwork(width)


def test_renaming_there_and_back_changes_nothing(narrow_network):
    state = narrow_network.state_dict()
    scene_seg = NETWORKS["SceneSeg"]
    published = to_published(scene_seg, state)
    assert not set(published) & set(state)
    assert list(from_published(scene_seg, published)) == list(state)


def test_names_are_matched_without_regard_to_case():
    assert find_network("sceneseg")[0] == "SceneSeg"
    with pytest.raises(ValueError, match="unknown network 'Nothing'; known: .*SceneSeg"):
        find_network("Nothing")
    with pytest.raises(ValueError, match="EgoPath: neither its architecture nor its weights were published"):
        find_network("EgoPath")


def test_networks_of_one_size_say_which():
    with pytest.raises(ValueError, match="bound to 640x640"):
        check_input_hw(NETWORKS["AutoSpeed"], (320, 640))
    for name in ("AutoSpeed", "AutoSteer"):
        with pytest.raises(ValueError, match=name):
            build_network(name, NETWORKS[name], width=0.5)


def test_without_stochastic_depth_training_mode_is_deterministic_but_for_dropout(narrow_network):
    remove_stochastic_depth(narrow_network)
    encoder = narrow_network.backbone.train()
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(image)[-1], encoder(image)[-1])
