"""What both benchmark scripts do with models and images: measure, write the report, print it."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.bad_samples import as_records, report_bad
from common.candidates import Candidate
from common.cli import EXIT_GATE, plain_arguments
from common.datasets import Sample
from common.gate import (
    check_limits,
    compare_with_baseline,
    gate_tables,
    gated_models,
    has_failed,
    limits_of,
    read_baseline,
)
from common.measure import measure, measure_memory, measure_threads
from common.pairs import BadSample
from common.report import accuracy_table, summary_table
from common.report_files import write_report
from common.report_sensitivity import sensitivity_tables
from common.results import Document, results_document
from common.sensitivity import Sensitivity

logger = logging.getLogger(__name__)


def benchmark(
    title: str,
    candidates: Mapping[str, Candidate],
    samples: Sequence[Sample],
    folder: Path,
    args: argparse.Namespace,
    notes: Sequence[str] = (),
    bad: Sequence[BadSample] = (),
    sensitivity: Sensitivity | None = None,
) -> Document:
    """Measure all candidates on `samples`, write the report into `folder` and print its tables.

    The first candidate is the reference, `check_gate` has passed; `bad` lists what was left out of the samples. `args`
    holds the flags of `add_benchmark_arguments`, and `save_outputs` where a script has it.
    """
    limits, baseline = limits_of(args), read_baseline(args.baseline) if args.baseline else None
    gated = gated_models(args.gate_models, list(candidates), limits)
    for label, candidate in candidates.items():
        logger.info("%s: %s (%s)", label, candidate.path, candidate.precision)
    measurement = measure(candidates, samples, args.warmup_runs, args.threads, args.workers)
    measurement.memory = measure_memory(candidates, args.threads)
    if args.thread_counts:
        measurement.by_threads = measure_threads(candidates, samples[0], args.thread_counts)
    document = results_document(
        title, measurement, plain_arguments(args), args.threads, args.seed, [*notes, *report_bad(bad)], sensitivity
    )
    document["skipped"] = as_records(bad)
    if limits:
        document["gate"] = check_limits(document, limits, gated)
    if baseline:
        rows = compare_with_baseline(document, baseline, args.seed)
        document["baseline"] = {"path": str(args.baseline), "created": baseline["created"], "rows": rows}
    pictures = write_report(
        folder, document, measurement, args.visualizations_per_dataset, getattr(args, "save_outputs", False)
    )
    print(accuracy_table(document), summary_table(document), sep="\n\n")
    for difference in document["differences"].values():
        print(difference["verdict"])
    if sensitivity:
        print("", sensitivity_tables(document), sep="\n")
    if tables := gate_tables(document):
        print(tables)
    count = f", {len(pictures)} pictures" if pictures else ""
    tables = "models.csv, images.csv" + ", blocks.csv and layers.csv" * bool(sensitivity)
    print(f"wrote {folder / 'report.html'}, report.md, results.json, {tables}{count}")
    return document


def leave_by_gate(document: Document) -> None:
    """Leave the process with exit code 3 where a limit is missed or a figure is worse than the baseline's."""
    if has_failed(document):
        print("error: a limit is missed, or a figure is worse than the baseline's; see the table", file=sys.stderr)
        sys.exit(EXIT_GATE)
