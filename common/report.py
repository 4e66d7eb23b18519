"""The results document as tables and as Markdown, for a console and for report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.gate import gate_tables
from common.markdown import inline, table
from common.report_sensitivity import sensitivity_parts

Document = Mapping[str, object]

DEFINITIONS = """- **mIoU**: standard. One confusion matrix over all images; mean IoU of the classes that occur. The
  interval holds it with 95 % confidence; it comes from drawing the images anew, with replacement, 1000 times.
- **mIoU smoothed**: the original's. For each image (intersection + 1) / (union + 1) over the three class maps together,
  mean over the images. It is larger than the standard one and not comparable with it.
- **Difference**: the model's mIoU minus the reference's on the same images; significant where its interval excludes 0.
- **Latency**: one image, from the prepared tensor to the logits, after warm-up; decoding and scoring are not in it.
- **End to end**: image file to class map, that is decoding, resizing, normalising, the network, and the largest logit.
- **Peak memory**: resident memory of a process that loads and runs this model alone, libraries included;
  "model" is the same less what was resident before the model was loaded. Cold start is measured there, too."""


def markdown_report(document: Document, pictures: Sequence[Path] = ()) -> str:
    """The report as Markdown."""
    machine = dict(document["environment"])
    packages = machine.pop("versions")
    parts = [
        f"# {inline(document['title'])}",
        f"`{document['command'].replace('`', ' ')}`",
        "## Summary",
        *(f"- {inline(difference['verdict'])}" for difference in document["differences"].values()),
        *filter(None, [gate_tables(document)]),
        summary_table(document),
        *(f"- {inline(note)}" for note in document["notes"]),
        "## Accuracy by dataset and class",
        accuracy_table(document),
        "## Time",
        timing_table(document),
        *sensitivity_parts(document),
        "## What the columns mean",
        DEFINITIONS,
        "## Measured on",
        table([{"what": key, "value": value} for key, value in {**machine, **packages}.items()]),
    ]
    if pictures:
        links = (f"### {inline(picture.stem)}\n\n![](<{picture.as_posix()}>)" for picture in pictures)
        parts += ["## Pictures", *links]
    return "\n\n".join(parts) + "\n"


def summary_table(document: Document) -> str:
    """One row a model: size, time, memory, accuracy; ratios are against the first row."""
    first = next(iter(document["models"].values()))
    rows = [
        {
            "model": label,
            "precision": model["precision"],
            "size MB": f"{model['size_bytes'] / 1e6:.2f}",
            "p50 ms": f"{model['latency_ms']['p50']:.2f}",
            "p90 ms": f"{model['latency_ms']['p90']:.2f}",
            "p99 ms": f"{model['latency_ms']['p99']:.2f}",
            "images/s": f"{model['throughput_per_second']:.2f}",
            "speed": f"{first['latency_ms']['p50'] / model['latency_ms']['p50']:.2f}x",
            "peak MB": f"{model['peak_memory_bytes'] / 1e6:.0f}",
            "model MB": f"{model['model_memory_bytes'] / 1e6:.0f}",
            "mIoU": _score(model["overall"]["miou"]),
            "95 % interval": _range(model["overall"]["miou_interval"]),
            "mIoU smoothed": _score(model["overall"]["miou_smoothed"]),
        }
        for label, model in document["models"].items()
    ]
    return table(rows)


def accuracy_table(document: Document) -> str:
    """One row for each model and dataset, and one for all datasets together."""
    rows = [
        {"model": label, "dataset": name, **score_row(scores)}
        for label, model in document["models"].items()
        for name, scores in {**model["datasets"], "together": model["overall"]}.items()
    ]
    return table(rows)


def timing_table(document: Document) -> str:
    """One row a model: what it takes to start, what a file to a mask takes, and how far the figures scatter."""
    rows = [
        {
            "model": label,
            "load ms": f"{model['cold_start_ms']['load']:.0f}",
            "first inference ms": f"{model['cold_start_ms']['first_inference']:.1f}",
            "warm-up runs": f"{model['warm_up']['runs']}{'' if model['warm_up']['steady'] else ' (not steady)'}",
            "end to end p50 ms": f"{model['end_to_end_ms']['p50']:.2f}",
            "min ms": f"{model['latency_ms']['min']:.2f}",
            "max ms": f"{model['latency_ms']['max']:.2f}",
            "MAD ms": f"{model['latency_ms']['mad']:.2f}",
            "outliers": model["latency_ms"]["outliers"],
            "spread of blocks": f"{100 * model['block_spread']:.1f} %",
        }
        for label, model in document["models"].items()
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


def _range(bounds: Sequence[float | None]) -> str:
    return "-" if bounds[0] is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"
