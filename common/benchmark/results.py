"""The results document of the benchmarks: one record per model, their differences from the first, and the machine.

Every report is made from this document alone. Its keys are described in docs/results.md.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from common import STARTED
from common.benchmark.differences import difference
from common.benchmark.measure import Measurement, Timed, all_runs
from common.benchmark.records import model_result
from common.benchmark.sensitivity import Sensitivity
from common.benchmark.settings import BenchmarkSettings, CommandLine
from common.system.environment import environment
from common.system.settings import flat

SCHEMA = 3
Document = dict[str, Any]  # results.json in memory


def results_document(
    title: str,
    measurement: Measurement,
    settings: BenchmarkSettings,
    notes: Sequence[str] = (),
    sensitivity: Sensitivity | None = None,
    asked: CommandLine | None = None,
) -> Document:
    """The whole of results.json, as JSON takes it; the first model is the reference of all differences."""
    labels, seed, asked = list(measurement.candidates), settings.seed, asked or CommandLine()
    models = {label: model_result(label, measurement, settings.threads, seed) for label in labels}
    reference, *others = labels
    return {
        **heading(title, measurement, settings, notes, asked),
        "classes": dict(zip(measurement.classes.names, map(list, measurement.classes.colours), strict=True)),
        "reference": reference,
        "models": {label: plain(asdict(result)) for label, result in models.items()},
        "differences": {
            label: plain(asdict(difference(reference, label, models, measurement, seed))) for label in others
        },
        **({"sensitivity": plain(asdict(sensitivity))} if sensitivity else {}),
        "environment": environment(),
    }


def heading(
    title: str, measurement: Timed, settings: BenchmarkSettings, notes: Sequence[str], asked: CommandLine
) -> Document:
    """What every document begins with."""
    return {
        "schema": SCHEMA,
        "title": title,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": asked.command,
        "settings": plain({**asked.flags, **flat(settings)}),
        "notes": list(notes),
        "duration_s": _durations(measurement),
        "images": [{"dataset": sample.dataset, "image": sample.image.name} for sample in measurement.samples],
    }


def _durations(measurement: Timed) -> dict[str, float]:
    """Seconds of the process so far, and how many of them went into timed inference and preparing images."""
    times = (sum(all_runs(recording.seconds)) for recording in measurement.recordings.values())
    total = time.perf_counter() - STARTED
    return {"total": total, "inference": sum(times), "preparation": measurement.preparation_seconds}


def plain(value: object) -> object:
    """The same for JSON: tuples become lists, paths strings, and a figure that is not defined (nan) null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and math.isnan(value) else value
