"""Errors of code that a user brought, in one line: what it says, and where in the user's files that was."""

import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

OURS = Path(__file__).resolve().parents[1]  # common/
PACKAGES = Path(torch.__file__).parents[1]
LIBRARIES = (
    *(f"{PACKAGES / name}/" for name in ("torch", "torchao", "onnxscript", "executorch")),
    *(f"{OURS}/", "<"),
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LONGEST_LINE = 100
FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)')


def one_line(error: BaseException) -> str:
    """An error of a user's code: its kind, its first line, and the line of the user's file that raised it.

    Of an error that was made of another, as exporters do, the first counts.
    """
    place = next((found for each in _chain(error) if (found := _place(each))), "")
    while error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {_first_line(error)}{f' ({place})' if place else ''}"


def line_of(stack_trace: str) -> str:
    """`file:line: text` of the innermost frame of a user in a printed trace, as graphs keep it; "" without one."""
    frames = [frame for frame in FRAME.findall(stack_trace) if _is_users(frame[0])]
    return _named(*frames[-1]) if frames else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error that came first, then what was made of it."""
    seen = [error]
    while (cause := seen[-1].__cause__ or seen[-1].__context__) and cause not in seen:
        seen.append(cause)
    return reversed(seen)


def _place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return _named(frames[-1].filename, frames[-1].lineno, frames[-1].line) if frames else line_of(str(error))


def _is_users(file: str) -> bool:
    return not file.startswith(LIBRARIES) and Path(file).resolve() != Path(sys.argv[0]).resolve()


def _named(file: str, line: object, text: str | None) -> str:
    return f"{file}:{line}: {(text or '').strip():.{LONGEST_LINE}}".removesuffix(": ")


def _first_line(error: BaseException) -> str:
    lines = COLOUR.sub("", str(error)).strip().splitlines()
    return lines[0].strip() if lines else ""
