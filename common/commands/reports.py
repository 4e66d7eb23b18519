"""What both benchmarks measure, write and say."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.benchmark.float_choice import FloatChoice
from common.benchmark.gate import Gate, has_failed
from common.benchmark.results import Document
from common.benchmark.run import benchmark, benchmark_outputs
from common.benchmark.sensitivity import Sensitivity
from common.benchmark.settings import CommandLine
from common.cli.benchmark import benchmark_settings
from common.cli.flags import plain_arguments
from common.cli.main import EXIT_GATE
from common.data.pairs import BadSample, Sample
from common.data.shots import Shot
from common.networks.image_inputs import ImageInputs
from common.report.float_choice import float_tables
from common.report.sensitivity import sensitivity_tables
from common.report.text import accuracy_table, agreement_table, gate_tables, score_table, summary_table
from common.report.writer import write_output_report, write_report
from common.runtimes.candidates import Candidate
from common.scoring.figures import Score
from models import Network


def run_benchmark(
    args: argparse.Namespace,
    folder: Path,
    title: str,
    candidates: Mapping[str, Candidate],
    samples: Sequence[Sample],
    network: Network,
    gate: Gate,
    *,
    notes: Sequence[str] = (),
    bad: Sequence[BadSample] = (),
    sensitivity: Sensitivity | None = None,
    choice: FloatChoice | None = None,
    save_outputs: bool = False,
) -> Document:
    """`benchmark`, with its report in `folder` and its tables printed; `save_outputs`: pictures as files, too."""
    settings, asked = benchmark_settings(args), CommandLine(shlex.join(sys.argv), plain_arguments(args))
    document, measurement = benchmark(
        title,
        candidates,
        samples,
        network,
        settings,
        gate,
        notes=notes,
        bad=bad,
        sensitivity=sensitivity,
        choice=choice,
        asked=asked,
    )
    pictures = write_report(folder, document, measurement, args.visualizations_per_dataset, save_outputs)
    _print_tables(document, accuracy_table(document))
    tables = ["models.csv", "datasets.csv", "images.csv", *["blocks.csv", "layers.csv"] * bool(sensitivity)]
    _print_files(folder, tables, len(pictures))
    return document


def run_output_benchmark(
    args: argparse.Namespace,
    folder: Path,
    title: str,
    candidates: Mapping[str, Candidate],
    shots: Sequence[Shot],
    inputs: ImageInputs,
    network: Network,
    gate: Gate,
    *,
    score: Score | None = None,
    notes: Sequence[str] = (),
    bad: Sequence[BadSample] = (),
    choice: FloatChoice | None = None,
    save_outputs: bool = False,
) -> Document:
    """`benchmark_outputs`, with its report in `folder` and its tables printed."""
    settings, asked = benchmark_settings(args), CommandLine(shlex.join(sys.argv), plain_arguments(args))
    document, measurement = benchmark_outputs(
        title,
        candidates,
        shots,
        inputs,
        network,
        settings,
        gate,
        score=score,
        pictures=args.visualizations_per_dataset,
        notes=notes,
        bad=bad,
        choice=choice,
        asked=asked,
    )
    pictures = write_output_report(folder, document, measurement, save_outputs)
    _print_tables(document, "\n\n".join([*([score_table(document)] if score else []), agreement_table(document)]))
    _print_files(folder, ["models.csv", *["datasets.csv"] * bool(score), "images.csv"], len(pictures))
    return document


def _print_tables(document: Document, accuracy: str) -> None:
    print(accuracy, summary_table(document), sep="\n\n")
    for difference in document["differences"].values():
        print(difference["verdict"])
    for note in document["notes"]:
        if "nearly constant" in note:
            print(note)
    if "auto_float" in document:
        print("", float_tables(document["auto_float"]), sep="\n")
    if "sensitivity" in document:
        print("", sensitivity_tables(document), sep="\n")
    if tables := gate_tables(document):
        print(tables)


def _print_files(folder: Path, tables: Sequence[str], pictures: int) -> None:
    count = [f"{pictures} pictures"] if pictures else []
    print(f"wrote {', '.join([str(folder / 'report.html'), 'report.md', 'results.json', *tables, *count])}")


def leave_by_gate(document: Document) -> None:
    """Leave the process with exit code 3 where a limit or a baseline was given and not everything passed."""
    if "decision" in document:
        print(document["decision"]["sentence"], file=sys.stderr if has_failed(document) else sys.stdout)
    if has_failed(document):
        sys.exit(EXIT_GATE)
