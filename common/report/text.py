"""The results document as tables and as Markdown, for a console and for report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.benchmark.results import Document
from common.report.figures import written
from common.report.float_choice import float_parts
from common.report.sensitivity import sensitivity_parts
from common.report.terms import terms_of
from common.scoring.tables import score_row
from common.system.markdown import inline, table

LOUD = ("failed", "regression")  # in capitals on a console, which has no colours


def markdown_report(document: Document, pictures: Sequence[Path] = ()) -> str:
    """The report as Markdown."""
    machine = dict(document["environment"])
    packages = machine.pop("versions")
    parts = [
        f"# {inline(document['title'])}",
        *([f"`{document['command'].replace('`', ' ')}`"] if document["command"] else []),
        "## Summary",
        *([f"**{inline(document['decision']['sentence'])}**"] if "decision" in document else []),
        *(f"- {inline(difference['verdict'])}" for difference in document["differences"].values()),
        *filter(None, [gate_tables(document)]),
        summary_table(document),
        *(f"- {inline(note)}" for note in document["notes"]),
        *(_agreement_parts if "agreement" in document else _accuracy_parts)(document),
        "## Time",
        timing_table(document),
        *filter(None, [threads_table(document)]),
        *float_parts(document),
        *sensitivity_parts(document),
        "## What the columns mean",
        "\n".join(f"- **{term}**: {inline(meaning)}" for term, meaning in terms_of(document).items()),
        "## Measured on",
        table([{"what": key, "value": value} for key, value in {**machine, **packages}.items()]),
    ]
    if pictures:
        links = (f"### {inline(picture.stem)}\n\n![](<{picture.as_posix()}>)" for picture in pictures)
        parts += ["## Pictures", *links]
    return "\n\n".join(parts) + "\n"


def _accuracy_parts(document: Document) -> list[str]:
    differences = ["### Differences", difference_table(document)] if document["differences"] else []
    return ["## Accuracy by dataset and class", accuracy_table(document), *differences]


def _agreement_parts(document: Document) -> list[str]:
    reference = inline(document["reference"])
    parts = [f"## Outputs against those of {reference}", agreement_table(document)]
    if "score" not in document:
        return parts
    differences = ["### Differences", score_difference_table(document)] if document["differences"] else []
    return ["## Scores against the labels", score_table(document), *differences, *parts]


def score_table(document: Document) -> str:
    """The figures against labels with their intervals: a row for each model and dataset, and one for all together."""
    return _table_of_scores(document, document["models"], "score")


def score_difference_table(document: Document) -> str:
    """The figures minus the reference's."""
    return _table_of_scores(document, document["differences"], "signed")


def _table_of_scores(document: Document, records: Mapping[str, Any], form: str) -> str:
    figures = document["score"]["figures"]
    rows = [
        {
            "model": label,
            "dataset": name,
            **{each["title"]: _with_range(part["scores"][key], form) for key, each in figures.items()},
        }
        for label, record in records.items()
        for name, part in {**record["datasets"], "together": record}.items()
    ]
    return table(rows)


def agreement_table(document: Document) -> str:
    """How near the outputs come to the reference's: a row for each model, output and folder of images."""
    rows = [
        {
            "model": label,
            "output": name,
            "images of": folder,
            "SQNR dB": written(found["outputs"][name]["sqnr_db"], "decibels"),
            "largest difference": written(found["outputs"][name]["largest_difference"], "short"),
            "of the range": written(found["outputs"][name]["output_range"], "short"),
            "equal": written(found["outputs"][name]["equal_pixels"], "percent"),
        }
        for label in document["differences"]
        for name in document["outputs"]
        for folder, found in {
            **document["models"][label]["datasets"],
            "together": document["models"][label],
        }.items()
    ]
    return table(rows) if rows else "One model: nothing to compare it with."


