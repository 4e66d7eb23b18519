"""The automatic choice of what stays in float: searched, timed as files, and checked on images that it was not made by.

What a block gains is measured in a simulation. What it costs comes from the times of layers, by ONNX Runtime's profile
of two files, one in int8 and one in float; the steps of the search are then files, whose time is measured.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.fx import GraphModule

from common.benchmark.float_choice import FloatChoice, FloatLimit, FloatStep, HeldOut
from common.benchmark.float_search import Found, Material, Tried, best_of, search
from common.benchmark.image_counts import LabelledInput, count, outputs_of
from common.data.datasets import evenly_spaced
from common.export.in_float import int8_share
from common.quantization.simulation import blocks_of
from common.runtimes.layer_times import module_times
from common.runtimes.predictors import OnnxPredictor
from common.runtimes.targets import Target
from common.scoring.latency import interleaved_latency
from common.system.progress import progress

logger = logging.getLogger(__name__)

MOST_TIMED = 6  # steps of which files are written
TIMED_RUNS, WARMUP_RUNS = 15, 2

Write = Callable[[GraphModule, Path, str, bool], object]  # graph, file, precision, whether nodes say their module
Costs = tuple[Mapping[str, float], float]  # milliseconds that each block loses in float, and those of all in int8


@dataclass(frozen=True)
class Subject:
    """A network that can be had in INT8 with any of its modules in float.

    Attributes:
        floats: the network in float, as a graph.
        quantized: the INT8 network with modules in float by their names, at least as fast as it will be written.
        finished: the same with all that its accuracy takes, or None where that is no more.
        write: writes one of these graphs as an ONNX file for `target`.
    """

    floats: GraphModule
    quantized: Callable[[Sequence[str]], GraphModule]
    finished: Callable[[Sequence[str]], GraphModule] | None
    write: Write
    target: Target


@dataclass(frozen=True)
class FloatRequest:
    """What a choice has to keep, and how it is made.

    Attributes:
        by_bound: whether the worse end of the interval has to keep the limit on the images that check, or the figure.
        division: of the images, in a sentence.
        command: gives the command line that leaves modules in float by their names.
    """

    limit: FloatLimit
    max_evaluations: int
    seed: int
    threads: int
    division: str
    command: Callable[[Sequence[str]], str]
    by_bound: bool = False


def choose_float(
    subject: Subject, material: Material, checking: Sequence[LabelledInput], request: FloatRequest
) -> tuple[FloatChoice, GraphModule | None]:
    """Choose the blocks that stay in float, and the INT8 network with them.

    Args:
        material: what the search measures on.
        checking: images that the choice is checked on, none of which it is made by.

    Returns the choice, and the graph where the limit is kept on the images that check, else None.
    """
    image = material.inputs[0].image
    with tempfile.TemporaryDirectory() as folder:
        files = _Files(subject, Path(folder), image, request.threads)
        found = search(
            material, request.limit, request.max_evaluations, request.seed, lambda: files.costs(material.prepared)
        )
        choice = _choice(found, subject, request, files, len(material.inputs))
        if found.chosen is None:
            return choice, None
        modules = found.tried[found.chosen].modules
        graph = subject.finished(modules) if subject.finished else subject.quantized(modules)
        path = files.written(modules)
        if subject.finished:
            path = Path(folder) / "finished.onnx"
            subject.write(graph, path, "int8", False)
        held_out = _held_out(path, material, checking, request)
    kept = is_kept(request.limit, held_out, request.by_bound)
    choice = replace(
        choice,
        evaluations=choice.evaluations + 1,
        held_out=held_out,
        kept=kept,
        command=request.command(modules),
        modules=list(modules),
    )
    return choice, graph if kept else None


def is_kept(limit: FloatLimit, held_out: HeldOut, by_bound: bool) -> bool:
    """Whether the figure keeps the limit, or the worse end of its interval, which there has to be then."""
    if not by_bound:
        return limit.keeps(held_out.figure)
    worse = held_out.low if limit.better > 0 else held_out.high
    return worse is not None and limit.keeps(worse)


def require_kept(choice: FloatChoice) -> None:
    """Raises ValueError where the limit is not kept; says what came nearest."""
    if choice.kept:
        return
    limit = FloatLimit(choice.limit, choice.wanted)
    wanted = f"--{choice.limit} {choice.wanted:g}"
    if choice.held_out is None:
        best = max(choice.steps, key=lambda step: limit.better * step.figure)
        raise ValueError(
            f"{wanted}: not kept within {choice.evaluations} of {choice.max_evaluations} evaluations; the best found "
            f"is {limit.title} {best.figure:.4g} with {', '.join(best.modules) or 'nothing'} in float; give more "
            "--max_evaluations, or another limit"
        )
    raise ValueError(
        f"{wanted}: kept on the images to choose by, not on the {choice.held_out.images} others: {limit.title} "
        f"{choice.held_out.figure:.4g} with {', '.join(choice.modules) or 'nothing'} in float; give more images, or a "
        "stricter limit"
    )


class _Files:
    """Files with some modules in float, each written once."""

    def __init__(self, subject: Subject, folder: Path, image: Tensor, threads: int):
        self.subject, self.folder, self.image, self.threads = subject, folder, image, threads
        self.paths: dict[tuple[str, ...], Path] = {}

    def written(self, modules: tuple[str, ...]) -> Path:
        """That of the INT8 network; with everything in int8 it says the module of each node."""
        if modules not in self.paths:
            self.paths[modules] = self.folder / f"{len(self.paths)}.onnx"
            self.subject.write(self.subject.quantized(modules), self.paths[modules], "int8", not modules)
        return self.paths[modules]

    def fp32(self) -> Path:
        """The file of the network in float."""
        path = self.folder / "fp32.onnx"
        if not path.exists():
            self.subject.write(self.subject.floats, path, "fp32", True)
        return path

    def costs(self, prepared: GraphModule) -> Costs:
        """By the measured times of the layers."""
        logger.info("measuring the times of layers in int8 and in float")
        int8, fp32 = (module_times(path, self.image, self.threads) for path in (self.written(()), self.fp32()))
        blocks = blocks_of(prepared)
        return {block: _of_block(fp32, block) - _of_block(int8, block) for block in blocks}, sum(int8.values())

    def latencies(self, steps: Sequence[tuple[str, ...]]) -> tuple[float, list[float]]:
        """p50 of the float network and of each step, ms, timed turn by turn."""
        paths = [self.fp32(), *(self.written(modules) for modules in progress(steps, "files", unit="file"))]
        predictors = [OnnxPredictor(path, self.threads) for path in paths]
        calls = {str(number): lambda each=each: each(self.image) for number, each in enumerate(predictors)}
        first, *others = (each.p50 for each in interleaved_latency(calls, TIMED_RUNS, WARMUP_RUNS, untimed=1).values())
        return first, others


def _of_block(times: Mapping[str, float], block: str) -> float:
    return sum(ms for module, ms in times.items() if f"{module}.".startswith(f"{block}."))


def _choice(found: Found, subject: Subject, request: FloatRequest, files: _Files, images: int) -> FloatChoice:
    """What was searched, with the times of some of its steps; not checked yet."""
    nearest = found.tried.index(best_of(found, request.limit)) if found.chosen is None else found.chosen
    indices = evenly_spaced(range(len(found.tried)), MOST_TIMED - 2)
    timed = sorted({0, nearest, *indices})
    fp32_ms, latencies = files.latencies([found.tried[index].modules for index in timed])
    measured = dict(zip(timed, latencies, strict=True))
    lost = {module: block.lost_ms / len(block.modules) for block in found.blocks for module in block.modules}
    shares = [int8_share(subject.quantized(tried.modules), subject.target) for tried in found.tried]
    return FloatChoice(
        limit=request.limit.name,
        wanted=request.limit.wanted,
        evaluations=found.evaluations,
        max_evaluations=request.max_evaluations,
        images=images,
        division=request.division,
        fp32_ms=fp32_ms,
        blocks=found.blocks,
        steps=[
            _step(tried, request.limit, shares[index], lost, measured, index) for index, tried in enumerate(found.tried)
        ],
        chosen=found.chosen,
    )


def _step(
    tried: Tried,
    limit: FloatLimit,
    share: float,
    lost: Mapping[str, float],
    measured: Mapping[int, float],
    index: int,
) -> FloatStep:
    return FloatStep(
        modules=list(tried.modules),
        figure=tried.figure,
        error=_finite(tried.error),
        sqnr_db=_finite(tried.counts.sqnr_db),
        miou=tried.counts.miou,
        enough=tried.is_enough(limit),
        int8_share=share,
        expected_ms=measured[0] + sum(lost[module] for module in tried.modules),
        latency_ms=measured.get(index),
    )


def _held_out(path: Path, material: Material, checking: Sequence[LabelledInput], request: FloatRequest) -> HeldOut:
    predictor = OnnxPredictor(path, request.threads)
    counts = count(outputs_of(material.reference, checking), predictor.outputs, checking, material.classes)
    figure = counts.figure(request.limit, request.seed)
    return HeldOut(
        images=len(checking),
        figure=figure.value,
        low=figure.low,
        high=figure.high,
        sqnr_db=_finite(counts.sqnr_db),
        miou=counts.miou,
        miou_fp32=counts.miou_fp32,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
