"""The report's charts as inline SVG, drawn by hand from the results document: no script, no fonts, crisp in print."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from common.benchmark.results import Document
from common.report.figures import Place, attributes, look_up, written

# of the models, in their order; Okabe and Ito's, which people with any colour vision tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5f5f5f")
WIDTH = 560
LEFT, RIGHT, TOP, BOTTOM = 132, 24, 14, 44  # margins: labels on the left, the axis below
SMALL_CHANGE = 1e-3  # of IoU; a chart of differences shows at least this much to either side
LONGEST_NAME = 18  # letters that the margin holds
LONG_LEFT, LONG_ROW = 176, 20  # margin and row of a chart of modules, whose names are long
ROW = 34  # height of a row of a chart with one row a model
SVG_ROOT = '<svg xmlns="http://www.w3.org/2000/svg"'


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Round values within the range."""
        values = MaxNLocator(count, steps=(1, 2, 2.5, 5, 10)).tick_values(self.low, self.high)
        return [float(value) for value in values if self.low <= value <= self.high]


def axis(values: Sequence[float], start: float, end: float, *, zero: bool = False, margin: float = 0.06) -> Axis:
    """A scale that holds all values with some air, and 0 where asked for."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    if low == high:  # one value alone, or all the same
        return Axis(low - (abs(low) or 1e-3) / 2, high + (abs(high) or 1e-3) / 2, start, end)
    span = high - low
    below = 0 if zero and low == 0 else margin * span
    above = 0 if zero and high == 0 else margin * span
    return Axis(low - below, high + above, start, end)


def colour(index: int) -> str:
    """The colour of the model at that position."""
    return COLOURS[index % len(COLOURS)]


def accuracy_against_latency(document: Document) -> str:
    """A point for each model: p50 latency, mIoU with its interval."""
    models = document["models"]
    points = [(model["latency_ms"]["p50"], model["overall"]["miou"]) for model in models.values()]
    bounds = [bound for model in models.values() for bound in model["overall"]["miou_interval"] if bound is not None]
    height = 300
    x = axis([point[0] for point in points], LEFT - 74, WIDTH - 124, zero=True)
    y = axis([*(point[1] for point in points), *bounds], height - BOTTOM, TOP, margin=0.15)
    body = [_x_axis(x, height, "p50 latency, ms (left is faster)"), _y_axis(y, x, "mIoU (up is better)")]
    labels: list[tuple[float, float]] = []
    for index, (label, model) in enumerate(models.items()):
        at, low_high = (x(points[index][0]), y(points[index][1])), model["overall"]["miou_interval"]
        if low_high[0] is not None:
            body.append(_line(at[0], y(low_high[0]), at[0], y(low_high[1]), colour(index), 2))
        place = ("models", label, "overall", "miou")
        body.append(_dot(document, place, *at, colour(index), f"{label}: {points[index][0]:.2f} ms", 6))
        near = [top for left, top in labels if abs(left - at[0]) < 120]
        labels.append((at[0], _apart(at[1], near)))
        body.append(_text(at[0] + 11, labels[-1][1] + 4, label, weight=600, fill=colour(index)))
    return _svg(height, "Accuracy against latency", body)


def differences(document: Document, label: str) -> str:
    """Paired differences of IoU from the reference with their intervals: together, by dataset, by class."""
    base: Place = ("differences", label)
    rows = [("together", (*base, "miou"))]
    rows += [(name, (*base, "datasets", name, "miou")) for name in document["differences"][label]["datasets"]]
    rows += [(f"class {name}", (*base, "iou", name)) for name in document["differences"][label]["iou"]]
    rows = [(name, place) for name, place in rows if look_up(document, place)["value"] is not None]
    found = [look_up(document, place) for _, place in rows]
    shown = [v for one in found for v in one.values() if v is not None]
    x = axis([*shown, -SMALL_CHANGE, SMALL_CHANGE], LEFT, WIDTH - RIGHT)
    height = TOP + 26 * len(rows) + BOTTOM
    index = list(document["models"]).index(label)
    body = [_x_axis(x, height, "IoU minus the reference's (right is better)"), _zero(x, height)]
    for number, ((name, place), one) in enumerate(zip(rows, found, strict=True)):
        middle = TOP + 26 * number + 13
        body.append(_text(LEFT - 10, middle + 4, name, anchor="end", weight=600 if number == 0 else 400))
        if one["low"] is not None:
            body.append(_line(x(one["low"]), middle, x(one["high"]), middle, colour(index), 3))
        body.append(_dot(document, (*place, "value"), x(one["value"]), middle, colour(index), name, 5))
    return _svg(height, f"Differences of {label}", body)


def latencies(document: Document) -> str:
    """Every timed call of every model, with the middle half as a box and the median as a line; nothing is dropped."""
    models = document["models"]
    calls = {
        label: {(i, j): ms for i, runs in enumerate(model["per_image"]["latency_ms"]) for j, ms in enumerate(runs)}
        for label, model in models.items()
    }
    x = axis([ms for one in calls.values() for ms in one.values()], LEFT, WIDTH - RIGHT, zero=True)
    height = TOP + ROW * len(models) + BOTTOM
    body = [_x_axis(x, height, "latency of one image, ms")]
    for index, (label, model) in enumerate(models.items()):
        middle = TOP + ROW * index + ROW / 2
        values = sorted(calls[label].values())
        low, high = values[len(values) // 4], values[(3 * len(values)) // 4]
        box = f'<rect x="{x(low):.1f}" y="{middle - 9}" width="{max(1.0, x(high) - x(low)):.1f}" height="18" rx="3"'
        body.append(f'{box} fill="{colour(index)}" fill-opacity="0.22"/>')
        for number, ((image, run), value) in enumerate(calls[label].items()):
            jitter = (number * 7) % 13 - 6  # spreads the points without a random number
            place = ("models", label, "per_image", "latency_ms", image, run)
            body.append(_dot(document, place, x(value), middle + jitter, colour(index), _image(document, image), 1.8))
        median = x(model["latency_ms"]["p50"])
        body.append(_line(median, middle - 11, median, middle + 11, colour(index), 2.5))
        body.append(_text(LEFT - 10, middle + 4, label, anchor="end", weight=600))
    return _svg(height, "Distribution of the latency", body)


def drift(document: Document) -> str:
    """The median latency of each block of images in the order of time: what moves all models is the machine."""
    models = document["models"]
    height, longest = 240, max(len(model["block_medians_ms"]) for model in models.values())
    x = Axis(1, max(2, longest), LEFT - 74, WIDTH - 124)
    y = axis([v for model in models.values() for v in model["block_medians_ms"]], height - BOTTOM, TOP, zero=True)
    body = [_x_axis(x, height, "block of images, in the order of time"), _y_axis(y, x, "median, ms")]
    ends: list[float] = []
    for index, (label, model) in enumerate(models.items()):
        medians = model["block_medians_ms"]
        body.append(_path([(x(n + 1), y(value)) for n, value in enumerate(medians)], colour(index)))
        for number, value in enumerate(medians):
            place = ("models", label, "block_medians_ms", number)
            body.append(
                _dot(document, place, x(number + 1), y(value), colour(index), f"{label}, block {number + 1}", 3)
            )
        ends.append(_apart(y(medians[-1]), ends))
        body.append(_text(x(len(medians)) + 12, ends[-1] + 4, label, weight=600, fill=colour(index)))
    return _svg(height, "Drift while measuring", body)


def throughput(document: Document) -> str:
    """Images per second against the number of threads, where that was measured; bars: the slowest and fastest call."""
    models = document["models"]
    counts = [int(count) for count in next(iter(models.values()))["by_threads"]]
    height = 240
    x = axis(counts, LEFT - 74, WIDTH - 124, margin=0.02)
    calls = [by["latency_ms"] for model in models.values() for by in model["by_threads"].values()]
    y = axis([1000 / one[end] for one in calls for end in ("min", "max")], height - BOTTOM, TOP, zero=True)
    body = [_x_axis(x, height, "threads", counts), _y_axis(y, x, "images/s")]
    ends: list[float] = []
    for index, (label, model) in enumerate(models.items()):
        points = [(x(int(count)), y(by["per_second"])) for count, by in model["by_threads"].items()]
        body.append(_path(points, colour(index)))
        for (left, top), (count, by) in zip(points, model["by_threads"].items(), strict=True):
            slowest, fastest = (y(1000 / by["latency_ms"][end]) for end in ("max", "min"))
            body.append(_line(left, slowest, left, fastest, colour(index), 1.5))
            place = ("models", label, "by_threads", count, "per_second")
            body.append(_dot(document, place, left, top, colour(index), f"{label}, {count} threads", 4))
        ends.append(_apart(points[-1][1], ends))
        body.append(_text(points[-1][0] + 12, ends[-1] + 4, label, weight=600, fill=colour(index)))
    return _svg(height, "Throughput against threads", body)


def bars(document: Document, key: Sequence[str], form: str, title: str, unit: str) -> str:
    """One bar a model of the figure at `key` of its record."""
    labels = list(document["models"])
    values = [look_up(document, ("models", label, *key)) for label in labels]
    x = axis([0, *values], LEFT, WIDTH - RIGHT - 70, zero=True, margin=0)
    height = TOP + ROW * len(labels)
    body = []
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle, place = TOP + ROW * index + ROW / 2, ("models", label, *key)
        width = f'width="{max(1.0, x(value) - LEFT):.1f}"'
        body.append(f'<rect x="{LEFT}" y="{middle - 9}" {width} height="18" rx="3" fill="{colour(index)}"/>')
        body.append(_text(LEFT - 10, middle + 4, label, anchor="end", weight=600))
        figure = html.escape(f"{written(value, form)} {unit}")
        body.append(f'<text x="{x(value) + 8:.1f}" y="{middle + 4}" {attributes(document, place)}>{figure}</text>')
    return _svg(height, title, body)


def block_gains(document: Document) -> str:
    """One bar for each block: what the logits gain when it is left in float; the proposed ones in another colour."""
    sensitivity = document["sensitivity"]
    proposed = sensitivity["proposed"]["modules"] if sensitivity["proposed"] else []
    blocks = [(i, block) for i, block in enumerate(sensitivity["blocks"]) if block["gain_db"] is not None]
    x = axis([0, 0.1, *(block["gain_db"] for _, block in blocks)], LONG_LEFT, WIDTH - RIGHT - 40, zero=True)
    height = TOP + LONG_ROW * len(blocks) + BOTTOM
    body = [_x_axis(x, height, "gain of the logits' SQNR with this block in float, dB"), _zero(x, height)]
    for row, (index, block) in enumerate(blocks):
        middle, place = TOP + LONG_ROW * row + LONG_ROW / 2, ("sensitivity", "blocks", index, "gain_db")
        (name,), gain = block["modules"], block["gain_db"]
        left, width = x(min(0, gain)), abs(x(gain) - x(0))
        fill = colour(1 if name in proposed else 0)
        body.append(f'<rect x="{left:.1f}" y="{middle - 6}" width="{width:.1f}" height="12" rx="2" fill="{fill}"/>')
        body.append(_text(LONG_LEFT - 10, middle + 4, name, anchor="end", longest=28))
        figure = html.escape(written(gain, "gain"))
        body.append(
            f'<text x="{x(max(0, gain)) + 6:.1f}" y="{middle + 4}" {attributes(document, place)}>{figure}</text>'
        )
    return _svg(height, "Gain of each block in float", body)


def standalone(svg: str) -> str:
    """A chart as a file of its own, with what the page's style sheet says of charts."""
    style = "<style>text { font: 12px sans-serif } .grid { stroke: #dde1e8 }</style>"
    head, _, rest = svg.partition(">")
    return f"{head.replace('<svg', SVG_ROOT, 1)}>{style}{rest}\n"


