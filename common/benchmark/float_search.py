"""Which blocks of an INT8 network stay in float: those that gain most for a millisecond, until a limit is kept.

Accuracy is that of a simulation, which computes what the converted network does: no file is written for a candidate.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from common.benchmark.float_choice import FloatLimit, RankedBlock
from common.benchmark.image_counts import (
    Counts,
    LabelledInput,
    Outputs,
    count,
    outputs_of,
    outputs_with,
    standard_error,
)
from common.data.classes import Classes
from common.data.datasets import evenly_spaced
from common.quantization.simulation import blocks_of, inside
from common.system.progress import progress

logger = logging.getLogger(__name__)

RANKING_IMAGES = 8  # enough for a ratio of sums over all their pixels
RANKING_SHARE = 2 / 3  # of the evaluations go at most to blocks alone, the others to blocks together
LEAST_COST = 0.01  # of the INT8 network's time, which a block counts as losing at least: less is the clock's noise


@dataclass(frozen=True)
class Tried:
    """A set of blocks in float, on the images to choose by."""

    modules: tuple[str, ...]
    counts: Counts
    figure: float  # that the limit is of
    error: float  # its standard error

    def is_enough(self, limit: FloatLimit) -> bool:
        """Whether it keeps the limit with one standard error to spare, so that other images will hardly break it."""
        return limit.keeps(self.figure - limit.better * self.error)


@dataclass
class Found:
    """What the search came to; `chosen` is an index into `tried`, None where nothing keeps the limit."""

    blocks: list[RankedBlock] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    chosen: int | None = None
    evaluations: int = 0


@dataclass(frozen=True)
class Material:
    """What a search measures on.

    Attributes:
        prepared: the graph on `device` that computes what INT8 does, with fake quantizations to pass over.
        reference: the network in float.
        inputs: the images to choose by.
        classes: of the first output's map, where the images have labels.
    """

    prepared: GraphModule
    reference: Outputs
    inputs: Sequence[LabelledInput]
    classes: Classes | None
    device: torch.device


class _Search:
    def __init__(self, material: Material, limit: FloatLimit, most: int, seed: int):
        self.material, self.limit, self.most, self.seed = material, limit, most, seed
        self.found = Found()

    @property
    def left(self) -> int:
        """Evaluations, without the one that the check takes."""
        return self.most - 1 - self.found.evaluations

    def counts(
        self, modules: Sequence[str], inputs: Sequence[LabelledInput], exact: Sequence[Sequence[Tensor]] | None = None
    ) -> Counts:
        """One evaluation; `exact` is what the network in float gives, where it is known."""
        material = self.material
        self.found.evaluations += 1
        candidate = outputs_with(material.prepared, inside(material.prepared, modules), material.device)
        return count(exact or outputs_of(material.reference, inputs), candidate, inputs, material.classes)

    def attempt(self, modules: Sequence[str]) -> Tried:
        """A set of blocks on all images to choose by."""
        counts = self.counts(modules, self.material.inputs)
        figure = counts.figure(self.limit, self.seed)
        tried = Tried(tuple(modules), counts, figure.value, standard_error(figure))
        self.found.tried.append(tried)
        logger.info(
            "in float %s: %s %.4f, standard error %.4f",
            ", ".join(modules) or "nothing",
            self.limit.title,
            *(tried.figure, tried.error),
        )
        return tried

    def rank(self, costs: Mapping[str, float], int8_ms: float) -> list[RankedBlock]:
        """Blocks alone in float on some of the images, the most gained for a millisecond first.

        Where there are more blocks than may be measured, neighbours are measured together, and those that gain most
        are measured one by one.
        """
        most = round(RANKING_SHARE * self.left)
        indices = evenly_spaced(range(len(self.material.inputs)), RANKING_IMAGES)
        whole = self.found.tried[0].counts.part(indices).sqnr_db
        inputs = [self.material.inputs[index] for index in indices]
        exact = list(outputs_of(self.material.reference, inputs))

        def measured(modules: Sequence[str]) -> RankedBlock:
            gain = self.counts(modules, inputs, exact).sqnr_db - whole
            lost = sum(costs.get(module, 0.0) for module in modules)
            return RankedBlock(list(modules), gain, lost, gain / max(lost, LEAST_COST * int8_ms))

        groups = _neighbours(list(blocks_of(self.material.prepared)), most)
        ranked = [measured(group) for group in progress(groups, "blocks", unit="block")]
        left = most - len(groups)
        for group in sorted(ranked, key=lambda group: -group.gain_db):
            if 1 < len(group.modules) <= left:
                left -= len(group.modules)
                ranked.remove(group)
                ranked += [measured([module]) for module in group.modules]
        return sorted(ranked, key=lambda block: -block.gain_per_ms)

    def fill(self, ranked: Sequence[RankedBlock]) -> Tried | None:
        """Put back one block after the other until the limit is kept with something to spare."""
        modules: list[str] = []
        for block in ranked:
            if self.left < 1:
                break
            modules += block.modules
            if (tried := self.attempt(modules)).is_enough(self.limit):
                return tried
        return None

    def prune(self, enough: Tried, ranked: Sequence[RankedBlock]) -> Tried:
        """Quantize again what the limit does not need, the smallest gain first, until every block is needed."""
        gains = {module: block.gain_db / len(block.modules) for block in ranked for module in block.modules}
        changed = True
        while changed:
            changed = False
            for block in sorted(enough.modules, key=lambda name: (gains[name], name)):
                fewer = [module for module in enough.modules if module != block]
                if any(set(tried.modules) == set(fewer) for tried in self.found.tried):
                    continue  # it was not enough
                if self.left < 1:
                    return enough
                if (tried := self.attempt(fewer)).is_enough(self.limit):
                    enough, changed = tried, True
        return enough


def search(
    material: Material,
    limit: FloatLimit,
    max_evaluations: int,
    seed: int,
    costs: Callable[[], tuple[Mapping[str, float], float]],
) -> Found:
    """The fewest blocks in float with which the images to choose by keep `limit`.

    One evaluation is the accuracy of one candidate; one is left for the check on other images.

    Args:
        costs: gives the milliseconds that each block loses in float, and those of the whole network in int8; is asked
            where something has to be in float.
    """
    steps = _Search(material, limit, max_evaluations, seed)
    found = steps.found
    whole = steps.attempt(())
    if whole.is_enough(limit):
        found.chosen = 0
        return found
    found.blocks = steps.rank(*costs())
    enough = steps.fill(found.blocks)
    if enough is not None:
        enough = steps.prune(enough, found.blocks)
    else:
        kept = [tried for tried in found.tried if limit.keeps(tried.figure)]  # with nothing to spare
        enough = max(kept, key=lambda tried: limit.better * tried.figure, default=None)
    found.chosen = None if enough is None else found.tried.index(enough)
    return found


def best_of(found: Found, limit: FloatLimit) -> Tried:
    """Whatever came nearest."""
    return max(found.tried, key=lambda tried: limit.better * tried.figure)


def _neighbours(blocks: Sequence[str], most: int) -> list[list[str]]:
    """Each block for itself, or where they are more than `most`, half as many groups of blocks in their order."""
    if len(blocks) <= most:
        return [[block] for block in blocks]
    size = math.ceil(len(blocks) / max(min(2, most), most // 2))
    return [list(blocks[start : start + size]) for start in range(0, len(blocks), size)]
