"""Which channels are left out so that a share of the operations is left."""

import copy
import fnmatch
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.pruning.channels import Block, ancestry
from common.pruning.slicing import without_channels
from common.system.user_code import one_line
from models.fuse import fuse_upsampling

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Costs:
    """How the operations of a network are counted: 2 for each multiply-add.

    Attributes:
        input_shape: of one input.
        only: modules whose operations count, by patterns for their names as in `fnmatch`.
        fused: upsampling stages are in their fused form, in which they are exported.
    """

    input_shape: tuple[int, int, int]
    only: tuple[str, ...] = ("*",)
    fused: bool = True

    def operations(self, skeleton: nn.Module) -> int:
        """Of one input; `skeleton` has its weights on the device `meta`, so that nothing is computed."""
        model = fuse_upsampling(copy.deepcopy(skeleton)) if self.fused else skeleton
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *self.input_shape))
        counts = {name: sum(each.values()) for name, each in counter.get_flop_counts().items() if name != "Global"}
        found = {name.partition(".")[2]: each for name, each in counts.items()}  # without the name of the class
        counted = {name for name in found if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.only)}
        return sum(found[name] for name in counted if counted.isdisjoint(_around(name)))


def _around(module: str) -> list[str]:
    """The modules that a module is in; "" is the network."""
    return ["", *ancestry(module)[:-1]] if module else []


@dataclass(frozen=True)
class Plan:
    """What is left out.

    Attributes:
        removed: channels of blocks.
        before, after: operations of what counts.
    """

    removed: Mapping[Block, np.ndarray]
    before: int
    after: int


def choose(
    model: nn.Module, scores: Mapping[Block, np.ndarray], costs: Costs, keep: float, multiple: int, by_cost: bool
) -> Plan:
    """The channels that count least for what they cost, until a share `keep` of the operations is left or less.

    A block keeps a number of channels that is a multiple, once it loses any. Blocks that save no operations, or whose
    number of channels stands in the code of the network, stay as they are.

    Args:
        scores: what each channel counts.
        by_cost: scores are comparable from block to block, and are divided by what a channel saves; else they are
            places within the block.

    Raises:
        ValueError: there is nothing to leave out, or not enough; names the flag.
    """
    skeleton = copy.deepcopy(model).to("meta")
    before = costs.operations(skeleton)
    saved = {block: _saving(skeleton, block, costs, before) for block in scores if block.size > multiple}
    groups = [
        (float(score) / (saving if by_cost else 1), block, channels)
        for block, saving in saved.items()
        if saving > 0
        for score, channels in _groups(scores[block], multiple)
    ]
    if not groups:
        raise ValueError(
            f"--only {' '.join(costs.only)}: no channels that can be left out by {multiple}; name larger parts"
        )
    groups.sort(key=lambda group: group[0])  # stable: a block's own order stays
    fewest, most = 1, len(groups)
    if (least := costs.operations(without_channels(skeleton, _joined(groups)))) > keep * before:
        raise ValueError(
            f"--keep_gflop {keep:g}: {least / before:.3f} of the operations remain with {multiple} channels in each "
            "layer; keep more, or let --only name more"
        )
    after = least
    while fewest < most:
        middle = (fewest + most) // 2
        found = costs.operations(without_channels(skeleton, _joined(groups[:middle])))
        if found <= keep * before:
            most, after = middle, found
        else:
            fewest = middle + 1
    return Plan(_joined(groups[:most]), before, after)


def _saving(skeleton: nn.Module, block: Block, costs: Costs, before: int) -> float:
    """The operations that leaving out a channel saves."""
    try:
        return before - costs.operations(without_channels(skeleton, {block: np.arange(1)}))
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        logger.info("%s keeps its channels, on whose number the code depends: %s", block, one_line(error))
        return 0.0


def _groups(scores: np.ndarray, multiple: int) -> list[tuple[float, np.ndarray]]:
    """The channels of a block that go together, with their mean score, from the least on; the last ones stay."""
    order = np.argsort(scores, kind="stable")
    first = len(order) % multiple or multiple
    parts = np.split(order[:-multiple], range(first, len(order) - multiple, multiple))
    means = np.maximum.accumulate([scores[part].mean() for part in parts])
    return list(zip(means.tolist(), parts, strict=True))


def _joined(groups: Sequence[tuple[float, Block, np.ndarray]]) -> dict[Block, np.ndarray]:
    found: dict[Block, np.ndarray] = {}
    for _, block, channels in groups:
        found[block] = np.concatenate([found.get(block, channels[:0]), channels])
    return found
