"""QAT checkpoints: rebuilding exactly the prepared graph that was trained, from what its checkpoint says of itself."""

import logging
from pathlib import Path

import torch
from torch.fx import GraphModule

from common.networks.checkpoints import (
    Checkpoint,
    Description,
    build_from_published,
    check_keys,
    observer_keys,
    read_checkpoint,
    require_finite,
    require_network,
)
from common.networks.registry import build_network, find_network, of_weights, outline
from common.quantization.pt2e import prepare_qat
from common.quantization.settings import QuantizationSettings
from models import check_input_hw

logger = logging.getLogger(__name__)

MOST_GROWTH = 1.1  # parameters of a network / numbers in its checkpoint, which holds the observers, too


def load_qat(
    path: Path, name: str, device: torch.device, weights: str | None = None
) -> tuple[GraphModule, Description, Checkpoint]:
    """The prepared graph of the network `name` with all that the checkpoint holds, its description, and the checkpoint.

    A state dict that does not describe itself, as the original wrote them, gives its weights only: its observers belong
    to another version of PyTorch and are left fresh, to be calibrated. Of several sets in it, `weights` chooses.

    Raises:
        ValueError: FP32 weights, another network's checkpoint, or any key that is missing, unexpected or misshapen.
    """
    checkpoint = read_checkpoint(path, name, weights)
    description = checkpoint.description
    if description is None:
        return (*_from_original(checkpoint, name, device), checkpoint)
    if description.kind != "qat":
        raise ValueError(f"{path}: FP32 weights, not a QAT checkpoint; quantize_model_sceneseg.py makes one from it")
    name, network = find_network(name)
    network = of_weights(network, checkpoint.state)
    require_network(path, description, name)
    try:
        check_input_hw(network, description.input_hw)
        settings = QuantizationSettings(**description.quantization or {})
        model = outline(name, network, description.width, description.channels)
        expected = sum(parameter.numel() for parameter in model.parameters())
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its description is damaged, or of another version of this toolkit ({error})"
        ) from error
    if expected > MOST_GROWTH * (found := sum(value.numel() for value in checkpoint.state.values())):
        raise ValueError(f"{path}: {found} numbers in it, {expected} in the network of width {description.width:g}")
    require_finite(checkpoint.state, path)
    model = build_network(name, network, description.width, description.channels).to(device)
    prepared = prepare_qat(model, description.input_hw, settings, network.channels)
    _load_strictly(prepared, checkpoint)
    return prepared, description, checkpoint


def _load_strictly(prepared: GraphModule, checkpoint: Checkpoint) -> None:
    expected, found = prepared.state_dict(), checkpoint.state
    for key in observer_keys(expected):  # per-channel ranges get their size with the first image
        if key in found:
            expected[key] = found[key]
    check_keys(expected, found, f"{checkpoint.path}: not the state of the graph that it describes")
    prepared.load_state_dict(found, strict=True)
    if altered := [key for key, value in prepared.state_dict().items() if not torch.equal(value.cpu(), found[key])]:
        raise ValueError(f"{checkpoint.path}: {len(altered)} keys changed while loading, the first is {altered[0]}")


def _from_original(checkpoint: Checkpoint, name: str, device: torch.device) -> tuple[GraphModule, Description]:
    observers = set(observer_keys(checkpoint.state))
    weights = {key: value for key, value in checkpoint.state.items() if key not in observers}
    model, width = build_from_published(name, weights, checkpoint.path)
    logger.warning(
        "%s does not describe itself: taken as %s (width %g); weights loaded, observers are calibrated anew",
        checkpoint.path,
        name,
        width,
    )
    name, network = find_network(name)
    description = Description(name, "qat", width, network.input_shape[1:], network.classes)
    settings = QuantizationSettings()
    return prepare_qat(model.to(device), description.input_hw, settings, network.channels), description
