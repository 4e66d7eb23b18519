"""A gate for batch jobs: limits that a model has to keep, and regressions against an earlier run."""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.cli import fraction, non_negative_float, positive_float
from common.markdown import table
from common.results import SCHEMA
from common.statistics import difference_intervals

SMALLEST_TIME_NOISE = 0.03  # share of p50; runs of one model on a quiet machine differ by this much
MEMORY_NOISE = 0.05  # share of the peak memory; the allocator's doing
SIZE_NOISE = 0.01  # share of the file; metadata and versions

DAMAGED = (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError)  # of a document taken apart

Document = Mapping[str, object]


@dataclass(frozen=True)
class Limit:
    """One limit: its flag's type and help, and where its figure comes from."""

    kind: Callable[[str], float]
    help: str
    find: Callable[[Document, str], float]  # of the document and a model's name
    relative: bool  # to the reference
    at_most: bool  # or at least


LIMITS = {
    "max_miou_drop": Limit(
        fraction,
        "largest loss of mIoU against the first model, for example 0.01",
        lambda document, label: -document["differences"][label]["miou"]["value"],
        relative=True,
        at_most=True,
    ),
    "min_speedup": Limit(
        positive_float,
        "least speed against the first model: its p50 / this p50",
        lambda document, label: document["differences"][label]["speedup"]["value"],
        relative=True,
        at_most=False,
    ),
    "max_size_ratio": Limit(
        positive_float,
        "largest size against the first model's file",
        lambda document, label: document["differences"][label]["size_ratio"],
        relative=True,
        at_most=True,
    ),
    "min_miou": Limit(
        fraction,
        "least mIoU over all images",
        lambda document, label: document["models"][label]["overall"]["miou"],
        relative=False,
        at_most=False,
    ),
    "max_latency_p99_ms": Limit(
        positive_float,
        "largest 99th percentile of the latency, ms",
        lambda document, label: document["models"][label]["latency_ms"]["p99"],
        relative=False,
        at_most=True,
    ),
    "max_peak_memory_mb": Limit(
        non_negative_float,
        "largest peak memory of a process with the model alone, MB",
        lambda document, label: document["models"][label]["peak_memory_bytes"] / 1e6,
        relative=False,
        at_most=True,
    ),
}


