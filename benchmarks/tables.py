"""The results of a benchmark as CSV: every row with the machine and the settings that it was measured with."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from common.environment import environment
from common.files import write_text


def write_csv(path: Path, rows: Sequence, settings: Mapping[str, object]) -> None:
    """Write dataclass instances of one kind, each followed by `settings`, the machine and the versions."""
    machine = environment()
    records = [{**asdict(row), **settings, **machine, **machine["versions"]} for row in rows]
    text = io.StringIO()
    names = [name for name in records[0] if name != "versions"]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(path, text.getvalue())
