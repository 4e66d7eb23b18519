from collections import OrderedDict

import pytest
import torch

from common.networks.checkpoints import (
    Description,
    check_keys,
    load_network,
    published_state,
    read_checkpoint,
    save_checkpoint,
)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model_state_dict": state},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    ],
    ids=["raw", "model_state_dict", "state_dict", "model", "module."],
)
def test_every_accepted_form_gives_the_network(wrap, state, narrow_network, tmp_path):
    torch.save(wrap(state), tmp_path / "weights.pth")
    network, description = load_network("sceneseg", tmp_path / "weights.pth")
    assert (description.network, description.width, description.input_hw) == ("SceneSeg", 1 / 32, (320, 640))
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(network(image), narrow_network(image))


def test_what_is_saved_is_what_is_read(state, tmp_path):
    description = Description("SceneSeg", "fp32", 1 / 32, (64, 128), ("a",), metrics={"miou": 0.5})
    save_checkpoint(tmp_path / "weights.pth", state, description, {"step": 7})
    checkpoint = read_checkpoint(tmp_path / "weights.pth")
    assert (checkpoint.description, checkpoint.training) == (description, {"step": 7})
    assert list(checkpoint.state) == list(state)
    assert all(torch.equal(checkpoint.state[key], state[key]) for key in state)


def test_missing_unexpected_and_misshapen_keys_are_listed(state, tmp_path):
    first, second, *_ = state
    state["Extra.weight"] = state.pop(first)
    state[second] = torch.zeros(7)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError) as error:
        load_network("SceneSeg", tmp_path / "weights.pth")
    message = str(error.value)
    assert f"1 keys missing: {first}" in message
    assert "1 keys unexpected: Extra.weight" in message
    assert f"1 keys of another shape: {second} (7,) instead of (32,)" in message


def test_one_element_may_stand_for_a_scalar(state, tmp_path):
    counted = {key: value.reshape(1) if value.dim() == 0 else value for key, value in state.items()}
    torch.save(counted, tmp_path / "weights.pth")
    network, _ = load_network("SceneSeg", tmp_path / "weights.pth")
    assert all(torch.equal(value, state[key]) for key, value in published_state("SceneSeg", network).items())


def test_long_lists_are_cut():
    with pytest.raises(ValueError, match=r"20 keys missing: k0, .*k7 and 12 more$"):
        check_keys({f"k{i}": torch.zeros(1) for i in range(20)}, {}, "x.pth")


def test_a_checkpoint_of_another_network_is_refused(state, tmp_path):
    save_checkpoint(tmp_path / "w.pth", state, Description("Other", "fp32", 1.0, (64, 128)))
    with pytest.raises(ValueError, match=r"w\.pth: a checkpoint of Other, not of SceneSeg"):
        load_network("SceneSeg", tmp_path / "w.pth")


@pytest.mark.parametrize("document", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"a": 1}}, torch.zeros(3)])
def test_what_holds_no_state_dict_is_refused(document, tmp_path):
    torch.save(document, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: no state dict in it"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pth: "):
        read_checkpoint(tmp_path / "w.pth")


def test_a_pickled_module_is_refused_with_the_way_to_convert_it(narrow_network, tmp_path):
    torch.save({"model": narrow_network}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"never loaded .* torch\.save\(model\.state_dict"):
        read_checkpoint(tmp_path / "w.pth")


def test_the_versions_of_the_modules_are_kept(tmp_path):
    """Observers load a state dict without versions as one of their first version, with other settings."""
    state = torch.nn.BatchNorm2d(3).state_dict()
    torch.save({"model_state_dict": state}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").state._metadata == OrderedDict({"": {"version": 2}})
