"""Networks by name: those of the family, and a user's own as MODULE:ATTRIBUTE.

Importing a module runs it. Only what the command line names is imported, never what a checkpoint names.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from common.data.classes import distinct_colours
from common.networks.channels import Channels, require_fitting, set_channels
from common.system.user_code import one_line
from models import Network, family

OWN_SHAPE = (3, 320, 640)  # of a network that is named by its class or function alone; --input_hw gives another
ONE = "foreground"  # what a map of one logit tells from the rest
BOX_VALUES = 4  # of a detector's cell, before its scores
WHOLE: Channels = MappingProxyType({})  # of a network that is not pruned
DICT_OUTPUT = "out"  # of the outputs of a dictionary, as torchvision names the map of the classes


@functools.cache
def find_network(name: str) -> tuple[str, Network]:
    """The registered spelling and the row of a network of the family, without regard to case, or of MODULE:ATTRIBUTE.

    ATTRIBUTE is a `models.Network`, or a class or function that builds an `nn.Module`. MODULE is looked for in the
    current folder and on PYTHONPATH.

    Raises:
        ValueError: there is no such network, or its module cannot be imported.
    """
    return (name, _resolved(name, _own_network(name))) if ":" in name else family.find_network(name)


def _own_network(name: str) -> Network:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(f"{name}: not MODULE:ATTRIBUTE such as my_network:NETWORK")
    module = _imported(module_name, name)
    found = getattr(module, attribute, None)
    if isinstance(found, Network):
        return found
    if isinstance(found, nn.Module):
        raise ValueError(f"{name}: a network that is built already; name its class, or a function that builds it")
    if not callable(found):
        known = [key for key, value in vars(module).items() if isinstance(value, Network)]
        there = f"; it has {', '.join(known)}" if known else ""
        what = "no such attribute" if found is None else f"a {type(found).__name__}"
        raise ValueError(f"{name}: {what}, wanted a models.Network or a callable that builds an nn.Module{there}")
    return Network(build=found, input_shape=OWN_SHAPE)


def _imported(module_name: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(1, here)  # behind the scripts' own folder
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.split(".")[0] == error.name.split(".")[0]:
            raise ValueError(
                f"{name}: no module {error.name!r} in {here} or on PYTHONPATH; run from its folder, or set "
                "PYTHONPATH to it"
            ) from error
        raise ValueError(f"{name}: its module needs {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything while it is imported
        raise ValueError(f"{name}: importing its module fails: {one_line(error)}") from error
    if module_name.split(".")[0] == "models":
        raise ValueError(f"{name}: `models` is a package of this toolkit; give your module another name")
    return module


def file_stem(name: str) -> str:
    """What files of a network are named by: SceneSeg gives SceneSegNetwork, my_network:NET gives NETNetwork."""
    return f"{name.rpartition(':')[2]}Network"


def build_network(name: str, network: Network, width: float = 1.0, channels: Channels = WHOLE) -> nn.Module:
    """A network of a row with random weights. Its forward gives a tensor or a tuple of them.

    Args:
        channels: of the layers of a pruned network that have others than the row's.

    Raises:
        ValueError: it takes no width and is to have one, it has no such layers, its code fails, or it builds no
            nn.Module.
    """
    parameter = inspect.signature(network.build).parameters.get("width")
    if parameter is None and width != 1:
        raise ValueError(f"{name}: its build function takes no width, so that it has no width {width:g}")
    # width 1 is not said where it need not be: another's `width` may be that of the images
    said = parameter is not None and (width != 1 or parameter.default is parameter.empty)
    try:
        model = network.build(width=width) if said else network.build()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code may raise anything
        if ":" not in name:
            raise
        raise ValueError(f"{name}: building it fails: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: builds a {type(model).__name__}, wanted an nn.Module")
    model.register_forward_hook(_plain_outputs)
    if len(network.inputs) > 1:
        model.__class__ = _of_one_input(type(model), len(network.inputs))  # type: ignore[arg-type]
    set_channels(model, channels)
    return model


def outline(name: str, network: Network, width: float = 1.0, channels: Channels = WHOLE) -> nn.Module:
    """The same without memory for its weights: names and shapes alone, whatever sizes a file says.

    Raises:
        ValueError: as `build_network`, or the layers of a pruned network do not fit each other.
    """
    with torch.device("meta"), torch.no_grad():
        model = build_network(name, network, width, channels)
        if channels:
            require_fitting(model.eval(), torch.zeros(1, network.channels, *network.input_shape[1:]))
    return model


def of_weights(network: Network, state: Mapping[str, Tensor]) -> Network:
    """The row that builds the network of these weights, where several have been published under one name."""
    if network.build_for is None:
        return network
    return replace(network, build=partial(network.build_for, state))


@functools.cache
def _of_one_input(kind: type[nn.Module], count: int) -> type[nn.Module]:
    """The class of a network of `count` inputs as one that takes them in one tensor (N, count C, H, W).

    That is how the toolkit hands images on; names of parameters stay, and an exporter sees the one argument.
    """

    class OfOneInput(kind):  # type: ignore[valid-type, misc]
        def forward(self, images: Tensor) -> Any:
            return super().forward(*images.chunk(count, dim=1))

    OfOneInput.__name__ = OfOneInput.__qualname__ = kind.__name__
    return OfOneInput


def _plain_outputs(model: nn.Module, inputs: object, outputs: Any) -> Any:
    """Lists become tuples; of a dictionary its map of the classes is taken, as training losses take the rest."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, list | tuple) and outputs and all(isinstance(each, Tensor) for each in outputs):
        return tuple(outputs)
    if isinstance(outputs, Mapping) and isinstance(outputs.get(DICT_OUTPUT), Tensor):
        return outputs[DICT_OUTPUT]
    found = type(outputs).__name__
    if isinstance(outputs, Mapping | list | tuple):
        parts = outputs if isinstance(outputs, Mapping) else (type(each).__name__ for each in outputs)
        found = f"a {found} of {', '.join(map(str, parts)) or 'nothing'}"
    raise ValueError(f"the network gives {found}; wanted a tensor, a tuple of tensors, or a dict with {DICT_OUTPUT!r}")


