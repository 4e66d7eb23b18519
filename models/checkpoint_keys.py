"""The names of the weights: those of the published checkpoints, and ours, in one table."""

from typing import Any

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
}

# a published key, and the channels it has at width 1 on the first axis: their ratio is the width
WIDTH_KEYS = {
    "SceneSeg": ("SceneContext.context_layer_0.weight", 800),
}


def from_published(name: str, state: dict[str, Any]) -> dict[str, Any]:
    """A published state dict under our names; keys that the table does not know are kept as they are."""
    return _rename(state, PUBLISHED_KEYS[name])


def to_published(name: str, state: dict[str, Any]) -> dict[str, Any]:
    """Our state dict under the published names, in the same order."""
    return _rename(state, [(ours, published) for published, ours in PUBLISHED_KEYS[name]])


def _rename(state: dict[str, Any], prefixes: Prefixes) -> dict[str, Any]:
    def renamed(key: str) -> str:
        for old, new in prefixes:
            if key.startswith(f"{old}."):
                return new + key[len(old) :]
        return key

    return {renamed(key): value for key, value in state.items()}


def infer_width(name: str, state: dict[str, Any]) -> float:
    """The width of the network that a published state dict is of.

    Raises:
        KeyError: the state dict lacks the key that tells it.
    """
    key, channels = WIDTH_KEYS[name]
    return state[key].shape[0] / channels
