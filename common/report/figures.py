"""Figures of the results document in a page: each carries its place in the document, so that it can be checked."""

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from common.benchmark.results import Document

Place = Sequence[str | int]  # keys and indices from the top of the document

# name -> how a figure is written; None is a dash everywhere
FORMATS: dict[str, Callable[[float], str]] = {
    "score": lambda value: f"{value:.4f}",
    "signed": lambda value: f"{value:+.4f}",
    "percent": lambda value: f"{100 * value:.2f} %",
    "ms": lambda value: f"{value:.2f}",
    "rate": lambda value: f"{value:.2f}",
    "times": lambda value: f"{value:.2f}\N{MULTIPLICATION SIGN}",
    "megabytes": lambda value: f"{value / 1e6:.2f}",
    "decibels": lambda value: f"{value:.1f}",
    "gain": lambda value: f"{value:+.2f}",
    "count": lambda value: f"{value:,}",
    "short": lambda value: f"{value:.3g}",
    "plain": str,
}


def look_up(document: Document, place: Place) -> Any:
    """The value at a place of the document.

    Raises:
        KeyError, IndexError: there is no such place.
    """
    value: Any = document
    for key in place:
        value = value[key]
    return value


def pointer(place: Place) -> str:
    """The place as a JSON pointer (RFC 6901): /models/ONNX INT8/size_bytes."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in place)


def written(value: float | None, form: str) -> str:
    """A value in one of FORMATS."""
    return "\N{EN DASH}" if value is None else FORMATS[form](value)


def figure(document: Document, place: Place, form: str) -> Markup:
    """A `data` element: the rounded figure to read, the exact one and its place as attributes."""
    return Markup("<data {}>{}</data>").format(attributes(document, place), written(look_up(document, place), form))


def attributes(document: Document, place: Place) -> Markup:
    """`value` and `data-place` for an element that shows the figure at that place, of HTML or SVG."""
    value = "" if (found := look_up(document, place)) is None else found
    return Markup('value="{}" data-place="{}"').format(value, pointer(place))
