"""The results of a benchmark, as a table and as CSV with the machine and the settings that they were measured with."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.cli.types import positive_int
from common.report.text import table
from common.system.csv_text import csv_text
from common.system.environment import environment
from common.system.files import write_text


def write_csv(path: Path, rows: Sequence, settings: Mapping[str, object]) -> None:
    """Write dataclass instances of one kind, each followed by `settings`, the machine and the versions."""
    machine = environment()
    versions = machine.pop("versions")
    write_text(path, csv_text([{**asdict(row), **settings, **machine, **versions} for row in rows]))


def add_file_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """The flags of a benchmark that times ONNX files, on one thread where none is named."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.onnx", help=what)
    parser.add_argument("--runs", type=positive_int, default=15, help="timed runs of each")
    parser.add_argument("--csv", type=Path, help="also write the table, with the machine, as CSV")
    parser.set_defaults(threads=1)


def tell(rows: Sequence[Any], headings: Mapping[str, str], note: str, args: argparse.Namespace) -> None:
    """Print rows, dataclasses, and write them where `--csv` asks for it; `headings` names what is shown."""
    print(table([{shown: told(getattr(row, name)) for name, shown in headings.items()} for row in rows]))
    print(f"{args.runs} runs, threads: {args.threads}; {note}")
    if args.csv:
        write_csv(args.csv, rows, {"threads": args.threads, "runs": args.runs})


def cells(row: Any, digits: int) -> dict[str, str]:
    """All fields of a dataclass as a table shows them."""
    return {name: told(value, digits) for name, value in asdict(row).items()}


def told(value: object, digits: int = 3) -> str:
    """A value as a table shows it: numbers that are not whole with so many digits, nothing for None."""
    return f"{value:.{digits}f}" if isinstance(value, float) else "" if value is None else str(value)
