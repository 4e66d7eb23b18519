"""Numbers of channels of a network's layers: reading them, and building a network with fewer, as pruning leaves it."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from common.system.user_code import one_line

Channels = Mapping[str, tuple[int, int]]  # module -> its channels (in, out)

ORDINARY = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # weights (out, in, ...)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # (in, out, ...)
CONVOLUTIONS = (*ORDINARY[:-1], *TRANSPOSED)


def channels_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The channels of all layers that `set_channels` can give others."""
    return {name: _sizes(module) for name, module in model.named_modules() if weight_axes(module)}


def weight_axes(module: nn.Module) -> tuple[int, int] | None:
    """On which axes of its weights a layer has its channels (in, out); None where their number cannot be changed.

    The same axis for both: what goes in comes out. All else that the layer has, as its bias, goes by what comes out.
    """
    if is_parametrized(module) or any(parameter is None for parameter in _weights(module)):
        return None
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        return (0, 0) if _is_depthwise(module) else None
    if isinstance(module, ORDINARY):
        return 1, 0
    if isinstance(module, TRANSPOSED):
        return 0, 1
    return (0, 0) if isinstance(module, _BatchNorm) or _is_prelu_by_channel(module) else None


def set_channels(model: nn.Module, channels: Channels) -> None:
    """Give layers other numbers of channels, in place; what they have learned is lost.

    Raises:
        ValueError: there is no such layer, or it cannot have such channels.
    """
    modules = dict(model.named_modules())
    for name, (ins, outs) in channels.items():
        module = modules.get(name)
        axes = weight_axes(module) if module else None
        if module is None or axes is None:
            raise ValueError(f"{name:.120}: {'no layer of the network' if module is None else 'has fixed channels'}")
        if axes[0] == axes[1] and ins != outs:
            raise ValueError(f"{name}: {ins} channels go in and {outs} come out of a layer that keeps them")
        _resize(module, axes, ins, outs)


def require_fitting(model: nn.Module, image: Tensor) -> None:
    """Raise ValueError where a layer gets other channels than it takes; names the layer.

    Args:
        image: an input of the network, on the device of its weights. On `meta`, where PyTorch does not compare the
            channels of all layers, nothing is computed.
    """
    hooks = [
        module.register_forward_pre_hook(partial(_compare, name))
        for name, module in model.named_modules()
        if weight_axes(module)
    ]
    try:
        model(image)
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        raise ValueError(f"its numbers of channels do not fit each other: {one_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _compare(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    takes, gets = _sizes(module)[0], inputs[0].shape[-1 if isinstance(module, nn.Linear) else 1]
    if takes != gets:
        raise ValueError(f"{name} takes {takes} and gets {gets}")


@torch.no_grad()
def _resize(module: nn.Module, axes: tuple[int, int], ins: int, outs: int) -> None:
    for key, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if value.dim() == 0:  # batch norm's counter
            continue
        shape = list(value.shape)
        if key == "weight":
            shape[axes[0]], shape[axes[1]] = ins, outs
        else:
            shape[0] = outs
        other = value.new_zeros(shape)
        setattr(module, key, nn.Parameter(other, value.requires_grad) if isinstance(value, nn.Parameter) else other)
    if isinstance(module, CONVOLUTIONS):
        module.in_channels, module.out_channels = ins, outs
        module.groups = ins if axes[0] == axes[1] else 1
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = ins, outs
    elif isinstance(module, _BatchNorm):
        module.num_features = outs
    elif isinstance(module, nn.PReLU):
        module.num_parameters = outs


def _sizes(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    count = module.num_parameters if isinstance(module, nn.PReLU) else module.num_features
    assert isinstance(count, int)
    return count, count


def _weights(module: nn.Module) -> list[nn.Parameter | None]:
    """The weights of a layer that has to have some; None: they are computed of others, as by weight norm."""
    has_some = isinstance(module, (*ORDINARY, *TRANSPOSED, nn.PReLU))
    return [module._parameters.get("weight")] if has_some else []


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels == module.out_channels


def _is_prelu_by_channel(module: nn.Module) -> bool:
    return isinstance(module, nn.PReLU) and module.num_parameters > 1