def summary_table(document: Document) -> str:
    """One row a model: size, time, memory, accuracy; ratios are against the first row."""
    first = next(iter(document["models"].values()))
    rows = [
        {
            "model": label,
            "precision": model["precision"],
            "size MB": written(model["size_bytes"], "megabytes"),
            **{f"{key} ms": written(model["latency_ms"][key], "ms") for key in ("p50", "p90", "p99")},
            "images/s": written(model["throughput_per_second"], "rate"),
            "speed": written(first["latency_ms"]["p50"] / model["latency_ms"]["p50"], "times"),
            "peak MB": written(model["peak_memory_bytes"], "megabytes"),
            "model MB": written(model["model_memory_bytes"], "megabytes"),
            **(_score_cells(model["overall"]) if "overall" in model else {}),
            **(_main_score_cells(document, model["scores"]) if "scores" in model else {}),
        }
        for label, model in document["models"].items()
    ]
    return table(rows)


def _score_cells(scores: Mapping[str, Any]) -> dict[str, str]:
    return {
        "mIoU": written(scores["miou"], "score"),
        "95 % interval": _range(scores["miou_interval"], "score"),
        "mIoU smoothed": written(scores["miou_smoothed"], "score"),
    }


def _main_score_cells(document: Document, scores: Mapping[str, Any]) -> dict[str, str]:
    key, figure = next(iter(document["score"]["figures"].items()))
    ends = _range((scores[key]["low"], scores[key]["high"]), "score")
    return {figure["title"]: written(scores[key]["value"], "score"), "95 % interval": ends}


def accuracy_table(document: Document) -> str:
    """One row for each model and dataset, and one for all datasets together."""
    rows = [
        {"model": label, "dataset": name, **score_row(scores)}
        for label, model in document["models"].items()
        for name, scores in {**model["datasets"], "together": model["overall"]}.items()
    ]
    return table(rows)


def difference_table(document: Document) -> str:
    """IoU minus the reference's with its interval: a row for each model and dataset, a column for each class."""
    rows = [
        {
            "model": label,
            "dataset": name,
            "mIoU": _with_range(change["miou"]),
            **{one: _with_range(value) for one, value in change["iou"].items()},
        }
        for label, difference in document["differences"].items()
        for name, change in {**difference["datasets"], "together": difference}.items()
    ]
    return table(rows)


def timing_table(document: Document) -> str:
    """One row a model: what it takes to start, what a file to a mask takes, and how far the figures scatter."""
    rows = [
        {
            "model": label,
            "load ms": written(model["cold_start_ms"]["load"], "ms"),
            "first inference ms": written(model["cold_start_ms"]["first_inference"], "ms"),
            "warm-up runs": f"{model['warm_up']['runs']}{'' if model['warm_up']['steady'] else ' (not steady)'}",
            "end to end p50 ms": written(model["end_to_end_ms"]["p50"], "ms"),
            **{f"{key} ms": written(model["latency_ms"][key], "ms") for key in ("min", "max", "mad")},
            "outliers": model["latency_ms"]["outliers"],
            "spread of blocks": written(model["block_spread"], "percent"),
        }
        for label, model in document["models"].items()
    ]
    return table(rows)


def threads_table(document: Document) -> str:
    """Images per second of every model for each number of threads; empty where that was not measured."""
    models = document["models"]
    counts = list(next(iter(models.values()))["by_threads"])
    rows = [
        {"model": label, **{f"{n} threads": written(model["by_threads"][n]["per_second"], "rate") for n in counts}}
        for label, model in models.items()
    ]
    return table(rows) if counts else ""


def gate_tables(document: Document) -> str:
    """The limits and the comparison with earlier runs; empty where nothing was checked."""
    parts = (document.get("gate", ()), document.get("baseline", {}).get("rows", ()))
    return "\n\n".join(table([_readable(row) for row in rows]) for rows in parts if rows)


def _readable(row: Mapping[str, object]) -> dict[str, object]:
    cells = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
    cells = {key.replace("_", " "): "-" if value is None else value for key, value in cells.items()}
    return cells | {"result": row["result"].upper() if row["result"] in LOUD else row["result"]}


def _with_range(change: Mapping[str, float | None], form: str = "signed") -> str:
    bounds = "" if change["low"] is None else f" ({_range((change['low'], change['high']), form)})"
    return written(change["value"], form) + bounds


def _range(bounds: Sequence[float | None], form: str) -> str:
    return written(None, form) if bounds[0] is None else " to ".join(written(bound, form) for bound in bounds)
