"""Pieces of the page that several of its sections use: tables, the models' names, ranges, charts with captions."""

import html
from collections.abc import Mapping, Sequence

from common.benchmark.results import Document
from common.report.charts import colour
from common.report.figures import Place, figure, look_up


def facts(facts: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def model_style(document: Document, label: str) -> str:
    return f'style="--model: {colour(list(document["models"]).index(label))}"'


def model_name(document: Document, label: str) -> str:
    return f'<span {model_style(document, label)}><span class="swatch"></span>{html.escape(label)}</span>'


def left(text: str) -> str:
    return f'<span class="left">{text}</span>'


def small(text: str) -> str:
    return f'<span class="small">{text}</span>'


def tag(result: str) -> str:
    return f'<span class="tag {html.escape(result.split()[0])}">{html.escape(result)}</span>'


def with_range(document: Document, place: Place, bounds: Place) -> str:
    return f"{figure(document, place, 'score')}<br>{value_range(document, bounds, 'score')}"


def with_interval(document: Document, place: Place, form: str) -> str:
    """A figure of {value, low, high} with its range below, if it has one."""
    value = figure(document, (*place, "value"), form)
    if look_up(document, (*place, "low")) is None:
        return value
    return f"{value}<br>{value_range(document, place, form, ('low', 'high'))}"


def value_range(document: Document, bounds: Place, form: str, ends: tuple[str | int, str | int] = (0, 1)) -> str:
    if look_up(document, (*bounds, ends[0])) is None:
        return '<span class="range">&ndash;</span>'
    low, high = (figure(document, (*bounds, end), form) for end in ends)
    return f'<span class="range">{low} to {high}</span>'


def chart(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def figures_table(head: Sequence[str], rows: Sequence[Sequence[str]], starts: Sequence[bool] = ()) -> str:
    """A table of cells that are HTML already; `starts` marks rows with a line above."""
    sides = [" class=left" if rows and _is_left(cell) else "" for cell in rows[0]]
    names = "".join(f"<th{side}>{html.escape(name)}</th>" for name, side in zip(head, sides, strict=True))
    body = []
    for number, row in enumerate(rows):
        kind = ' class="first"' if number < len(starts) and starts[number] and number else ""
        cells = "".join(f"<td{' class=left' if _is_left(cell) else ''}>{cell}</td>" for cell in row)
        body.append(f"<tr{kind}>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _is_left(cell: str) -> bool:
    return cell.startswith('<span class="left">')