def _resolved(name: str, network: Network) -> Network:
    """The row with the names of all outputs and of all channels of a class map, found by running the network once.

    Raises:
        ValueError: it cannot take an image of its own size, or its row says otherwise than its outputs.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model, image = build_network(name, network).eval(), torch.zeros(1, network.channels, *network.input_shape[1:])
        try:
            outputs = model(image)
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything
            raise ValueError(f"{name}: fails on an image {tuple(image.shape)}: {one_line(error)}") from error
    shapes = [tuple(output.shape) for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
    named = network.outputs
    if named is None:
        made = ["output"] if len(shapes) == 1 else [f"output_{index}" for index in range(len(shapes))]
        named = dict.fromkeys(made, "logits of the classes" if network.task == "segmentation" else "output")
    if len(named) != len(shapes):
        raise ValueError(f"{name}: its row names {len(named)} outputs, the network gives {len(shapes)}")
    return replace(network, outputs=named, **_resolved_classes(name, network, shapes[0]))


def _resolved_classes(name: str, network: Network, shape: tuple[int, ...]) -> dict[str, Any]:
    """Names and colours for all that the first output tells apart: classes, lane maps, kinds of objects."""
    count = _told_apart(network.task, shape)
    if count is None:
        return {}
    word = "lane" if network.task == "lanes" else "class"
    made = tuple(f"{word} {index}" for index in range(count)) if count > 1 or network.task != "segmentation" else (ONE,)
    names = network.classes + made[len(network.classes) :]
    if len(names) != count:
        box = f", {BOX_VALUES} of them of the box" if network.task == "detection" else ""
        raise ValueError(f"{name}: its row names {len(names)} classes, its output {shape} has {shape[1]} channels{box}")
    return {"classes": names, "colours": network.colours + distinct_colours(count)[len(network.colours) :]}


def _told_apart(task: str, shape: tuple[int, ...]) -> int | None:
    """How many classes an output of this shape tells apart; None where it is of numbers alone."""
    if task in ("segmentation", "lanes") and len(shape) == 4:
        return shape[1]
    return shape[1] - BOX_VALUES if task == "detection" and len(shape) == 3 and shape[1] > BOX_VALUES else None
