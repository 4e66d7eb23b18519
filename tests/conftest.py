import os
from pathlib import Path

import pytest
import torch
from torch import nn

from common.networks.checkpoints import published_state
from models.scene_seg import SceneSegNetwork
from tests.patterns import remember_patterns

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
NARROW = 1 / 32  # the smallest width


# with the two processes of `make test` the longest files start first, so that none of them is left alone at the end
LONGEST = ("test_scripts", "test_long_runs", "test_conversion", "test_pt2e", "test_distributed", "test_models")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_runtest_setup() -> None:
    remember_patterns()


@pytest.fixture
def shared():
    """The folder with the published networks' expected outputs and real images, beside the repository."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("needs ../shared (golden outputs, manifests, CamVid), which is not part of the repository")
    return SHARED


@pytest.fixture
def narrow_network():
    """A SceneSeg of the smallest width with random weights, in eval mode."""
    torch.manual_seed(0)
    return SceneSegNetwork(NARROW).eval()


@pytest.fixture
def state(narrow_network):
    """Its state dict, under its published names."""
    return published_state("SceneSeg", narrow_network)


class TinyNetwork(nn.Module):
    """Convolution, batch norm, SiLU and a sum: what quantization distinguishes, in a network that takes no time."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU())
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.second(x))


@pytest.fixture
def tiny_network():
    """A TinyNetwork with random weights, in eval mode."""
    torch.manual_seed(0)
    return TinyNetwork().eval()


@pytest.fixture
def check_golden(request):
    """Compare a small tensor with tests/golden/<test>.pt; ACCEPT_GOLDEN=1 writes it instead."""

    def check(actual: torch.Tensor, **tolerance) -> None:
        path = GOLDEN / f"{request.node.name}.pt"
        if os.environ.get("ACCEPT_GOLDEN") == "1":
            path.parent.mkdir(exist_ok=True)
            torch.save(actual.clone(), path)  # a slice alone, without the storage it is a view of
        assert path.exists(), f"{path} is missing; accept with: ACCEPT_GOLDEN=1 pytest {request.node.nodeid}"
        torch.testing.assert_close(actual, torch.load(path, weights_only=True), **tolerance)

    return check
