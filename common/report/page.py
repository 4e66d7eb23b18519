"""The results document as one page that needs nothing else: no network, no script; it prints, and fits in a mail."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.benchmark.results import Document
from common.report import charts
from common.report.figures import Place, figure, look_up
from common.report.page_gate import baseline, decision, gate
from common.report.page_pictures import pictures, worst_images
from common.report.page_sensitivity import sensitivity_section
from common.report.parts import (
    chart,
    facts,
    figures_table,
    left,
    model_name,
    model_style,
    small,
    value_range,
    with_interval,
    with_range,
)
from common.report.pictures import Scene
from common.report.terms import TERMS

CSS = Path(__file__).with_name("report.css")

SEPARATOR = " \N{MIDDLE DOT} "
TAGS = {"kept": "accuracy kept", "lost": "accuracy lost", "gained": "accuracy gained", "unknown": "too few images"}


def page(document: Document, scenes: Sequence[Scene] = (), worst: Mapping[str, Sequence[Scene]] | None = None) -> str:
    """The whole page; every figure in it is an element that names its place in the document."""
    sections = {
        "Summary": _summary(document),
        "Accuracy": _accuracy(document),
        "Speed": _speed(document),
        "Size and memory": _memory(document),
        "Sensitivity": sensitivity_section(document),
        "Pictures": pictures(document, scenes),
        "Worst images": worst_images(document, worst or {}),
        "How it was measured": _method(document),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>{body}</section>' for name, body in sections.items())
    title = html.escape(document["title"])
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main><h1>{title}</h1>{_subtitle(document)}<nav>{links}</nav>{body}</main></body></html>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _subtitle(document: Document) -> str:
    machine, datasets = document["environment"], dict.fromkeys(image["dataset"] for image in document["images"])
    parts = [document["created"][:16].replace("T", " "), f"{len(document['images'])} images of {', '.join(datasets)}"]
    return f'<p class="soft">{html.escape(SEPARATOR.join([*parts, machine["cpu"]]))}</p>'


# ---- summary


def _summary(document: Document) -> str:
    cards = [_card(document, label) for label in document["differences"]] or [_single_card(document)]
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in document["notes"])
    summary = f'<div class="cards">{"".join(cards)}</div>{notes}'
    return decision(document) + summary + gate(document) + baseline(document) + _models(document)


def _card(document: Document, label: str) -> str:
    difference, base = document["differences"][label], ("differences", label)
    numbers = {
        "of the size": figure(document, (*base, "size_ratio"), "times"),
        "speed": figure(document, (*base, "speedup", "value"), "times"),
        "mIoU difference": figure(document, (*base, "miou", "value"), "signed"),
        "ms, p50": figure(document, ("models", label, "latency_ms", "p50"), "ms"),
    }
    tag = f'<span class="tag {difference["tag"]}">{TAGS[difference["tag"]]}</span>'
    return _card_of(document, label, tag, numbers, difference["verdict"])


def _single_card(document: Document) -> str:
    (label,) = document["models"]
    base = ("models", label)
    numbers = {
        "MB": figure(document, (*base, "size_bytes"), "megabytes"),
        "ms, p50": figure(document, (*base, "latency_ms", "p50"), "ms"),
        "ms, p99": figure(document, (*base, "latency_ms", "p99"), "ms"),
        "mIoU": figure(document, (*base, "overall", "miou"), "score"),
    }
    return _card_of(document, label, "", numbers, "One model: nothing to compare it with.")


def _card_of(document: Document, label: str, tag: str, numbers: Mapping[str, str], sentence: str) -> str:
    cells = "".join(f"<div>{number}<span>{name}</span></div>" for name, number in numbers.items())
    return (
        f'<div class="card" {model_style(document, label)}><h3>{html.escape(label)}{tag}</h3>'
        f'<div class="numbers">{cells}</div><p>{html.escape(sentence)}</p></div>'
    )


def _models(document: Document) -> str:
    head = ["model", "precision", "size MB", "p50 ms", "p99 ms", "images/s", "model MB", "mIoU", "95 % interval"]
    head += ["mIoU smoothed", "other pixels"]
    rows = []
    for label, model in document["models"].items():
        base: Place = ("models", label)
        place = ("differences", label, "different_pixels")
        rows.append(
            [
                model_name(document, label),
                html.escape(model["precision"]),
                figure(document, (*base, "size_bytes"), "megabytes"),
                figure(document, (*base, "latency_ms", "p50"), "ms"),
                figure(document, (*base, "latency_ms", "p99"), "ms"),
                figure(document, (*base, "throughput_per_second"), "rate"),
                figure(document, (*base, "model_memory_bytes"), "megabytes"),
                figure(document, (*base, "overall", "miou"), "score"),
                value_range(document, (*base, "overall", "miou_interval"), "score"),
                figure(document, (*base, "overall", "miou_smoothed"), "score"),
                figure(document, place, "percent") if label in document["differences"] else "reference",
            ]
        )
    return figures_table(head, rows)


# ---- accuracy


def _accuracy(document: Document) -> str:
    captions = f"Paired by image against {document['reference']}; a bar that crosses the line is no significant change."
    forests = [chart(charts.differences(document, label), f"{label}. {captions}") for label in document["differences"]]
    scatter = chart(charts.accuracy_against_latency(document), "The upper left is best. Bars: 95 % intervals.")
    matrices = "".join(_matrix(document, label) for label in document["models"])
    return (
        f'<div class="pair">{scatter}{"".join(forests)}</div>'
        f"<h3>By dataset and class</h3>{_scores(document)}{_differences(document)}"
        '<h3>Confusion matrices</h3><p class="soft">Rows are the truth; shares are of the row.</p>'
        f'<div class="matrices">{matrices}</div>'
    )


def _scores(document: Document) -> str:
    """The models below each other for each dataset, so that the eye compares them."""
    rows, starts = [], []
    names = [*next(iter(document["models"].values()))["datasets"], None]
    for name in names:
        for number, (label, model) in enumerate(document["models"].items()):
            base: Place = ("models", label, *(("datasets", name) if name else ("overall",)))
            starts.append(number == 0)
            cells = [left(html.escape(name or "together") if number == 0 else ""), left(model_name(document, label))]
            cells.append(figure(document, (*base, "images"), "count"))
            cells.append(with_range(document, (*base, "miou"), (*base, "miou_interval")))
            cells += [
                with_range(document, (*base, "iou", one), (*base, "iou_interval", one))
                for one in model["overall"]["iou"]
            ]
            rows.append([*cells, figure(document, (*base, "pixel_accuracy"), "percent")])
    return figures_table(["dataset", "model", "images", "mIoU", *_classes(document), "pixels right"], rows, starts)


def _classes(document: Document) -> list[str]:
    """The classes that are scored."""
    return list(document["models"][document["reference"]]["overall"]["iou"])


def _differences(document: Document) -> str:
    """The figures of the forests, and those of every class in every dataset."""
    rows, starts = [], []
    for label, difference in document["differences"].items():
        for number, name in enumerate([*difference["datasets"], None]):
            base: Place = ("differences", label, *(("datasets", name) if name else ()))
            starts.append(number == 0)
            names = [left(model_name(document, label) if number == 0 else ""), left(html.escape(name or "together"))]
            places = [(*base, "miou"), *((*base, "iou", one) for one in _classes(document))]
            rows.append([*names, *(with_interval(document, place, "signed") for place in places)])
    title = f"<h3>Differences from {html.escape(document['reference'])}</h3>"
    return rows and title + figures_table(["model", "dataset", "mIoU", *_classes(document)], rows, starts) or ""


def _matrix(document: Document, label: str) -> str:
    model = document["models"][label]["overall"]
    rows, names = [], _classes(document)
    columns = [*names, "another"][: len(model["confusion"][0])]  # predictions of classes that are not scored
    for number, name in enumerate(names):
        cells = []
        for column in range(len(columns)):
            share = model["confusion_share"][number][column] or 0.0
            base: Place = ("models", label, "overall")
            shade = f"background: rgba(0, 114, 178, {0.04 + 0.86 * share:.3f}); color: {_on_shade(share)}"
            percent = figure(document, (*base, "confusion_share", number, column), "percent")
            count = figure(document, (*base, "confusion", number, column), "count")
            cells.append(f'<td style="{shade}">{percent}<br>{small(count)}</td>')
        rows.append(f"<tr><th>{html.escape(name)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    return (
        f"<figure><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f"<figcaption>{model_name(document, label)}: predicted class by column; pixels below</figcaption></figure>"
    )


def _on_shade(share: float) -> str:
    return "#fff" if share > 0.55 else "#1c2330"


# ---- speed and memory


def _speed(document: Document) -> str:
    head = ["model", "p50 ms", "p90 ms", "p99 ms", "min ms", "max ms", "MAD ms", "outliers", "spread of blocks"]
    head += ["end to end p50 ms", "load ms", "first inference ms", "warm-up runs"]
    rows = [_timing(document, label) for label in document["models"]]
    shown = [
        chart(charts.latencies(document), "Every call is a point; box: the middle half, line: the median."),
        chart(charts.drift(document), "What moves all models at once is the machine, not a model."),
    ]
    if next(iter(document["models"].values()))["by_threads"]:
        caption = "Calls one after the other, each using that many threads. Bars: the slowest and the fastest call."
        shown.append(chart(charts.throughput(document), caption))
    threads = next(iter(document["models"].values()))["threads"]
    calls = ("models", document["reference"], "latency_ms", "n")
    return (
        f'<p class="soft">{figure(document, calls, "count")} timed calls of each model, {threads} thread(s), '
        "batch of one.</p>"
        f'{figures_table(head, rows)}<div class="pair">{"".join(shown)}</div>'
    )


def _timing(document: Document, label: str) -> list[str]:
    base: Place = ("models", label)
    warm = look_up(document, (*base, "warm_up", "steady"))
    latency = [figure(document, (*base, "latency_ms", key), "ms") for key in ("p50", "p90", "p99", "min", "max", "mad")]
    return [
        model_name(document, label),
        *latency,
        figure(document, (*base, "latency_ms", "outliers"), "count"),
        figure(document, (*base, "block_spread"), "percent"),
        figure(document, (*base, "end_to_end_ms", "p50"), "ms"),
        figure(document, (*base, "cold_start_ms", "load"), "ms"),
        figure(document, (*base, "cold_start_ms", "first_inference"), "ms"),
        figure(document, (*base, "warm_up", "runs"), "count") + ("" if warm else " (not steady)"),
    ]


def _memory(document: Document) -> str:
    shown = {
        "Size of the file": charts.bars(document, ("size_bytes",), "megabytes", "Size", "MB"),
        "Peak memory of the model": charts.bars(document, ("model_memory_bytes",), "megabytes", "Memory", "MB"),
    }
    return f'<div class="pair">{"".join(chart(svg, caption) for caption, svg in shown.items())}</div>'


# ---- how it was measured


def _method(document: Document) -> str:
    machine = dict(document["environment"])
    packages = machine.pop("versions")
    files = {label: model["path"] for label, model in document["models"].items()}
    seconds = {f"{what}, seconds": f"{value:.1f}" for what, value in document["duration_s"].items()}
    providers = {f"{label}, provider": model["provider"] for label, model in document["models"].items()}
    command = f"<h3>Command</h3><pre><code>{html.escape(document['command'])}</code></pre>"
    return (
        f"{command if document['command'] else ''}"
        f"<h3>Models</h3>{facts(files | providers)}<h3>Terms</h3>{facts(TERMS)}"
        f'<div class="pair"><div><h3>Machine</h3>{facts(machine)}<h3>Versions</h3>{facts(packages)}</div>'
        f"<div><h3>Settings</h3>{facts(document['settings'])}<h3>Duration</h3>{facts(seconds)}</div></div>"
    )
