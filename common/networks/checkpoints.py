"""Checkpoints: reading every accepted form safely, rebuilding the network, writing files that describe themselves."""

import functools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.networks.reading import read_document
from common.networks.registry import WHOLE, build_network, find_network, of_weights, outline
from common.networks.weights import AVERAGED, RAW, StateDict, largest_state_dict, network_weights, require_plain, some
from common.system.files import atomic_path
from models.checkpoint_keys import from_published, infer_width, to_published

KINDS = ("fp32", "qat")
LARGEST_WIDTH = 8  # times the published one
LARGEST_SIDE = 8192  # pixels of an input
MOST_CHANNELS = 2**20  # of a layer
BATCH_NORM_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself: everything that is needed to build its network again."""

    network: str
    kind: str  # "fp32": weights under their published names; "qat": the state of a prepared graph
    width: float
    input_hw: tuple[int, int]
    classes: tuple[str, ...] = ()
    channels: dict[str, tuple[int, int]] = field(default_factory=dict)  # (in, out) of the layers that pruning left less
    quantization: dict[str, Any] | None = None  # fields of common.quantization.settings.QuantizationSettings
    metrics: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read: the weights, what it says of itself (None: a bare state dict), and how to resume."""

    path: Path
    state: StateDict
    description: Description | None
    training: dict[str, Any] | None


def read_checkpoint(path: Path, network: str | None = None, choice: str | None = None) -> Checkpoint:
    """Read a checkpoint of this toolkit, or weights that others saved, without running any code in it.

    Args:
        network: whose weights are looked for in a file that does not describe itself (`network_weights`). Without it,
            or where there are none, the largest dict of tensors is taken as it is.
        choice: `--weights`, which of several sets of weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds pickled code, no state dict, or several sets of weights and none is chosen.
    """
    document = read_document(path)
    description = _description(document, path)
    if description:
        state, training = document.get("model_state_dict"), document.get("training_state")
    else:
        names = _published_names(find_network(network)[0]) if network else ()
        state, training = network_weights(document, names, choice, path) or largest_state_dict(document), None
    if not isinstance(state, dict) or not state or not all(map(_is_named_tensor, state.items())):
        found = some(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise ValueError(
            f"{path}: no state dict in it (found {found}); wanted a dict of tensors, alone or in other dicts"
        )
    require_plain(state, path)
    return Checkpoint(path, state, description, training)


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


@functools.cache
def _published_names(name: str) -> frozenset[str]:
    """The keys of a network's published state dict."""
    name, network = find_network(name)
    with torch.device("meta"):  # no memory: the names alone
        return frozenset(to_published(network, build_network(name, network).state_dict()))


def require_choice(checkpoint: Checkpoint, choice: str | None) -> None:
    """Refuse to take a checkpoint of a run with averaged weights for one set of them, unless the raw ones are chosen.

    Raises:
        ValueError: names the files that hold the averaged ones.
    """
    if isinstance(checkpoint.training, dict) and checkpoint.training.get("average") and choice != RAW:
        raise ValueError(
            f"{checkpoint.path}: a checkpoint to resume from, with raw weights and their averages; take the raw ones "
            f"with --weights {RAW}, or the averaged ones from the run's best or final file"
        )


def _require_own_choice(checkpoint: Checkpoint, description: Description, choice: str | None) -> None:
    """The same for a file that describes itself, which holds one set of weights where it is not to resume from."""
    require_choice(checkpoint, choice)
    held = AVERAGED if description.arguments.get("ema") and checkpoint.training is None else RAW
    if choice not in (None, held):
        raise ValueError(f"{checkpoint.path}: --weights {choice}: its one set of weights is {held}; leave the flag out")


def _description(document: Any, path: Path) -> Description | None:
    fields = document.get("description") if isinstance(document, dict) else None
    if not isinstance(fields, dict):
        return None
    try:
        of_tuples = {
            "input_hw": tuple(fields["input_hw"]),
            "classes": tuple(fields["classes"]),
            "channels": {layer: tuple(pair) for layer, pair in fields.get("channels", {}).items()},
        }
        found = Description(**{**fields, **of_tuples})
        _check_description(found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its description is damaged, or of another version of this toolkit ({error})"
        ) from error
    return found


def _check_description(found: Description) -> None:
    """A description sizes the network that is built from it: what it says has to be of this world."""
    if found.kind not in KINDS or isinstance(found.width, bool):
        raise ValueError(f"kind {found.kind!r:.60}, width {found.width!r:.60}")
    kinds = {"network": str, "kind": str, "width": float | int, "metrics": dict, "arguments": dict, "versions": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(getattr(found, name), kind)]:
        raise ValueError(f"{wrong[0]} is {getattr(found, wrong[0])!r:.60}")
    if not 0 < found.width <= LARGEST_WIDTH:
        raise ValueError(f"width {found.width}, wanted more than 0 and at most {LARGEST_WIDTH}")
    sizes = found.input_hw
    if len(sizes) != 2 or not all(type(size) is int and 0 < size <= LARGEST_SIDE for size in sizes):
        raise ValueError(f"input size {sizes!r:.60}, wanted a height and a width of at most {LARGEST_SIDE}")
    for layer, pair in found.channels.items():
        if not isinstance(layer, str) or len(pair) != 2 or not all(map(_is_channel_count, pair)):
            raise ValueError(f"channels of {layer!r:.60} are {pair!r:.60}")
    if not isinstance(found.quantization, dict | None):
        raise ValueError(f"quantization is {found.quantization!r:.60}")
    batch_size = found.arguments.get("batch_size", 1)
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r:.60}")


