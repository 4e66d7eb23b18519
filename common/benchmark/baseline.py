"""Earlier runs as the baseline of this one: which figures got worse by more than the noise."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from common.benchmark.results import SCHEMA, Document
from common.benchmark.scores import score_from
from common.scoring.figures import score_differences
from common.scoring.statistics import difference_intervals

SMALLEST_TIME_NOISE = 0.03  # share of p50; runs of one model on a quiet machine differ by this much
MEMORY_NOISE = 0.05  # share of the peak memory; the allocator's doing
SQNR_NOISE = 0.05  # dB; another order of float sums
SIZE_NOISE = 0.01  # share of the file; metadata and versions

ON_CPU = ("CPUExecutionProvider", "PyTorch cpu", "ExecuTorch XnnpackBackend")  # models that no GPU makes faster
# why the figures of one model in two runs cannot be compared -> what of a run and the model's name has to be equal
CONDITIONS: dict[str, Callable[[Document, str], object]] = {
    "another processor": lambda run, label: run["environment"]["cpu"],
    "another provider": lambda run, label: run["models"][label]["provider"],
    "another GPU": lambda run, label: run["models"][label]["provider"] not in ON_CPU and run["environment"]["gpu"],
    "other images": lambda run, label: run["images"],
    "other classes": lambda run, label: list(run["models"][label].get("overall", {}).get("iou", ())),
    "other labels": lambda run, label: run.get("score"),
    "another reference": lambda run, label: run["reference"],
    "another input size": lambda run, label: list(run["models"][label]["input_hw"]),
    "another number of threads": lambda run, label: run["models"][label]["threads"],
    "kept on other processors": lambda run, label: sorted(run["settings"].get("pin") or ()),
    "another number of usable processors": lambda run, label: run["environment"]["usable_processors"],
}
SCORE_NEEDS = ("other images", "other labels", "another input size")
AGREEMENT_NEEDS = ("other images", "another input size", "another reference")
ACCURACY_NEEDS = ("other images", "other classes", "another input size")
# a processor's kernels lay weights out in their own way, and each thread has its buffers
MEMORY_NEEDS = (
    "another processor",
    "another provider",
    "another GPU",
    "another input size",
    "another number of threads",
)
TIME_NEEDS = (*MEMORY_NEEDS, "kept on other processors", "another number of usable processors")

DAMAGED = (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError)  # of a document taken apart

Row = dict[str, object]  # model, what, before, now, noise, result, why


def read_baselines(paths: Sequence[Path], labels: Iterable[str]) -> list[tuple[Path, Document]]:
    """Earlier results.json files, with their paths, that are to be compared with a run of the models `labels`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one is no such document, or one of another schema, or has none of the models.
    """
    baselines = [(path, read_baseline(path)) for path in paths]
    for _, baseline in baselines:
        _require_common_model(baseline, labels)
    return baselines


def read_baseline(path: Path) -> Document:
    """One of them, for any models."""
    if not path.is_file():
        raise FileNotFoundError(f"--baseline {path}: no such file; give the results.json of an earlier run")
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--baseline {path}: not JSON ({error}); give the results.json of an earlier run") from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise ValueError(f"--baseline {path}: schema {found}, wanted {SCHEMA}; run the benchmark anew for a baseline")
    try:
        compare_with_baselines(document, [document], seed=0)  # all that is needed of it later, before the work
        document["created"].strip()  # goes into the report, too
    except DAMAGED as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"--baseline {path}: damaged ({reason:.80}); run the benchmark anew for a baseline") from error
    return document


def _finite(text: str) -> float:
    """JSON's reader takes NaN and 1e999; nothing is worse than those, and every regression would pass."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.20} is no figure")
    return value


def _require_common_model(baseline: Document, labels: Iterable[str]) -> None:
    if not set(labels) & baseline["models"].keys():
        raise ValueError(
            f"--baseline: no model of this run in it; it has {', '.join(baseline['models'])}; name a model so"
        )


def compare_with_baselines(document: Document, baselines: Sequence[Document], seed: int) -> list[Row]:
    """Rows of the models of this run and of the earlier ones: model, what, before, now, noise, result, why.

    A model is compared with the earlier runs that have it: `before` is their median, for scores the last one's. A
    result is ok, better, regression (worse by more than the noise), or not comparable, with the reason. A model that
    this run or all the earlier ones lack gets one row that says so.
    """
    rows = []
    for label, now in document["models"].items():
        earlier = [run for run in baselines if label in run["models"]]
        if not earlier:
            rows.append(_row(label, "all", result="not in baseline"))
            continue
        before = [run["models"][label] for run in earlier]
        rows += _agreement(label, earlier, document) if "agreement" in document else []
        rows += _scores(label, earlier[-1], document, seed) if "score" in document else []
        rows += [] if "agreement" in document else [_accuracy(label, earlier[-1], document, seed)]
        rows.append(_latency(label, earlier, document))
        rows.append(_bytes(label, "size, MB", "size_bytes", before, now, SIZE_NOISE))
        why = _unlike(label, earlier, document, MEMORY_NEEDS)
        rows.append(_bytes(label, "model memory, MB", "model_memory_bytes", before, now, MEMORY_NOISE, why))
    gone = dict.fromkeys(label for run in baselines for label in run["models"] if label not in document["models"])
    return rows + [_row(label, "all", result="not in this run") for label in gone]


