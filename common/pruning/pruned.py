"""A pruned network as a checkpoint describes it."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from common.networks.channels import channels_of
from common.networks.checkpoints import Description, build_from_published, published_state
from common.networks.opening import OpenedNetwork
from common.networks.registry import of_weights, outline
from common.networks.weights import StateDict


@dataclass(frozen=True)
class PrunedNetwork:
    """What a checkpoint of it holds, and the network as it is built again from that."""

    state: StateDict  # under the published names
    description: Description
    model: nn.Module  # in evaluation mode, on the CPU


def described(source: OpenedNetwork, pruned: nn.Module, path: Path) -> PrunedNetwork:
    """`pruned`, which was made of `source` and is to be written to `path`.

    Raises:
        ValueError: it cannot be built again, as where layers that are not in use share weights with those that are.
    """
    state = published_state(source.name, pruned)
    whole = channels_of(outline(source.name, of_weights(source.network, state), source.width))
    channels = {layer: pair for layer, pair in channels_of(pruned).items() if whole.get(layer) != pair}
    description = Description(
        source.name, "fp32", source.width, source.input_shape[1:], source.network.classes, channels=channels
    )
    model, _ = build_from_published(source.name, state, path, description)
    return PrunedNetwork(state, description, model)
