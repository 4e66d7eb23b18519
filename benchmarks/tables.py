"""The results of a benchmark as CSV: every row with the machine and the settings that it was measured with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from common.system.csv_text import csv_text
from common.system.environment import environment
from common.system.files import write_text


def write_csv(path: Path, rows: Sequence, settings: Mapping[str, object]) -> None:
    """Write dataclass instances of one kind, each followed by `settings`, the machine and the versions."""
    machine = environment()
    versions = machine.pop("versions")
    write_text(path, csv_text([{**asdict(row), **settings, **machine, **versions} for row in rows]))
