"""What both benchmark scripts do with models and images: measure, write the report, print it."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.benchmark.baseline import compare_with_baselines
from common.benchmark.gate import check_limits, decide, gated_models, has_failed, limits_of
from common.benchmark.measure import Measurement, measure, measure_memory, measure_threads
from common.benchmark.results import Document, results_document
from common.benchmark.sensitivity import Sensitivity
from common.cli.flags import plain_arguments
from common.cli.main import EXIT_GATE
from common.data.bad_samples import as_records, report_bad
from common.data.datasets import Sample
from common.data.pairs import BadSample
from common.report.sensitivity import sensitivity_tables
from common.report.text import accuracy_table, gate_tables, summary_table
from common.report.writer import write_report
from common.runtimes.candidates import Candidate

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
    baselines: Sequence[Document] = (),
) -> Document:
    """Measure all candidates on `samples`, write the report into `folder` and print its tables.

    The first candidate is the reference, `check_gate` has passed and given `baselines`; `bad` lists what was left out
    of the samples. `args` holds the flags of `add_benchmark_arguments`, and `save_outputs` where a script has it.
    """
    measurement = _measured(candidates, samples, args)
    document = results_document(
        title, measurement, plain_arguments(args), args.threads, args.seed, [*notes, *report_bad(bad)], sensitivity
    )
    document["skipped"] = as_records(bad)
    document |= _checked(document, baselines, args)
    pictures = write_report(
        folder, document, measurement, args.visualizations_per_dataset, getattr(args, "save_outputs", False)
    )
    _print_tables(document)
    count = f", {len(pictures)} pictures" if pictures else ""
    tables = "models.csv, datasets.csv, images.csv" + ", blocks.csv and layers.csv" * bool(sensitivity)
    print(f"wrote {folder / 'report.html'}, report.md, results.json, {tables}{count}")
    return document


def _measured(candidates: Mapping[str, Candidate], samples: Sequence[Sample], args: argparse.Namespace) -> Measurement:
    for label, candidate in candidates.items():
        logger.info("%s: %s (%s)", label, candidate.path, candidate.precision)
    measurement = measure(candidates, samples, args.warmup_runs, args.threads, args.workers, args.timed_runs)
    measurement.memory = measure_memory(candidates, args.threads)
    if args.thread_counts:
        measurement.by_threads = measure_threads(candidates, samples, args.thread_counts)
    return measurement


def _checked(document: Document, baselines: Sequence[Document], args: argparse.Namespace) -> Document:
    """The parts of the document that say what was checked, and what that comes to; empty where nothing was."""
    limits, parts = limits_of(args), {}
    if limits:
        gated = gated_models(args.gate_models, list(document["models"]), limits)
        parts["gate"] = check_limits(document, limits, gated, args.gate_by)
    if baselines:
        runs = [
            {"path": str(path), "created": baseline["created"]}
            for path, baseline in zip(args.baseline, baselines, strict=True)
        ]
        parts["baseline"] = {"runs": runs, "rows": compare_with_baselines(document, baselines, args.seed)}
    if parts:
        parts["decision"] = decide(parts.get("gate", ()), parts.get("baseline", {}).get("rows", ()))
    return parts


def _print_tables(document: Document) -> None:
    print(accuracy_table(document), summary_table(document), sep="\n\n")
    for difference in document["differences"].values():
        print(difference["verdict"])
    if "sensitivity" in document:
        print("", sensitivity_tables(document), sep="\n")
    if tables := gate_tables(document):
        print(tables)


def leave_by_gate(document: Document) -> None:
    """Leave the process with exit code 3 where a limit or a baseline was given and not everything passed."""
    if "decision" in document:
        print(document["decision"]["sentence"], file=sys.stderr if has_failed(document) else sys.stdout)
    if has_failed(document):
        sys.exit(EXIT_GATE)
