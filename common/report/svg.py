"""Marks of the charts: SVG that needs no script and no fonts, is crisp in print, and whose points carry their figures.

Drawn here and not by matplotlib: side by side they look alike, but in matplotlib's a point has neither its exact value
and place nor a note for the pointer, the file is two to five times as large, and its ids and references collide where a
page has several.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from common.benchmark.results import Document
from common.report.figures import Place, attributes, look_up, written

# of the models, in their order; Okabe and Ito's, which people with any colour vision tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5f5f5f")
INK, SOFT = "#333", "#667"
WIDTH = 560
LEFT, RIGHT, TOP, BOTTOM = 132, 24, 14, 44  # margins: labels on the left, the axis below
LONGEST_NAME = 18  # letters that the left margin holds
SVG_ROOT = '<svg xmlns="http://www.w3.org/2000/svg"'


def colour(index: int) -> str:
    """The colour of the model at that position."""
    return COLOURS[index % len(COLOURS)]


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


def svg(height: float, title: str, body: Iterable[Markup]) -> Markup:
    """A chart of marks."""
    head = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(WIDTH, height, title)
    return head + Markup("").join(body) + Markup("</svg>")


def standalone(chart: Markup) -> str:
    """A chart as a file of its own, with what the page's style sheet says of charts."""
    style = "<style>text { font: 12px sans-serif } .grid { stroke: #dde1e8 }</style>"
    head, _, rest = str(chart).partition(">")
    return f"{head.replace('<svg', SVG_ROOT, 1)}>{style}{rest}\n"


def dot(document: Document, place: Place, at: tuple[float, float], fill: str, title: str, radius: float) -> Markup:
    """A point that carries its figure; browsers show `title` when the pointer rests on it."""
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" fill="{}" {}><title>{}: {:.4g}</title></circle>').format(
        *at, radius, fill, attributes(document, place), title, look_up(document, place)
    )


def line(start: tuple[float, float], end: tuple[float, float], stroke: str, width: float) -> Markup:
    """A straight line."""
    return Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}" stroke-linecap="round"/>'
    ).format(*start, *end, stroke, width)


def path(points: Iterable[tuple[float, float]], stroke: str) -> Markup:
    """A line through points."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="2"/>').format(joined, stroke)


def bar(left: float, middle: float, width: float, height: float, fill: str, opacity: float = 1) -> Markup:
    """A horizontal bar around `middle`."""
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}" rx="3" fill="{}" fill-opacity="{}"/>').format(
        left, middle - height / 2, width, height, fill, opacity
    )


def figure_text(document: Document, place: Place, form: str, x: float, y: float, unit: str = "") -> Markup:
    """A figure to read."""
    text = f"{written(look_up(document, place), form)} {unit}".strip()
    return Markup('<text x="{:.1f}" y="{:.1f}" {}>{}</text>').format(x, y, attributes(document, place), text)


def text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    weight: int = 400,
    fill: str = INK,
    longest: int = LONGEST_NAME,
) -> Markup:
    """Words; too long ones are cut, unless they have the room of both sides."""
    fits = len(words) <= longest or anchor == "middle"
    short = words if fits else words[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" font-weight="{}" fill="{}">{}</text>').format(
        x, y, anchor, weight, fill, short
    )


def apart(wanted: float, taken: Sequence[float], distance: float = 14) -> float:
    """The wanted position of a label, or the next one below that no other label is near to."""
    while any(abs(wanted - other) < distance for other in taken):
        wanted += distance / 2
    return wanted


def x_axis(x: Axis, height: float, title: str, ticks: Sequence[float] | None = None) -> Markup:
    """Grid, numbers and title below a chart."""
    bottom, values = height - BOTTOM, x.ticks() if ticks is None else ticks
    marks = []
    for value, name in zip(values, _tick_names(values), strict=True):
        marks.append(_grid((x(value), TOP), (x(value), bottom)))
        marks.append(text(x(value), bottom + 16, name, anchor="middle", fill=SOFT))
    marks.append(text((x.start + x.end) / 2, bottom + 36, title, anchor="middle", fill=SOFT))
    return Markup("").join(marks)


def y_axis(y: Axis, x: Axis, title: str) -> Markup:
    """Grid, numbers and title beside a chart."""
    marks, values = [], y.ticks(5)
    for value, name in zip(values, _tick_names(values), strict=True):
        marks.append(_grid((x.start, y(value)), (x.end, y(value))))
        marks.append(text(x.start - 8, y(value) + 4, name, anchor="end", fill=SOFT))
    turned = Markup('<text x="14" y="{0}" transform="rotate(-90 14 {0})" text-anchor="middle" fill="{1}">{2}</text>')
    return Markup("").join([*marks, turned.format((y.start + y.end) / 2, SOFT, title)])


def zero_line(x: Axis, height: float) -> Markup:
    """Where nothing differs."""
    return line((x(0), TOP), (x(0), height - BOTTOM), INK, 1)


def _grid(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    ends = Markup('<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return ends.format(*start, *end)


def _tick_names(values: Sequence[float]) -> list[str]:
    """With as many decimals as the smallest step needs, the same for all."""
    for decimals in range(7):
        if all(abs(round(value, decimals) - value) < 1e-9 for value in values):
            break
    return [f"{value:.{decimals}f}" for value in values]
