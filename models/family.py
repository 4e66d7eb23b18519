"""The family: every network that the scripts take by name. A new network is one file and one row."""

from collections.abc import Callable
from typing import Any

from torch import nn

from models.auto_speed import CLASSES as OBJECTS
from models.auto_speed import AutoSpeedNetwork
from models.auto_steer import AutoSteerNetwork
from models.checkpoint_keys import PUBLISHED_KEYS, WIDTH_KEYS
from models.domain_seg import DomainSegNetwork
from models.ego_lanes import LANES, EgoLanesNetwork
from models.lite import CITYSCAPES, builders
from models.lite import LANES as LITE_LANES
from models.network import Network
from models.scene_3d import Scene3DNetwork
from models.scene_seg import CLASSES, COLOURS, MASK_COLOURS, SceneSegNetwork


def _of_images(name: str, build: Callable[..., nn.Module], task: str, output: str, **options: Any) -> Network:
    """A network of the family's usual kind: a normalised RGB image of 320x640, one output."""
    return Network(
        build=build,
        input_shape=(3, 320, 640),
        inputs={"input": "RGB image, (pixel / 255 - mean) / std"},
        outputs={"output": output},
        task=task,
        size_multiple=32,
        published_keys=tuple(PUBLISHED_KEYS[name]),
        width_key=WIDTH_KEYS[name],
        **options,
    )


def _lite(build: dict[str, Any], task: str, output: str, **options: Any) -> Network:
    """A Lite network of the family."""
    return Network(
        input_shape=(3, 320, 640),
        inputs={"input": "RGB image, (pixel / 255 - mean) / std"},
        outputs={"output": output},
        task=task,
        size_multiple=16,
        published_keys=(("head", "segmentation_head"),),
        **build,
        **options,
    )


NETWORKS = {
    "SceneSeg": _of_images(
        "SceneSeg",
        SceneSegNetwork,
        "segmentation",
        "logits of Background, Foreground, Road",
        classes=CLASSES,
        colours=COLOURS,
        mask_colours=MASK_COLOURS,
    ),
    "Scene3D": _of_images("Scene3D", Scene3DNetwork, "depth", "relative depth, unbounded"),
    "DomainSeg": _of_images(
        "DomainSeg",
        DomainSegNetwork,
        "segmentation",
        "logit of road work objects, foreground where above 0",
        classes=("road work objects",),
    ),
    "EgoLanes": _of_images(
        "EgoLanes",
        EgoLanesNetwork,
        "lanes",
        f"logits of {', '.join(LANES)}, at a quarter of the input size",
        classes=LANES,
    ),
    "SceneSegLite": _lite(
        builders("timm-efficientnet-b1", 128, len(CITYSCAPES)),
        "segmentation",
        "logits of the 19 Cityscapes classes",
        classes=tuple(CITYSCAPES),
        colours=tuple(CITYSCAPES.values()),
        mask_colours={colour: name for name, colour in CITYSCAPES.items()},
    ),
    "Scene3DLite": _lite(builders("timm-efficientnet-b1", 256, 1), "depth", "relative depth, unbounded"),
    "EgoLanesLite": _lite(
        builders("timm-efficientnet-b0", 64, len(LITE_LANES)),
        "lanes",
        f"logits of {', '.join(LITE_LANES)}",
        classes=LITE_LANES,
    ),
    "AutoSteer": Network(
        build=AutoSteerNetwork,
        input_shape=(6, 80, 160),
        inputs={"input": "EgoLanes outputs of the previous and the current frame"},
        outputs={
            "previous": "logits of the steering-angle bins of the previous frame, degrees = argmax - 30",
            "current": "logits of the steering-angle bins of the current frame, degrees = argmax - 30",
        },
        task="steering",
        mean=None,
        std=None,
        size_multiple=None,
        published_keys=tuple(PUBLISHED_KEYS["AutoSteer"]),
        made_by=("EgoLanes", 2),
    ),
    "AutoSpeed": Network(
        build=AutoSpeedNetwork,
        input_shape=(3, 640, 640),
        inputs={"input": "RGB image letterboxed to 640x640, pixel / 255"},
        outputs={"output": "centre x, centre y, width, height in pixels and 4 class scores in 0..1 of 8400 cells"},
        task="detection",
        classes=tuple(f"class {index}" for index in range(OBJECTS)),
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
