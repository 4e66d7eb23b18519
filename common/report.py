"""Results of the benchmarks: one record per model, and its forms as JSON, as a table and as a Markdown report.

The JSON schema is described in docs/results.md.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.environment import environment
from common.evaluate import Evaluation, together
from common.files import write_json, write_text
from common.labels import CLASSES
from common.latency import latency
from common.memory import PeakMemory

SCHEMA = 1
DEFINITIONS = """- **mIoU**: standard. One confusion matrix over all images; mean IoU of the classes that occur.
- **mIoU smoothed**: the original's. For each image (intersection + 1) / (union + 1) over the three class maps together,
  mean over the images. It is larger than the standard one and not comparable with it.
- **Latency**: one image, from the prepared tensor to the logits, after warm-up; decoding and scoring are not in it.
- **Peak memory**: resident memory of a process that loads and runs this model alone, libraries included;
  "model" is the same less what was resident before the model was loaded."""


@dataclass(frozen=True)
class ModelResult:
    """One benchmarked model; the field names are the keys of results.json."""

    path: str
    size_bytes: int
    precision: str  # fp32, fp16, int8
    provider: str  # ONNX Runtime's execution provider, or PyTorch and its device
    threads: int
    input_hw: tuple[int, int]
    latency_ms: dict[str, float]
    throughput_per_second: float
    peak_memory_bytes: int
    model_memory_bytes: int
    device_memory_bytes: int | None
    overall: dict[str, object]
    datasets: dict[str, dict[str, object]]


def model_result(
    path: Path,
    precision: str,
    provider: str,
    threads: int,
    input_hw: tuple[int, int],
    evaluations: Mapping[str, Evaluation],
    memory: PeakMemory,
) -> ModelResult:
    """The record of one model from its evaluations by dataset."""
    overall = together(evaluations.values())
    timing = latency(overall.seconds)
    return ModelResult(
        path=str(path),
        size_bytes=path.stat().st_size,
        precision=precision,
        provider=provider,
        threads=threads,
        input_hw=input_hw,
        latency_ms=asdict(timing),
        throughput_per_second=timing.per_second,
        peak_memory_bytes=memory.process,
        model_memory_bytes=memory.model,
        device_memory_bytes=memory.device,
        overall=overall.meter.summary(CLASSES),
        datasets={
            name: {**evaluation.meter.summary(CLASSES), "latency_ms": asdict(latency(evaluation.seconds))}
            for name, evaluation in evaluations.items()
        },
    )


def results_document(models: Mapping[str, ModelResult], settings: Mapping[str, object]) -> dict[str, object]:
    """The whole of results.json: schema, command, settings, models, environment."""
    return {
        "schema": SCHEMA,
        "command": " ".join(sys.argv),
        "settings": dict(settings),
        "models": {label: asdict(result) for label, result in models.items()},
        "environment": environment(),
    }


def write_report(
    folder: Path,
    title: str,
    models: Mapping[str, ModelResult],
    settings: Mapping[str, object],
    notes: Sequence[str] = (),
    pictures: Sequence[Path] = (),
) -> None:
    """Write results.json and report.md into `folder`."""
    document = results_document(models, settings)
    write_json(folder / "results.json", document)
    write_text(
        folder / "report.md", markdown_report(title, document, models, notes, [p.relative_to(folder) for p in pictures])
    )


def markdown_report(
    title: str,
    document: Mapping[str, object],
    models: Mapping[str, ModelResult],
    notes: Sequence[str],
    pictures: Sequence[Path],
) -> str:
    """The report for people."""
    machine = dict(document["environment"])
    packages = machine.pop("versions")
    parts = [
        f"# {title}",
        f"`{document['command']}`",
        "## Summary",
        summary_table(models),
        *(f"- {note}" for note in notes),
        "## Accuracy by dataset and class",
        accuracy_table(models),
        "## What the columns mean",
        DEFINITIONS,
        "## Measured on",
        table([{"what": key, "value": value} for key, value in {**machine, **packages}.items()]),
    ]
    if pictures:
        links = (f"### {picture.stem}\n\n![{picture.stem}]({picture.as_posix()})" for picture in pictures)
        parts += ["## Pictures", *links]
    return "\n\n".join(parts) + "\n"


def summary_table(models: Mapping[str, ModelResult]) -> str:
    """One row a model: size, time, memory, accuracy; ratios are against the first row."""
    first = next(iter(models.values()))
    rows = [
        {
            "model": label,
            "precision": result.precision,
            "size MB": f"{result.size_bytes / 1e6:.2f}",
            "p50 ms": f"{result.latency_ms['p50']:.2f}",
            "p90 ms": f"{result.latency_ms['p90']:.2f}",
            "p99 ms": f"{result.latency_ms['p99']:.2f}",
            "images/s": f"{result.throughput_per_second:.2f}",
            "speed": f"{first.latency_ms['p50'] / result.latency_ms['p50']:.2f}x",
            "peak MB": f"{result.peak_memory_bytes / 1e6:.0f}",
            "model MB": f"{result.model_memory_bytes / 1e6:.0f}",
            "mIoU": _score(result.overall["miou"]),
            "mIoU smoothed": _score(result.overall["miou_smoothed"]),
        }
        for label, result in models.items()
    ]
    return table(rows)


def accuracy_table(models: Mapping[str, ModelResult]) -> str:
    """One row for each model and dataset, and one for all datasets together."""
    rows = [
        {"model": label, "dataset": name, **score_row(scores)}
        for label, result in models.items()
        for name, scores in {**result.datasets, "together": result.overall}.items()
    ]
    return table(rows)


def score_row(scores: Mapping[str, object]) -> dict[str, str]:
    """The columns of one `IoUMeter.summary`."""
    return {
        "images": str(scores["images"]),
        "mIoU": _score(scores["miou"]),
        **{name: _score(value) for name, value in scores["iou"].items()},
        "mIoU smoothed": _score(scores["miou_smoothed"]),
        **{f"{name} smoothed": _score(value) for name, value in scores["iou_smoothed"].items()},
    }


def _score(value: object) -> str:
    return "-" if value is None else f"{value:.4f}"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table with aligned columns, which reads as well on a console; the first row's keys are its head."""
    head = list(rows[0])
    cells = [head, *([str(row[key]) for key in head] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
