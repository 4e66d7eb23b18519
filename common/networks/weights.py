"""Which tensors of a checkpoint are a network's weights: under what place in the file, and which of several sets."""

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

RAW, AVERAGED = "raw", "ema"  # the words of --weights, which also takes a place in the file
AVERAGED_WORDS = {"ema", "swa", "avg", "average", "averaged", "averages", "averaging", "shadow", "polyak"}
OF_GRADIENTS = re.compile(r"exp_avg|square_avg|grad_avg|ema_grad")  # averages, but an optimizer's
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # never a module's own name
PARALLEL = "module"  # the same within a name; before it, a prefix like any other
# single numbers that averages, trainers and profilers keep beside the weights
COUNTERS = {
    "n_averaged",
    "decay",
    "num_updates",
    "initted",
    "step",
    "global_step",
    "epoch",
    "total_ops",
    "total_params",
}
DEEPEST = 6  # dicts within dicts that are looked into
LISTED_KEYS = 8  # keys that an error message spells out
LONGEST_KEY = 120  # letters of each; a file may hold one of megabytes
PLAIN_TYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor of a file."""

    folder: tuple[str, ...]  # the names of the dicts that it is in
    key: str  # its name in the innermost
    value: Tensor

    @property
    def place(self) -> str:
        """Both together, without the names of wrappers."""
        first, *rest = [part for part in self.key.split(".") if part not in WRAPPERS] or [""]
        return ".".join([*self.folder, first, *(part for part in rest if part != PARALLEL)])


@dataclass(frozen=True)
class WeightSet:
    """The weights of a network in a file: what stands before its names there."""

    prefix: str  # "ema.module."; "": nothing
    own: tuple[Entry, ...]  # those that the network has

    def __str__(self) -> str:
        return self.prefix.removesuffix(".") or "the file itself"

    @property
    def averaged(self) -> bool:
        """Whether the place says so."""
        return _says_averaged(self.prefix)


def network_weights(document: Any, names: Collection[str], choice: str | None, path: Path) -> StateDict | None:
    """The weights of the network whose state dict has these `names`, under them; None where the file has none.

    They may stand in dicts within dicts and behind prefixes (`module.`, `model.`), which are taken off where all names
    beside them share them; what wraps a module inside (`_orig_mod`) has no name. Half of the names make a set.

    Args:
        choice: `--weights`: "raw", "ema" (averaged), or the place of a set; None: there has to be one alone.

    Raises:
        ValueError: several sets, none that is the chosen one, or other keys beside the weights.
    """
    entries = list(tensors(document))
    sets = _sets(entries, set(names))
    if not sets:
        return None
    own = {entry for each in sets for entry in each.own}
    others = [entry for entry in entries if entry not in own and not _is_counter(entry)]
    averages = _unnamed_averages(others, sets)
    chosen = _choose(sets, averages, choice, path)
    folders = {entry.folder for entry in chosen.own}
    more: list[Entry] = []  # keys that the network does not know, under the same prefix
    beside: list[Entry] = []  # and elsewhere
    for entry in others:
        if entry.folder in folders and entry not in averages:
            (more if _nearest(entry, sets) is chosen else beside).append(entry)
    beside = [entry for entry in beside if _nearest(entry, sets) is None]
    if beside and choice in (None, RAW, AVERAGED):
        raise ValueError(
            f"{path}: the weights stand under the prefix {chosen.prefix!r}, with {len(beside)} other keys beside them: "
            f"{some(entry.key for entry in beside)}; take the weights alone with --weights {chosen}"
        )
    return _named(chosen, more, path)


def _named(chosen: WeightSet, more: Iterable[Entry], path: Path) -> StateDict:
    """The weights under the network's names."""
    state: StateDict = OrderedDict()
    for entry in (*chosen.own, *more):
        key = entry.place.removeprefix(chosen.prefix)
        if key in state:
            raise ValueError(f"{path}: two tensors of the name {key:.{LONGEST_KEY}}, with and without a wrapper's name")
        state[key] = entry.value
    return state


def _choose(sets: list[WeightSet], averages: list[Entry], choice: str | None, path: Path) -> WeightSet:
    raw, averaged = ([each for each in sets if each.averaged is wanted] for wanted in (False, True))
    listed = ", ".join(map(str, sets))
    if choice is not None:
        found = {RAW: raw, AVERAGED: averaged}.get(choice) or _at(choice, sets)
        if len(found) != 1:
            raise ValueError(f"{path}: --weights {choice} is {len(found) or 'none'} of the sets in it: {listed}")
        return found[0]
    if averages:
        raise ValueError(
            f"{path}: weights in {listed}, and averaged ones that have other names, the first is "
            f"{averages[0].place:.{LONGEST_KEY}}; take the former with --weights {RAW}"
        )
    if len(sets) > 1:
        words = f"{RAW} or {AVERAGED}" if len(raw) == len(averaged) == 1 else "one of these names"
        raise ValueError(f"{path}: {len(sets)} sets of weights: {listed}; say which one with --weights: {words}")
    return sets[0]


