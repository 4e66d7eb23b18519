"""The names of the weights: those of the published checkpoints, and ours, in one table."""

from collections.abc import Iterable
from typing import Any

from models.network import Network

Prefixes = list[tuple[str, str]]  # (published, ours), in the order of the published state dict


def _context(published: str, ours: str) -> Prefixes:
    names = [f"attend.{3 * index}" for index in range(3)] + [f"expand.{2 * index}" for index in range(4)]
    return [(f"{published}.context_layer_{index}", f"{ours}.{name}") for index, name in enumerate(names)]


def _stages(published: str, ours: str, first: int, count: int) -> Prefixes:
    """Upsampling stages, which the published names number through neck and head."""
    pairs = []
    for index in range(count):
        stage, number = f"{ours}.stages.{index}", first + index
        pairs += [
            (f"{published}.upsample_layer_{number}", f"{stage}.upsample"),
            (f"{published}.skip_link_layer_{number}", f"{stage}.skip"),
            (f"{published}.decode_layer_{2 * number}", f"{stage}.refine.0"),
            (f"{published}.decode_layer_{2 * number + 1}", f"{stage}.refine.2"),
        ]
    return pairs


PUBLISHED_KEYS: dict[str, Prefixes] = {
    "SceneSeg": [
        ("Backbone", "backbone"),
        *_context("SceneContext", "context"),
        *_stages("SceneNeck", "neck", 0, 3),
        *_stages("SceneSegHead", "head", 3, 2),
        ("SceneSegHead.decode_layer_10", "head.classify"),
    ],
    "Scene3D": [
        ("PreTrainedBackbone.pretrainedBackBone", "backbone"),
        *_context("DepthContext", "context"),
        *_stages("DepthNeck", "neck", 0, 3),
        *_stages("SuperDepthHead", "head", 3, 2),
        ("SuperDepthHead.decode_layer_10", "head.classify"),
    ],
    "DomainSeg": [
        ("DomainSegUpstream.pretrainedBackBone", "backbone"),
        *_context("DomainSegUpstream.pretrainedContext", "context"),
        *_stages("DomainSegUpstream.pretrainedNeck", "neck", 0, 3),
        *_stages("DomainSegHead", "head", 3, 2),
        ("DomainSegHead.decode_layer_10", "head.classify"),
    ],
    "EgoLanes": [
        ("BEVBackbone", "backbone"),
        *_context("AutoSteerContext", "context"),
        *_stages("EgopathNeck", "neck", 0, 3),
        ("EgoLanesHead.decode_layer_6", "head.refine.0"),
        ("EgoLanesHead.decode_layer_7", "head.refine.2"),
        ("EgoLanesHead.decode_layer_8", "head.classify"),
    ],
    "AutoSteer": [
        *((f"decode_layer_{index}", f"trunk.{index}") for index in range(4)),
        ("steering_pred_layer_prev_0", "previous.0"),
        ("steering_pred_layer_prev_1", "previous.3"),
        ("steering_pred_layer_0", "current.0"),
        ("steering_pred_layer_1", "current.3"),
    ],
}

# a published key, and the channels it has at width 1 on the first axis: their ratio is the width
WIDTH_KEYS = {
    "SceneSeg": ("SceneContext.context_layer_0.weight", 800),
    "Scene3D": ("DepthContext.context_layer_0.weight", 800),
    "DomainSeg": ("DomainSegUpstream.pretrainedContext.context_layer_0.weight", 800),
    "EgoLanes": ("AutoSteerContext.context_layer_0.weight", 800),
}


def from_published(network: Network, state: dict[str, Any]) -> dict[str, Any]:
    """A published state dict under our names; keys that the table does not know are kept as they are."""
    return _rename(state, network.published_keys)


def to_published(network: Network, state: dict[str, Any]) -> dict[str, Any]:
    """Our state dict under the published names, in the same order."""
    return _rename(state, [(ours, published) for published, ours in network.published_keys])


def _rename(state: dict[str, Any], prefixes: Iterable[tuple[str, str]]) -> dict[str, Any]:
    def renamed(key: str) -> str:
        for old, new in prefixes:
            if key.startswith(f"{old}."):
                return new + key[len(old) :]
        return key

    return {renamed(key): value for key, value in state.items()}


def infer_width(network: Network, state: dict[str, Any]) -> float:
    """The width of the network that a published state dict is of; 1 for a network that has no other.

    Raises:
        KeyError: the state dict lacks the key that tells it.
    """
    if network.width_key is None:
        return 1.0
    key, channels = network.width_key
    return state[key].shape[0] / channels