def _apart(wanted: float, taken: Sequence[float], distance: float = 14) -> float:
    """The wanted position of a label, or the next one below that no other label is near to."""
    while any(abs(wanted - other) < distance for other in taken):
        wanted += distance / 2
    return wanted


def _image(document: Document, number: int) -> str:
    return "{dataset}, {image}".format(**document["images"][number])


def _svg(height: float, title: str, body: Sequence[str]) -> str:
    name = html.escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{name}">{"".join(body)}</svg>'


def _dot(document: Document, place: Place, x: float, y: float, fill: str, title: str, radius: float) -> str:
    """A point that carries its figure; browsers show `title` when the pointer rests on it."""
    note = html.escape(f"{title}: {look_up(document, place):.4g}")
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" {attributes(document, place)}>'
    return f"{circle}<title>{note}</title></circle>"


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{stroke}" stroke-width="{width}" stroke-linecap="round"/>'


def _path(points: Sequence[tuple[float, float]], stroke: str) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{stroke}" stroke-width="2"/>'


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    weight: int = 400,
    fill: str = "#333",
    longest: int = LONGEST_NAME,
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}"'
    fits = len(text) <= longest or anchor == "middle"
    short = text if fits else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return f"<text {place}>{html.escape(short)}</text>"


def _x_axis(x: Axis, height: float, title: str, ticks: Sequence[float] | None = None) -> str:
    bottom, parts = height - BOTTOM, []
    values = x.ticks() if ticks is None else ticks
    for value, name in zip(values, _tick_names(values), strict=True):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" y1="{TOP}" x2="{x(value):.1f}" y2="{bottom}"/>')
        parts.append(_text(x(value), bottom + 16, name, anchor="middle", fill="#667"))
    parts.append(_text((x.start + x.end) / 2, bottom + 36, title, anchor="middle", fill="#667"))
    return "".join(parts)


def _y_axis(y: Axis, x: Axis, title: str) -> str:
    parts, values = [], y.ticks(5)
    for value, name in zip(values, _tick_names(values), strict=True):
        parts.append(f'<line class="grid" x1="{x.start}" y1="{y(value):.1f}" x2="{x.end}" y2="{y(value):.1f}"/>')
        parts.append(_text(x.start - 8, y(value) + 4, name, anchor="end", fill="#667"))
    middle = (y.start + y.end) / 2
    turned = f'x="14" y="{middle}" transform="rotate(-90 14 {middle})" text-anchor="middle" fill="#667"'
    return "".join([*parts, f"<text {turned}>{html.escape(title)}</text>"])


def _tick_names(values: Sequence[float]) -> list[str]:
    """With as many decimals as the smallest step needs, the same for all."""
    for decimals in range(7):
        if all(abs(round(value, decimals) - value) < 1e-9 for value in values):
            break
    return [f"{value:.{decimals}f}" for value in values]


def _zero(x: Axis, height: float) -> str:
    return f'<line x1="{x(0):.1f}" y1="{TOP}" x2="{x(0):.1f}" y2="{height - BOTTOM}" stroke="#333" stroke-width="1"/>'