def add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each of LIMITS, and `--baseline`."""
    group = parser.add_argument_group("gate", "limits, with exit code 3 where one is missed")
    group.add_argument(
        "--gate_models",
        nargs="+",
        metavar="NAME",
        help="models that the limits hold for (default: all but the first, or the only one)",
    )
    for name, limit in LIMITS.items():
        group.add_argument(f"--{name}", type=limit.kind, metavar="X", help=limit.help)
    group.add_argument(
        "--baseline",
        type=Path,
        metavar="JSON",
        help="results.json of an earlier run; regressions beyond the noise fail",
    )


def limits_of(args: argparse.Namespace) -> dict[str, float]:
    """The limits that the command line sets."""
    return {name: getattr(args, name) for name in LIMITS if getattr(args, name) is not None}


def check_gate(args: argparse.Namespace, labels: Sequence[str]) -> None:
    """Fail before the work, not after it, where the limits cannot be checked on the models `labels`.

    Raises:
        FileNotFoundError, ValueError: a limit against the first model and no second one, no model of a name in
            `--gate_models`, or no usable baseline.
    """
    relative = [name for name in limits_of(args) if LIMITS[name].relative]
    if relative and len(labels) < 2:
        raise ValueError(f"--{relative[0]} compares with the first model; name a second one")
    gated_models(args.gate_models, labels, limits_of(args))
    if args.baseline:
        require_common_model(read_baseline(args.baseline), labels)


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


def check_limits(document: Document, limits: Mapping[str, float], labels: Sequence[str]) -> list[dict[str, object]]:
    """A row for each limit and each of the models `labels`: limit, model, wanted, found, passed."""
    rows = []
    for name, wanted in limits.items():
        for label in labels:
            found = LIMITS[name].find(document, label)
            passed = found <= wanted if LIMITS[name].at_most else found >= wanted
            rows.append({"limit": f"--{name}", "model": label, "wanted": wanted, "found": found, "passed": passed})
    return rows


def read_baseline(path: Path) -> Document:
    """An earlier results.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such document, or one of another schema.
    """
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
        compare_with_baseline(document, document, seed=0)  # all that is needed of it later, before the work
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


def require_common_model(baseline: Document, labels: Iterable[str]) -> None:
    """Raise ValueError where the baseline has none of the models `labels`: there is nothing to compare."""
    if not set(labels) & baseline["models"].keys():
        raise ValueError(
            f"--baseline: no model of this run in it; it has {', '.join(baseline['models'])}; name a model so"
        )


def compare_with_baseline(document: Document, baseline: Document, seed: int) -> list[dict[str, object]]:
    """Rows of the models that both runs have: model, what, before, now, noise, result.

    A result is ok, better, regression (worse by more than the noise), or not comparable. A model that one run alone has
    gets one row that says so.

    Raises:
        ValueError: no model of one name in both.
    """
    require_common_model(baseline, document["models"])
    common = [label for label in document["models"] if label in baseline["models"]]
    same_machine = document["environment"]["cpu"] == baseline["environment"]["cpu"]
    rows = []
    for label in common:
        before, now = baseline["models"][label], document["models"][label]
        rows.append(_accuracy(label, before, now, document["images"] == baseline["images"], seed))
        rows.append(_latency(label, before, now, same_machine and before["threads"] == now["threads"]))
        for what, key, noise in (
            ("size, MB", "size_bytes", SIZE_NOISE),
            ("model memory, MB", "model_memory_bytes", MEMORY_NOISE),
        ):
            rows.append(_row(label, what, before[key] / 1e6, now[key] / 1e6, noise * before[key] / 1e6))
    for here, there, result in ((document, baseline, "not in baseline"), (baseline, document, "not in this run")):
        rows += [
            {"model": label, "what": "all", "before": None, "now": None, "noise": None, "result": result}
            for label in here["models"]
            if label not in there["models"]
        ]
    return rows


def _accuracy(label: str, before: Document, now: Document, same_images: bool, seed: int) -> dict[str, object]:
    scores = (before["overall"]["miou"], now["overall"]["miou"])
    if not same_images:
        return _row(label, "mIoU", *scores, None)
    classes = len(now["overall"]["confusion"])
    matrices = [np.array(one["per_image"]["confusion"]).reshape(-1, classes, classes) for one in (before, now)]
    change = difference_intervals(*matrices, seed)[0]
    if change.low is None:
        return _row(label, "mIoU", *scores, None)
    result = "ok" if not change.excludes_zero else "regression" if change.value < 0 else "better"
    return {**_row(label, "mIoU", *scores, (change.high - change.low) / 2), "result": result}


def _latency(label: str, before: Document, now: Document, comparable: bool) -> dict[str, object]:
    medians = (before["latency_ms"]["p50"], now["latency_ms"]["p50"])
    spread = max(before["block_spread"], now["block_spread"]) / 2
    noise = max(SMALLEST_TIME_NOISE, spread) * medians[0] if comparable else None
    return _row(label, "p50 latency, ms", *medians, noise)


def _row(label: str, what: str, before: float, now: float, noise: float | None) -> dict[str, object]:
    """For figures of which less is better; no noise: the two cannot be compared."""
    if noise is None:
        result = "not comparable"
    else:
        result = "ok" if abs(now - before) <= noise else "regression" if now > before else "better"
    return {"model": label, "what": what, "before": before, "now": now, "noise": noise, "result": result}


def has_failed(document: Document) -> bool:
    """Whether a limit is missed or a figure is worse than the baseline's."""
    rows = document.get("baseline", {}).get("rows", ())
    return any(not row["passed"] for row in document.get("gate", ())) or any(
        row["result"] == "regression" for row in rows
    )


def gate_tables(document: Document) -> str:
    """The rows for a console; empty where nothing was checked."""
    gate = [_readable(row) | {"passed": "passed" if row["passed"] else "FAILED"} for row in document.get("gate", ())]
    baseline = [_readable(row) for row in document.get("baseline", {}).get("rows", ())]
    return "\n\n".join(table(rows) for rows in (gate, baseline) if rows)


def _readable(row: Mapping[str, object]) -> dict[str, object]:
    return {key: f"{value:.4g}" if isinstance(value, float) else _dash(value) for key, value in row.items()}


def _dash(value: object) -> object:
    return "-" if value is None else value
