"""The Lite networks: what a checkpoint is follows from its shapes, and one is never taken for another."""

import pytest
import torch

from common.networks.checkpoints import load_network
from models.checkpoint_keys import to_published
from models.family import NETWORKS
from models.lite import deeplab

KINDS = {"published": ("timm-efficientnet-b0", 64, 3), "of the evaluation": ("timm-efficientnet-b1", 64, 1)}


def save(path, name, model):
    torch.save(to_published(NETWORKS[name], model.state_dict()), path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_both_kinds_of_published_checkpoints_load(kind, tmp_path):
    encoder, channels, kernel = KINDS[kind]
    saved = deeplab(encoder, channels, 3, kernel).eval()
    model, description = load_network("EgoLanesLite", save(tmp_path / "lanes.pth", "EgoLanesLite", saved))
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(model(image), saved(image))
    assert description.network == "EgoLanesLite"


def test_one_is_not_taken_for_another(tmp_path):
    lanes = save(tmp_path / "lanes.pth", "EgoLanesLite", NETWORKS["EgoLanesLite"].build())
    for name in ("SceneSegLite", "Scene3DLite", "EgoLanes"):
        with pytest.raises(ValueError, match=f"not a checkpoint of {name}"):
            load_network(name, lanes)