def _at(place: str, sets: list[WeightSet]) -> list[WeightSet]:
    """The sets at a place: exactly, or below it, or with it in the middle; the first of these that gives any."""
    tests = (
        lambda prefix: prefix == f"{place}.",
        lambda prefix: prefix.startswith(f"{place}."),
        lambda prefix: f".{place}." in prefix,
    )
    return next((found for test in tests if (found := [each for each in sets if test(each.prefix)])), [])


def tensors(document: Any, folder: tuple[str, ...] = (), seen: set[int] | None = None) -> Iterator[Entry]:
    """All named tensors in dicts, and those in lists, whose places have brackets.

    A container that stands in several places is looked into once: a file of a few bytes may hold one a million times.
    """
    seen = set() if seen is None else seen
    if id(document) in seen or len(folder) > DEEPEST:
        return
    if isinstance(document, dict):
        items = [(key if isinstance(key, str) else f"[{key}]", value) for key, value in document.items()]
    elif isinstance(document, list | tuple):
        items = [(f"[{index}]", value) for index, value in enumerate(document)]
    else:
        return
    seen.add(id(document))
    for key, value in items:
        if isinstance(value, Tensor):
            yield Entry(folder, key, value)
        else:
            yield from tensors(value, (*folder, key), seen)


def _sets(entries: list[Entry], names: set[str]) -> list[WeightSet]:
    """Where at least half of `names` stand, in the order of the file; nothing in a list has a name."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        parts = entry.place.split(".") if "[" not in entry.place else []
        for start in range(len(parts)):
            if ".".join(parts[start:]) in names:
                found.setdefault("".join(f"{part}." for part in parts[:start]), []).append(entry)
    return [WeightSet(prefix, tuple(own)) for prefix, own in found.items() if 2 * len(own) >= len(names)]


def _nearest(entry: Entry, sets: list[WeightSet]) -> WeightSet | None:
    """The set under whose prefix a tensor stands; of several the one with the longest."""
    matching = [each for each in sets if entry.place.startswith(each.prefix)]
    return max(matching, key=lambda each: len(each.prefix), default=None)


def _unnamed_averages(others: list[Entry], sets: list[WeightSet]) -> list[Entry]:
    """Averaged weights under other names than the network's, as some libraries keep them (`ema_backbone_conv_weight`).

    Half as many numbers as in a set of weights make them: less is a metric, or a rate of decay.
    """
    found = [entry for entry in others if _says_averaged(entry.place) and not OF_GRADIENTS.search(entry.place)]
    smallest = min(sum(entry.value.numel() for entry in each.own) for each in sets)
    return found if 2 * sum(entry.value.numel() for entry in found) >= smallest else []


def _says_averaged(place: str) -> bool:
    """Whether a word of it does: ema, model_ema, emaModel, shadow_params."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", place)
    return not AVERAGED_WORDS.isdisjoint(word.lower() for word in words)


def _is_counter(entry: Entry) -> bool:
    return entry.key.rpartition(".")[2] in COUNTERS and entry.value.numel() == 1


def largest_state_dict(document: Any, depth: int = 0) -> StateDict:
    """The largest dict of named tensors alone, whatever their names, as it stands; empty where there is none."""
    if not isinstance(document, dict) or depth > DEEPEST:
        return {}
    if document and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in document.items()):
        return document
    return max((largest_state_dict(value, depth + 1) for value in document.values()), key=len, default={})


def require_plain(state: StateDict, path: Path) -> None:
    """Raise ValueError for tensors that are sparse, quantized, complex, of no usual numbers, or shapes without any."""
    for key, value in state.items():
        if value.dtype not in PLAIN_TYPES or (value.layout, value.device.type) != (torch.strided, "cpu"):
            raise ValueError(
                f"{path}: no state dict of plain numbers; {key:.{LONGEST_KEY}} is {value.dtype}, {value.layout}, on "
                f"{value.device}"
            )


def some(keys: Iterable[str]) -> str:
    """The first keys, for an error message."""
    keys = list(keys)
    rest = len(keys) - LISTED_KEYS
    return ", ".join(f"{key:.{LONGEST_KEY}}" for key in keys[:LISTED_KEYS]) + (f" and {rest} more" if rest > 0 else "")
