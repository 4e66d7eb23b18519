"""A gate for batch jobs: limits that a model has to keep, and the decision that they and a baseline come to."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.benchmark.baseline import compare_with_baselines, read_baselines
from common.benchmark.results import Document
from common.benchmark.settings import GateSettings
from common.scoring.figures import Score
from common.scoring.percentiles import CALLS_FOR_P99

CLASSES, OUTPUTS, LABELS = "masks of classes", "outputs that are compared", "labels of another kind"
PASSED, FAILED, UNDECIDED = "passed", "failed", "not decided"
# of a row of the baseline; a model or a figure that cannot be compared is not one that passed
BASELINE_RESULTS = {"regression": FAILED, "not comparable": UNDECIDED, "not in this run": UNDECIDED}


@dataclass(frozen=True)
class Found:
    """A figure and the ends of its interval, each None where it is not known."""

    value: float | None
    low: float | None
    high: float | None
    at_most: bool | None = None  # how it keeps a limit, where that is another way for each figure


@dataclass(frozen=True)
class Limit:
    """The figures that have to keep one of the GateLimits."""

    find: Callable[[Document, str], Mapping[str, Found]]  # of the document and a model's name
    relative: bool  # to the reference
    at_most: bool  # or at least
    run: str | None = None  # one of CLASSES, OUTPUTS, LABELS; None: any run


def _exactly(value: float | None) -> Found:
    return Found(value, value, value)


def _loss(change: Mapping[str, float | None]) -> Found:
    # 0 minus, for minus zero would be written so
    value, low, high = (None if one is None else 0 - one for one in (change["value"], change["high"], change["low"]))
    return Found(value, low, high)


LIMITS = {
    "max_miou_drop": Limit(
        lambda document, label: {"mIoU": _loss(document["differences"][label]["miou"])},
        relative=True,
        at_most=True,
        run=CLASSES,
    ),
    "max_class_drop": Limit(
        lambda document, label: {
            name: _loss(change)
            for name, change in document["differences"][label]["iou"].items()
            if change["value"] is not None
        },
        relative=True,
        at_most=True,
        run=CLASSES,
    ),
    "min_speedup": Limit(
        lambda document, label: {"p50": Found(**document["differences"][label]["speedup"])},
        relative=True,
        at_most=False,
    ),
    "max_size_ratio": Limit(
        lambda document, label: {"file": _exactly(document["differences"][label]["size_ratio"])},
        relative=True,
        at_most=True,
    ),
    "min_miou": Limit(
        lambda document, label: {"mIoU": _miou(document["models"][label]["overall"])},
        relative=False,
        at_most=False,
        run=CLASSES,
    ),
    "max_latency_p99_ms": Limit(
        lambda document, label: {"p99": _exactly(document["models"][label]["latency_ms"]["p99"])},
        relative=False,
        at_most=True,
    ),
    "max_peak_memory_mb": Limit(
        lambda document, label: {"process": _exactly(document["models"][label]["peak_memory_bytes"] / 1e6)},
        relative=False,
        at_most=True,
    ),
}


def _by_output(key: str) -> Callable[[Document, str], Mapping[str, Found]]:
    def find(document: Document, label: str) -> Mapping[str, Found]:
        outputs = document["models"][label]["outputs"]
        return {name: _exactly(each[key]) for name, each in outputs.items() if each[key] is not None}

    return find


def _score_losses(document: Document, label: str) -> Mapping[str, Found]:
    changes, figures = document["differences"][label]["scores"], document["score"]["figures"]
    return {
        key: _loss(change) if figures[key]["higher_is_better"] else Found(**change) for key, change in changes.items()
    }


def _scores(document: Document, label: str) -> Mapping[str, Found]:
    figures = document["score"]["figures"]
    found = document["models"][label]["scores"]
    return {key: Found(**each, at_most=not figures[key]["higher_is_better"]) for key, each in found.items()}


LIMITS |= {
    "min_sqnr_db": Limit(_by_output("sqnr_db"), relative=True, at_most=False, run=OUTPUTS),
    "min_equal_pixels": Limit(_by_output("equal_pixels"), relative=True, at_most=False, run=OUTPUTS),
    "max_score_loss": Limit(_score_losses, relative=True, at_most=True, run=LABELS),
    "worst_score": Limit(_scores, relative=False, at_most=False, run=LABELS),
}


def _miou(scores: Mapping[str, Any]) -> Found:
    return Found(scores["miou"], *scores["miou_interval"])


@dataclass(frozen=True)
class Gate:
    """Limits for the models of a run, and the earlier runs that it is compared with; `open_gate` makes it."""

    settings: GateSettings
    models: Sequence[str]  # that the limits hold for
    baselines: Sequence[tuple[Path, Document]]

    def require_calls(self, images: int, timed_runs: int) -> None:
        """Raise ValueError where the timed calls of so many images are too few for `max_latency_p99_ms`."""
        calls = images * timed_runs
        if self.settings.limits.max_latency_p99_ms is not None and calls < CALLS_FOR_P99:
            raise ValueError(
                f"--max_latency_p99_ms: a 99th percentile takes {CALLS_FOR_P99} timed calls, and {images} images make "
                f"{calls}; give --timed_runs {-(-CALLS_FOR_P99 // images)}"
            )

    def check(self, document: Document, seed: int) -> Document:
        """What is checked of a run, and what that comes to, as parts of its document; nothing where nothing is."""
        parts: Document = {}
        if limits := self.settings.limits.given():
            parts["gate"] = check_limits(document, limits, self.models, self.settings.gate_by)
        if self.baselines:
            runs = [{"path": str(path), "created": one["created"]} for path, one in self.baselines]
            rows = compare_with_baselines(document, [one for _, one in self.baselines], seed)
            parts["baseline"] = {"runs": runs, "rows": rows}
        if parts:
            parts["decision"] = decide(parts.get("gate", ()), parts.get("baseline", {}).get("rows", ()))
        return parts


def open_gate(
    settings: GateSettings, labels: Sequence[str], *, outputs: bool = False, score: Score | None = None
) -> Gate:
    """The gate for the models `labels`, the first of which is the reference; what cannot be checked fails here, before
    the work. The files of the earlier runs need not be there afterwards.

    Args:
        outputs: of a run that compares outputs, not one of maps of classes.
        score: of such a run where there are labels.

    Raises:
        FileNotFoundError, ValueError: a limit against the first model and no second one, a limit of another kind of
            run, or of a figure that there is not, no model of a name in `gate_models`, or no usable baseline.
    """
    limits = settings.limits.given()
    for name, wanted in limits.items():
        _require_run(name, outputs, score)
        if score and isinstance(wanted, tuple):
            _require_figures(name, [key for key, _ in wanted], [figure.key for figure in score.figures])
    relative = [name for name in limits if LIMITS[name].relative]
    if relative and len(labels) < 2:
        raise ValueError(f"--{relative[0]} compares with the first model; name a second one")
    models = gated_models(settings.gate_models, labels, limits)
    return Gate(settings, models, read_baselines(settings.baseline or (), labels))


def _require_run(name: str, outputs: bool, score: Score | None) -> None:
    """Raise ValueError for a limit of another kind of run."""
    run = LIMITS[name].run
    if run == CLASSES and score:
        keys = ", ".join(figure.key for figure in score.figures)
        raise ValueError(f"--{name}: is of maps of classes; here --max_score_loss and --worst_score limit {keys}")
    if run == CLASSES and outputs:
        raise ValueError(f"--{name}: takes masks, which --images has not; leave it out")
    if run == OUTPUTS and not outputs:
        raise ValueError(f"--{name}: compares outputs on --images; give them in the place of the data root")
    if run == LABELS and not score:
        if outputs:
            raise ValueError(f"--{name}: takes labels, which --images has not; leave it out")
        raise ValueError(
            f"--{name}: is not of maps of classes, which have --max_miou_drop, --max_class_drop, --min_miou"
        )


def _require_figures(name: str, keys: Sequence[str], known: Sequence[str]) -> None:
    for key in keys:
        if key not in known:
            raise ValueError(f"--{name} {key}: no such figure; there are {', '.join(known)}")
        if keys.count(key) > 1:
            raise ValueError(f"--{name} {key}: given twice; give one limit for each figure")


def gated_models(names: Sequence[str] | None, labels: Sequence[str], limits: Iterable[str]) -> list[str]:
    """The models that the limits hold for: those of `names`, else all of `labels` but the first, else the only one.

    Raises:
        ValueError: no such model, or the first one and a limit against it.
    """
    if not names:
        return list(labels[1:] or labels)
    if unknown := [name for name in names if name not in labels]:
        raise ValueError(f"--gate_models {unknown[0]}: no such model; there are {', '.join(labels)}")
    relative = [name for name in limits if LIMITS[name].relative]
    if relative and labels[0] in names:
        raise ValueError(
            f"--gate_models {labels[0]}: the first model, which --{relative[0]} compares with; name others"
        )
    return list(names)


def check_limits(
    document: Document,
    limits: Mapping[str, float | Sequence[tuple[str, float]]],
    labels: Sequence[str],
    by: str = "estimate",
) -> list[dict[str, object]]:
    """A row for each limit and each figure of the models `labels` that has to keep it: limit, model, what, wanted,
    found, worse_end (of the interval), result.

    Args:
        limits: name -> limit of all its figures, or the limits of some of them by their keys.
        by: "estimate": the figure has to keep the limit; "bound": the worse end of its 95 % interval.
    """
    rows = []
    for name, wanted in limits.items():
        for label in labels:
            figures = LIMITS[name].find(document, label)
            asked = dict.fromkeys(figures, wanted) if isinstance(wanted, int | float) else dict(wanted)
            for what, limit in asked.items():
                found = figures[what]
                at_most = LIMITS[name].at_most if found.at_most is None else found.at_most
                worse_end = found.high if at_most else found.low
                judged = worse_end if by == "bound" else found.value
                row = {"limit": f"--{name}", "model": label, "what": what, "wanted": limit, "found": found.value}
                rows.append({**row, "worse_end": worse_end, "result": _result(judged, limit, at_most)})
    return rows


def _result(judged: float | None, wanted: float, at_most: bool) -> str:
    if judged is None:
        return UNDECIDED
    return PASSED if (judged <= wanted if at_most else judged >= wanted) else FAILED


def decide(gate: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the rows of the limits and of the baseline come to: result (passed, failed, not decided) and sentence."""
    results = [(row["result"], _told(row)) for row in gate]
    for row in baseline:
        text = f"{row['what']} of {row['model']}: {row['result']}"
        results.append((BASELINE_RESULTS.get(row["result"], PASSED), f"{text}, {row['why']}" if row["why"] else text))
    found = next((one for one in (FAILED, UNDECIDED) if any(result == one for result, _ in results)), PASSED)
    reasons = [text for result, text in results if result == found]
    if found == PASSED:
        return {"result": PASSED, "sentence": f"PASSED: nothing missed, {len(results)} figures checked"}
    return {"result": found, "sentence": f"{found.upper()}: {'; '.join(reasons)}"}


def _told(row: Mapping[str, Any]) -> str:
    found = "unknown" if row["found"] is None else f"{row['found']:.4g}"
    return f"{row['model']}: {row['what']} {found}, wanted {row['limit']} {row['wanted']:g}"


def has_failed(document: Document) -> bool:
    """Whether there is a gate or a baseline, and the decision is not that all passed."""
    return document.get("decision", {"result": PASSED})["result"] != PASSED
