"""The registry for people: a table of what there is, and a network opened by name with its checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.networks.checkpoints import load_network
from common.networks.registry import find_network
from common.system.markdown import table
from models import Network, check_input_hw
from models.family import NETWORKS


@dataclass(frozen=True)
class OpenedNetwork:
    """A network of the registry with its weights, in eval mode."""

    name: str  # as registered
    network: Network  # its row of the registry
    model: nn.Module
    width: float
    input_shape: tuple[int, int, int]  # channels, height, width


def open_network(name: str, path: Path, input_hw: tuple[int, int] | None, weights: str | None = None) -> OpenedNetwork:
    """The named network with the weights of a checkpoint; `input_hw` None takes the checkpoint's own size.

    `weights` is the choice between several sets of them, as in `read_checkpoint`.

    Raises:
        ValueError: unknown network, a checkpoint that is not its, or an input size that it cannot take.
    """
    name, network = find_network(name)
    model, description = load_network(name, path, weights)
    hw = input_hw or description.input_hw
    check_input_hw(network, hw)
    return OpenedNetwork(name, network, model, description.width, (network.channels, *hw))


def network_table() -> str:
    """Every network of the registry: input, outputs, parameters, and GFLOP (2 per multiply-add) of one input."""
    rows = []
    for name, network in NETWORKS.items():
        with torch.device("meta"):  # shapes alone: no memory, no arithmetic
            model, example = network.build().eval(), torch.zeros(1, network.channels, *network.input_shape[1:])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs = model(example)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        shapes = (f"{key} {_shape(output)}" for key, output in zip(network.outputs or (), outputs, strict=True))
        rows.append(
            {
                "network": name,
                "task": network.task,
                "input": _shape(example),
                "outputs": ", ".join(shapes),
                "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
                "GFLOP": f"{counter.get_total_flops() / 1e9:.2f}",
            }
        )
    return table(rows)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape))
