"""The registry: every network that the scripts take by name. A new network is one file and one row."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.auto_speed import AutoSpeedNetwork
from models.auto_steer import AutoSteerNetwork
from models.domain_seg import DomainSegNetwork
from models.ego_lanes import LANES, EgoLanesNetwork
from models.scene_3d import Scene3DNetwork
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
    mean: tuple[float, ...] | None = None  # RGB of 0..1, taken off before dividing by std; None: no image
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] = ()
    size_multiple: int | None = 32  # height and width of the input are multiples of it; None: the native size alone


def _of_images(build: Callable[..., nn.Module], task: str, output: str, classes: tuple[str, ...] = ()) -> Network:
    """A network of the family's usual kind: a normalised RGB image of 320x640, one output."""
    return Network(
        build=build,
        input_shape=(3, 320, 640),
        inputs={"input": "RGB image, (pixel / 255 - mean) / std"},
        outputs={"output": output},
        task=task,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        classes=classes,
    )


NETWORKS = {
    "SceneSeg": _of_images(SceneSegNetwork, "segmentation", "logits of Background, Foreground, Road", CLASSES),
    "Scene3D": _of_images(Scene3DNetwork, "depth", "relative depth, unbounded"),
    "DomainSeg": _of_images(DomainSegNetwork, "segmentation", "logit of road work objects, foreground where above 0"),
    "EgoLanes": _of_images(EgoLanesNetwork, "lanes", f"logits of {', '.join(LANES)}, at a quarter of the input size"),
    "AutoSteer": Network(
        build=AutoSteerNetwork,
        input_shape=(6, 80, 160),
        inputs={"input": "EgoLanes outputs of the previous and the current frame"},
        outputs={
            "previous": "logits of the steering-angle bins of the previous frame, degrees = argmax - 30",
            "current": "logits of the steering-angle bins of the current frame, degrees = argmax - 30",
        },
        task="steering",
        size_multiple=None,
    ),
    "AutoSpeed": Network(
        build=AutoSpeedNetwork,
        input_shape=(3, 640, 640),
        inputs={"input": "RGB image letterboxed to 640x640, pixel / 255"},
        outputs={"output": "centre x, centre y, width, height in pixels and 4 class scores in 0..1 of 8400 cells"},
        task="detection",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        size_multiple=None,
    ),
}
UNPUBLISHED = ("EgoPath",)  # named by the original trace script


def find_network(name: str) -> tuple[str, Network]:
    """The registered spelling and the row of a network, without regard to case.

    Raises:
        ValueError: there is no such network; the known ones are listed.
    """
    for known, network in NETWORKS.items():
        if known.lower() == name.lower():
            return known, network
    if name.lower() in (unpublished.lower() for unpublished in UNPUBLISHED):
        raise ValueError(
            f"{name}: neither its architecture nor its weights were published; known: {', '.join(NETWORKS)}"
        )
    raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")


def check_input_hw(network: Network, input_hw: tuple[int, int]) -> None:
    """Raise ValueError for an input size that the network cannot take."""
    height, width = input_hw
    step = network.size_multiple
    if step is None:
        if input_hw != network.input_shape[1:]:
            native = "x".join(map(str, network.input_shape[1:]))
            raise ValueError(f"input size {height}x{width}: this network is bound to {native}")
    elif min(input_hw) <= 0 or height % step or width % step:
        raise ValueError(f"input size {height}x{width}: height and width have to be multiples of {step}")
