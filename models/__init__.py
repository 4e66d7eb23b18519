"""The registry: every network that the scripts take by name. A new network is one file and one row."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.scene_seg import CLASSES, SceneSegNetwork

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """What the scripts need to know of a network."""

    build: Callable[..., nn.Module]  # build(width=1.0): random weights, nothing is downloaded
    input_shape: tuple[int, int, int]  # native channels, height, width
    inputs: dict[str, str]  # name -> meaning
    outputs: dict[str, str]  # name -> meaning
    task: str
    mean: tuple[float, ...] | None  # of the normalisation; None: the network takes its input as it is
    std: tuple[float, ...] | None
    classes: tuple[str, ...] = ()
    size_multiple: int = 32  # height and width of the input are multiples of it


NETWORKS = {
    "SceneSeg": Network(
        build=SceneSegNetwork,
        input_shape=(3, 320, 640),
        inputs={"input": "RGB image"},
        outputs={"output": "logits of Background, Foreground, Road"},
        task="segmentation",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        classes=CLASSES,
    ),
}


def find_network(name: str) -> tuple[str, Network]:
    """The registered spelling and the row of a network, without regard to case.

    Raises:
        ValueError: there is no such network; the known ones are listed.
    """
    for known, network in NETWORKS.items():
        if known.lower() == name.lower():
            return known, network
    raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")


def check_input_hw(network: Network, input_hw: tuple[int, int]) -> None:
    """Raise ValueError for an input size that the network cannot take."""
    step = network.size_multiple
    if min(input_hw) <= 0 or input_hw[0] % step or input_hw[1] % step:
        raise ValueError(f"input size {input_hw[0]}x{input_hw[1]}: height and width have to be multiples of {step}")
