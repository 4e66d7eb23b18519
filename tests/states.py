"""State dicts of SceneSeg as files hold them."""

from collections import OrderedDict

import torch

KEY = "SceneContext.context_layer_0.weight"  # one of its tensors


def averaged(state):
    """The same network with other weights."""
    return OrderedDict(
        (key, value * 0.5 if value.is_floating_point() else value.clone()) for key, value in state.items()
    )


def behind(prefix, state, **more):
    return {f"{prefix}{key}": value for key, value in state.items()} | more


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