def _agreement(label: str, earlier: Sequence[Document], document: Document) -> list[Row]:
    """SQNR of each output; the reference has none of its own."""
    if label == document["reference"]:
        return []
    why = _unlike(label, earlier, document, AGREEMENT_NEEDS)
    rows = []
    for name, found in document["models"][label]["outputs"].items():
        before = [each["sqnr_db"] for run in earlier if (each := _output(run, label, name))]
        what = f"SQNR of {name}, dB"
        if why or len(before) < len(earlier):
            rows.append(_row(label, what, now=found["sqnr_db"], why=why or "other outputs"))
            continue
        rows.append(_less_is_better(label, what, -float(np.median(before)), -found["sqnr_db"], SQNR_NOISE))
        rows[-1] |= {"before": float(np.median(before)), "now": found["sqnr_db"]}
    return rows


def _output(run: Document, label: str, name: str) -> Document | None:
    return run["models"][label].get("outputs", {}).get(name)


def _scores(label: str, earlier: Document, document: Document, seed: int) -> list[Row]:
    """The figures against labels that are no masks of classes."""
    before, now = earlier["models"][label], document["models"][label]
    why = _unlike(label, [earlier], document, SCORE_NEEDS)
    figures = document["score"]["figures"]
    if why:
        return [_row(label, each["title"], now=now["scores"][key]["value"], why=why) for key, each in figures.items()]
    score, strata = score_from(document["score"]), [image["dataset"] for image in document["images"]]
    first, second = (one["per_image"]["evidence"] for one in (before, now))
    rows = []
    for figure, change in zip(score.figures, score_differences(score, first, second, strata, seed), strict=True):
        values = (before["scores"][figure.key]["value"], now["scores"][figure.key]["value"])
        if change.ends is None:
            rows.append(_row(label, figure.title, *values, why="too few images"))
            continue
        result = "ok" if not change.excludes_zero else "regression" if figure.loss(change.value) > 0 else "better"
        rows.append(_row(label, figure.title, *values, (change.ends[1] - change.ends[0]) / 2, result))
    return rows


def _accuracy(label: str, earlier: Document, document: Document, seed: int) -> Row:
    before, now = earlier["models"][label], document["models"][label]
    if "overall" not in before:
        return _row(label, "mIoU", now=now["overall"]["miou"], why="no masks")
    scores = (before["overall"]["miou"], now["overall"]["miou"])
    if why := _unlike(label, [earlier], document, ACCURACY_NEEDS):
        return _row(label, "mIoU", *scores, why=why)
    shape = (-1, *np.shape(now["overall"]["confusion"]))
    first, second = (np.reshape(one["per_image"]["confusion"], shape) for one in (before, now))
    change = difference_intervals(first, second, [image["dataset"] for image in document["images"]], seed)[0]
    if change.ends is None:
        return _row(label, "mIoU", *scores, why="too few images")
    result = "ok" if not change.excludes_zero else "regression" if change.value < 0 else "better"
    return _row(label, "mIoU", *scores, (change.ends[1] - change.ends[0]) / 2, result)


def _latency(label: str, earlier: Sequence[Document], document: Document) -> Row:
    """The noise within a run comes from its blocks, that between runs from the earlier ones where there are several."""
    before, now = [run["models"][label] for run in earlier], document["models"][label]
    runs = [one["latency_ms"]["p50"] for one in before]
    middle, p50 = float(np.median(runs)), now["latency_ms"]["p50"]
    if why := _unlike(label, earlier, document, TIME_NEEDS):
        return _row(label, "p50 latency, ms", middle, p50, why=why)
    within = max(one["block_spread"] for one in (*before, now)) / 2
    noise = max(SMALLEST_TIME_NOISE * middle, within * middle, max(runs) - min(runs))
    return _less_is_better(label, "p50 latency, ms", middle, p50, noise)


def _unlike(label: str, earlier: Sequence[Document], document: Document, needs: Iterable[str]) -> str | None:
    """The first reason why an earlier run of the model has no figure to compare with; None where all have one."""
    for why in needs:
        of = CONDITIONS[why]
        if any(of(run, label) != of(document, label) for run in earlier):
            return why
    return None


def _bytes(
    label: str, what: str, key: str, before: Sequence[Document], now: Document, noise: float, why: str | None = None
) -> Row:
    middle, size = float(np.median([run[key] for run in before])) / 1e6, now[key] / 1e6
    return (
        _row(label, what, middle, size, why=why) if why else _less_is_better(label, what, middle, size, noise * middle)
    )


def _less_is_better(label: str, what: str, before: float, now: float, noise: float) -> Row:
    result = "ok" if abs(now - before) <= noise else "regression" if now > before else "better"
    return _row(label, what, before, now, noise, result)


def _row(
    label: str,
    what: str,
    before: float | None = None,
    now: float | None = None,
    noise: float | None = None,
    result: str = "not comparable",
    why: str | None = None,
) -> Row:
    return {"model": label, "what": what, "before": before, "now": now, "noise": noise, "result": result, "why": why}
