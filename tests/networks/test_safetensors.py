"""Weights in safetensors: by their content, under any suffix, and as carefully as other files."""

import struct

import pytest
import torch
from safetensors.torch import save_file

from common.networks.checkpoints import load_network, published_state
from common.runtimes.candidates import OpenOptions, open_candidates
from tests.states import KEY, assert_same, averaged, behind


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.ckpt"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_safetensors_are_read_by_their_content(name, kind, state, tmp_path):
    rounded = {key: value.to(kind) if value.is_floating_point() else value for key, value in state.items()}
    save_file(behind("model.", rounded), tmp_path / name, metadata={"format": "pt"})
    actual = published_state("SceneSeg", load_network("SceneSeg", tmp_path / name)[0])
    assert_same(actual, {key: value.float() if value.is_floating_point() else value for key, value in rounded.items()})


def test_a_checkpoint_of_pytorch_under_the_suffix_of_safetensors_is_read(state, tmp_path):
    torch.save(state, tmp_path / "w.safetensors")
    assert_same(published_state("SceneSeg", load_network("SceneSeg", tmp_path / "w.safetensors")[0]), state)


def test_safetensors_with_averages_and_raw_weights(state, tmp_path):
    save_file({**behind("model.", state), **behind("ema.", averaged(state))}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="2 sets of weights: ema, model;"):
        load_network("SceneSeg", tmp_path / "w.safetensors")
    actual = published_state("SceneSeg", load_network("SceneSeg", tmp_path / "w.safetensors", "ema")[0])
    assert_same(actual, averaged(state))


def spoiled(state, value):
    """`state` with one number that is none."""
    copied = {key: tensor.clone() for key, tensor in state.items()}
    copied[KEY].view(-1)[0] = value
    return copied


def test_what_safetensors_hold_is_checked_as_in_other_files(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(spoiled(state, float("nan")), path)
    with pytest.raises(ValueError, match=rf"w\.safetensors: 1 of 412 tensors hold NaN or infinity .*: {KEY}"):
        load_network("SceneSeg", path)
    save_file({**state, KEY: state[KEY].to(torch.complex64)}, path)
    with pytest.raises(ValueError, match=rf"no state dict of plain numbers; {KEY} is torch\.complex64"):
        load_network("SceneSeg", path)
    save_file({**state, KEY: torch.zeros(25, 1281)}, path)
    with pytest.raises(ValueError, match="of another shape"):
        load_network("SceneSeg", path)
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="412 keys missing: .*; 1 keys unexpected: a$"):
        load_network("SceneSeg", path)


HEAD = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def headed(head, data=bytes(8), length=None):
    return struct.pack("<Q", len(head) if length is None else length) + head + data


@pytest.mark.parametrize(
    "content",
    [
        headed(HEAD, bytes(4)),
        headed(HEAD, bytes(12)),
        headed(HEAD, length=2**63),
        headed(HEAD, length=10**9),
        headed(HEAD, length=9),
        headed(HEAD.replace(b"[2]", b"[1000000000000]")),
        headed(HEAD.replace(b"[2]", b"[4611686018427387904,4]")),
        headed(HEAD.replace(b"[2]", b"[-2]")),
        headed(HEAD.replace(b"F32", b"OBJ")),
        headed(HEAD.replace(b"}}", b'},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')),
        headed(b"{" * 10**5),
        headed(b'{"a":' * 10**5),
        headed(b'{"__metadata__":{"a":5}}'),
        headed(b"{}", b""),
        headed(HEAD.replace(b"F32", b"F4").replace(b"[2]", b"[16]")),
    ],
)
def test_damaged_and_hostile_safetensors_are_refused(content, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.safetensors: (damaged, or not a safetensors file \(|no state dict)"):
        load_network("SceneSeg", tmp_path / "w.safetensors")


def test_a_benchmark_takes_safetensors_and_the_choice(state, tmp_path):
    save_file({**behind("model.", state), **behind("ema.", averaged(state))}, tmp_path / "w.safetensors")
    options = OpenOptions(torch.device("cpu"), 1, "SceneSeg", pytorch_hw=(32, 64), weights="ema")
    candidate = open_candidates([("A", tmp_path / "w.safetensors", ".safetensors")], options)["A"]
    network, _ = load_network("SceneSeg", tmp_path / "w.safetensors", "ema")
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(candidate.open(1)(image), network(image))
