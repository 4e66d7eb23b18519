"""What each channel counts: by its weights alone, or by how far the outputs would go without it.

On images it is the second-order estimate of the distance D between the outputs z of the network with and without the
channel. D and its gradient are 0 where nothing is left out, so that the first order, activation times gradient of D,
says nothing. With H the second derivative of D by z, and d the change of z to first order,

    D = d' H d / 2 = E (v' d)^2 / 2        for random v with E v v' = H
    v' d = sum over the channel of activation * gradient of v' z

As what takes a channel is linear in its weights, that sum is the one of weight * gradient over these weights.
Theis et al. 2018 (Fisher pruning), Molchanov et al. 2019 (the sum over weights).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.networks.channels import weight_axes
from common.pruning.channels import Block
from common.system.progress import progress
from models import Network

SMALLEST_SHARE = 1e-7  # of the largest variance of a channel of an output, that another one counts with


def ranks_by_weights(model: nn.Module, block: Block) -> np.ndarray:
    """The place of each channel of a block in the order of the L2 norm of all its weights, 0 to below 1.

    Norms of different layers have nothing in common, so that each block loses the same share (Li et al. 2017).
    """
    stored = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    squares = np.zeros(block.size)
    for (name, axis), positions in block.places.items():
        if name.endswith(".weight"):
            weights = stored[name].detach().double().cpu().movedim(axis, 0)
            by_position = weights.reshape(len(weights), -1).square().sum(dim=1)
            squares += by_position.numpy()[positions].sum(axis=1)
    return np.argsort(np.argsort(squares, kind="stable"), kind="stable") / block.size


def distances_without(
    model: nn.Module, network: Network, blocks: Sequence[Block], inputs: Sequence[Tensor], seed: int
) -> list[np.ndarray]:
    """For each block, how far the outputs go on average without each of its channels alone, to second order.

    The distance of classes is the KL divergence in nats, mean over the places; of logits that of each by itself; of
    values the squared error as a share of the variance. Those of all outputs are added up.

    Args:
        model: in evaluation mode.
        inputs: (1, C, H, W) each, on the device of the model.
        seed: of the random directions.

    Raises:
        ValueError: an output is the same everywhere, or no number.
    """
    scales = _variances(model, network, inputs)
    takers = sorted({taker for block in blocks for taker in block.takers})
    generator = torch.Generator().manual_seed(seed)
    found = [np.zeros(block.size) for block in blocks]
    for image in progress(inputs, "what channels count", unit="image"):
        outputs = _outputs(model, image)
        kinds = network.kinds_of([output.shape for output in outputs])
        directions = [_direction(*each, generator) for each in zip(outputs, kinds, scales, strict=True)]
        changes = _changes(model, takers, [(one * other).sum() for one, other in zip(directions, outputs, strict=True)])
        for block, sums in zip(blocks, found, strict=True):
            taken = [changes[place][positions] for place, positions in block.places.items() if place in changes]
            sums += np.square(np.concatenate(taken, axis=1).sum(axis=1)) / 2 / len(inputs)
    return found


def _changes(model: nn.Module, takers: Sequence[str], products: list[Tensor]) -> dict[tuple[str, int], np.ndarray]:
    """By weights and their axis of what goes in: the sum over each channel of weight * gradient of all products."""
    weights = [model.get_parameter(f"{taker}.weight") for taker in takers]
    gradients = torch.autograd.grad(torch.stack(products).sum(), weights, allow_unused=True)
    found = {}
    for taker, weight, gradient in zip(takers, weights, gradients, strict=True):
        axes = weight_axes(model.get_submodule(taker))
        if gradient is not None and axes:
            sums = (weight.detach().double() * gradient.double()).transpose(0, axes[0]).flatten(1).sum(dim=1)
            found[f"{taker}.weight", axes[0]] = sums.cpu().numpy()
    return found


def _direction(output: Tensor, kind: str, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers v with E v v' = the second derivative of an output's distance by the output (1, C, ...)."""
    output = output.detach()
    if kind == "classes":  # of the KL divergence at p: diag(p) - p p', as of a class drawn by p
        probabilities = output.softmax(dim=1).movedim(1, -1)
        drawn = torch.multinomial(probabilities.flatten(0, -2).cpu(), 1, generator=generator)[:, 0]
        one = torch.nn.functional.one_hot(drawn, output.shape[1]).reshape(probabilities.shape)
        return (one.to(output.device) - probabilities).movedim(-1, 1) * (output.shape[1] / output.numel()) ** 0.5
    drawn = torch.rand(output.shape, generator=generator).to(output.device)
    if kind == "logits":
        probabilities = output.sigmoid()
        return ((drawn < probabilities).to(output.dtype) - probabilities) / output.numel() ** 0.5
    return (drawn.round() * 2 - 1) * (2 / scale / output.numel()).sqrt().to(output.dtype)


@torch.no_grad()
def _variances(model: nn.Module, network: Network, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Of each channel of each output over all images, in a shape that goes with the output.

    A channel that hardly varies counts as one that does a little, as where a network teaches.
    """
    by_image = [[_moments(output) for output in _outputs(model, image)] for image in inputs]
    found = []
    for name, moments in zip(network.outputs or (), zip(*by_image, strict=True), strict=True):
        mean, square = (torch.stack(each).mean(dim=0) for each in zip(*moments, strict=True))
        variance = square - mean.square() if len(inputs) > 1 or mean[0, 0].numel() > 1 else square
        largest = variance.max().item()
        if not 0 < largest < float("inf"):
            reason = "is the same everywhere" if largest <= 0 else "is no number"
            raise ValueError(f"the network's output {name} {reason} on these images; it says nothing of the channels")
        found.append(variance.clamp(min=SMALLEST_SHARE * largest))
    return found


def _moments(output: Tensor) -> tuple[Tensor, Tensor]:
    """The means of an output (1, C, ...) and of its squares, by channel."""
    axes = tuple(range(2, output.dim()))
    values = output.double()
    if not axes:
        return values, values.square()
    return values.mean(dim=axes, keepdim=True), values.square().mean(dim=axes, keepdim=True)


def _outputs(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    outputs = model(image)
    return outputs if isinstance(outputs, tuple) else (outputs,)
