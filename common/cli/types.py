"""Argument types: from the text of a flag to a checked value, or one line that says what is wanted."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST_INT = 2**31 - 1  # what the libraries below take for a count or a seed
MOST_THREADS = 1024  # a runtime starts as many as it is told to


def named_path(text: str) -> tuple[str, Path]:
    """An argparse type: "NAME=PATH" -> (name, path)."""
    name, _, path = text.partition("=")
    if not name.strip() or not path or not name.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH such as INT8=model.onnx")
    return name.strip(), Path(path)


def figure_limit(text: str) -> tuple[str, float]:
    """An argparse type: "abs_rel=0.02" -> ("abs_rel", 0.02), a figure of a score and a number, 0 or more."""
    name, _, value = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIGURE=X such as abs_rel=0.02")
    return name, non_negative_float(value)


def positive_int(text: str) -> int:
    """An argparse type: 1, 2, 3, ... LARGEST_INT."""
    return _checked(int, text, lambda value: 0 < value <= LARGEST_INT, f"a whole number from 1 to {LARGEST_INT}")


def positive_int_or_auto(text: str) -> int | str:
    """An argparse type: 1, 2, 3, ... LARGEST_INT, or auto."""
    if text == "auto":
        return text
    return _checked(
        int, text, lambda value: 0 < value <= LARGEST_INT, f"a whole number from 1 to {LARGEST_INT}, or auto"
    )


def non_negative_int(text: str) -> int:
    """An argparse type: 0, 1, 2, ... LARGEST_INT."""
    return _checked(int, text, lambda value: 0 <= value <= LARGEST_INT, f"a whole number from 0 to {LARGEST_INT}")


def thread_count(text: str) -> int:
    """An argparse type: 1, 2, 3, ... MOST_THREADS."""
    return _checked(int, text, lambda value: 0 < value <= MOST_THREADS, f"a whole number from 1 to {MOST_THREADS}")


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    return _checked(float, text, lambda value: 0 < value < float("inf"), "a number above 0")


def non_negative_float(text: str) -> float:
    """An argparse type: a finite number, 0 or more."""
    return _checked(float, text, lambda value: 0 <= value < float("inf"), "a number, 0 or more")


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    return _checked(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def decay(text: str) -> float:
    """An argparse type: a number from 0 up to, but not including, 1."""
    return _checked(float, text, lambda value: 0 <= value < 1, "a number, 0 or more and below 1")


def height_width(text: str) -> tuple[int, int]:
    """An argparse type: "320,640" -> (320, 640)."""
    try:
        height, width = (int(part) for part in text.split(","))
    except ValueError:
        height = width = 0
    if height <= 0 or width <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHT,WIDTH such as 320,640")
    return height, width


def _checked(convert: Callable[[str], Any], text: str, accept: Callable[[Any], bool], wanted: str) -> Any:
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not accept(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value