def _is_channel_count(value: object) -> bool:
    return type(value) is int and 0 < value <= MOST_CHANNELS


def save_checkpoint(path: Path, state: StateDict, description: Description, training: dict | None = None) -> None:
    """Write a checkpoint, whole or not at all; `training` holds what a resumed run needs."""
    document = {"description": asdict(description), "model_state_dict": state}
    if training is not None:
        document["training_state"] = training
    # a file object: by name, PyTorch would put the temporary name into the file, and hide why a write fails
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(document, file)


def load_network(name: str, path: Path, choice: str | None = None) -> tuple[nn.Module, Description]:
    """The named network with the FP32 weights of a checkpoint, in eval mode, and what the checkpoint says of itself.

    The width is the checkpoint's own, or follows from the shapes of its weights; `choice` as in `read_checkpoint`.

    Raises:
        ValueError: another network's checkpoint, a QAT checkpoint, or any missing, unexpected or misshapen key.
    """
    name, network = find_network(name)
    checkpoint = read_checkpoint(path, name, choice)
    description = checkpoint.description
    if description:
        require_network(path, description, name)
    if (description and description.kind == "qat") or observer_keys(checkpoint.state):
        raise ValueError(
            f"{path}: a QAT checkpoint, not FP32 weights; benchmark_qat_model.py turns it into an INT8 ONNX"
        )
    if description:
        _require_own_choice(checkpoint, description, choice)
    model, width = build_from_published(name, checkpoint.state, path, description)
    if description and not math.isclose(description.width, width):
        raise ValueError(f"{path}: its weights are of width {width:g}, its description says {description.width:g}")
    if description is None:
        description = Description(name, "fp32", width, network.input_shape[1:], network.classes)
    return model, description


def require_network(path: Path, description: Description, name: str) -> None:
    """Raise ValueError where a checkpoint says that it is of another network than the one that was asked for.

    What a checkpoint names is never imported: its module has to be named by the one who runs it.
    """
    if description.network != name:
        own = f"; name it with -n {description.network}" + " and have its module in the folder or on PYTHONPATH"
        cure = own if ":" in description.network else f"; name it with -n {description.network}"
        raise ValueError(f"{path}: a checkpoint of {description.network}, not of {name}{cure}")


