"""A network without some of its channels."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.networks.channels import set_channels, weight_axes
from common.pruning.channels import Block, Place

Removed = Mapping[Block, np.ndarray | Sequence[int]]  # channels of blocks


def without_channels(model: nn.Module, removed: Removed) -> nn.Module:
    """A copy of `model` that computes what it would with these channels at 0 wherever weights take them."""
    pruned = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = _kept(removed, tensors)
    for (name, axis), positions in kept.items():
        tensors[name] = tensors[name].index_select(axis, positions)
    layers = {name.rpartition(".")[0] for name, _ in kept}
    set_channels(pruned, {layer: _sizes(model.get_submodule(layer), layer, tensors) for layer in layers})
    for layer in layers:
        own = pruned.get_submodule(layer)
        for key, value in (*own.named_parameters(recurse=False), *own.named_buffers(recurse=False)):
            value.data.copy_(tensors[f"{layer}.{key}"])
    return pruned


def _sizes(module: nn.Module, layer: str, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """The channels (in, out) of a layer with these tensors; batch norm may have statistics alone."""
    axes, weight = weight_axes(module) or (0, 0), tensors.get(f"{layer}.weight")
    shape = (tensors[f"{layer}.running_mean"] if weight is None else weight).shape
    return shape[axes[0]], shape[axes[1]]


def _kept(removed: Removed, tensors: Mapping[str, Tensor]) -> dict[Place, Tensor]:
    """The positions that stay on each axis that loses some."""
    keeps: dict[Place, np.ndarray] = {}
    for block, channels in removed.items():
        for (name, axis), positions in block.places.items():
            kept = keeps.setdefault((name, axis), np.ones(tensors[name].shape[axis], dtype=bool))
            kept[positions[[*channels]]] = False
    return {
        (name, axis): torch.from_numpy(np.flatnonzero(kept)).to(tensors[name].device)
        for (name, axis), kept in keeps.items()
        if not kept.all()
    }