def build_from_published(
    name: str, state: StateDict, path: Path, description: Description | None = None
) -> tuple[nn.Module, float]:
    """The named network filled with a published state dict, strictly, and its width; `path` is named in errors.

    The width follows from the weights; that of a pruned network, and its channels, from its description. The counters
    of batch norm, which networks in use do not read, may be missing, as before PyTorch 0.4.1, or be no whole numbers,
    where all of a state dict was made half precision.
    """
    _, network = find_network(name)
    channels = description.channels if description else WHOLE
    try:
        width = description.width if description and channels else infer_width(network, state)
    except (KeyError, ValueError, IndexError):
        width = 1.0  # not this network's keys: compare with the published network below
    if not 0 < width <= LARGEST_WIDTH:
        raise ValueError(f"{path}: not a checkpoint of {name}; it would be {width:g} times as wide as published")
    row = of_weights(network, state)
    try:  # a pruned one without memory first: its channels are whatever a file says
        model = outline(name, row, width, channels) if channels else build_network(name, row, width)
    except ValueError as error:
        raise ValueError(f"{path}: not a checkpoint of {name}; {error}") from error
    expected = to_published(network, model.state_dict())
    state = _with_counters(state, expected)
    what = "pruned from " if channels else ""
    check_keys(expected, state, f"{path}: not a checkpoint of {name} ({what}width {width:g})")
    require_finite(state, path)
    if channels:
        model = build_network(name, row, width, channels)
    model.load_state_dict(from_published(network, state), strict=True)
    return model.eval(), width


def _with_counters(state: StateDict, expected: StateDict) -> StateDict:
    """`state` with the counters of batch norm that it lacks altogether, or has in another type of number."""
    counters = [key for key in expected if key.endswith(BATCH_NORM_COUNTER)]
    without = state.keys() & expected.keys() and not state.keys() & set(counters)
    rounded = {key for key in state.keys() & set(counters) if state[key].is_floating_point()}
    return state | {key: expected[key] for key in counters if without or key in rounded}


def require_finite(state: StateDict, path: Path) -> None:
    """Raise ValueError where a weight is NaN or infinite as float32; an observer's empty range is, by its nature."""
    observers = set(observer_keys(state))
    bad = [
        key for key, value in state.items() if key not in observers and not bool(torch.isfinite(value.float()).all())
    ]
    if bad:
        raise ValueError(
            f"{path}: {len(bad)} of {len(state)} tensors hold NaN or infinity in float32: {some(bad)}; "
            "take an earlier checkpoint"
        )


def published_state(name: str, model: nn.Module) -> StateDict:
    """The state dict of `model` under the published names, on the CPU: what the toolkit saves as FP32 weights."""
    published = to_published(find_network(name)[1], model.state_dict())
    return {key: value.detach().cpu().contiguous() for key, value in published.items()}


def observer_keys(state: Iterable[str]) -> list[str]:
    """The keys that belong to observers and fake quantization, as PyTorch's graph-mode quantization names them."""
    return [key for key in state if key.startswith("activation_post_process_")]


def check_keys(expected: StateDict, found: StateDict, subject: str) -> None:
    """Compare names, kinds of number and shapes; one element may stand for a scalar, as in PyTorch's strict loading.

    Raises:
        ValueError: lists the keys that are missing, unexpected, of another type or shape.
    """
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another type": [
            f"{key} {found[key].dtype} instead of {expected[key].dtype}"
            for key in expected
            if key in found and found[key].is_floating_point() != expected[key].is_floating_point()
        ],
        "of another shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected
            if key in found and not _same_shape(expected[key], found[key])
        ],
    }
    listed = [f"{len(keys)} keys {what}: {some(keys)}" for what, keys in problems.items() if keys]
    if listed:
        raise ValueError(f"{subject}: {'; '.join(listed)}")


def _same_shape(expected: Tensor, found: Tensor) -> bool:
    return found.shape == expected.shape or (expected.dim() == 0 and found.shape == (1,))
