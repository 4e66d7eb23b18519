"""What both benchmark scripts share: their flags, the settings that flags make, and what they write and say."""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.benchmark.float_choice import FloatChoice
from common.benchmark.gate import Gate, has_failed
from common.benchmark.results import Document
from common.benchmark.run import benchmark, benchmark_outputs
from common.benchmark.sensitivity import Sensitivity
from common.benchmark.settings import GATE_BY, BenchmarkSettings, CommandLine, GateSettings
from common.cli.flags import plain_arguments
from common.cli.main import EXIT_GATE
from common.cli.types import (
    figure_limit,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    thread_count,
)
from common.data.pairs import BadSample, Sample
from common.data.shots import Shot
from common.networks.image_inputs import ImageInputs
from common.report.float_choice import float_tables
from common.report.sensitivity import sensitivity_tables
from common.report.text import accuracy_table, agreement_table, gate_tables, score_table, summary_table
from common.report.writer import write_output_report, write_report
from common.runtimes.candidates import Candidate
from common.scoring.figures import Score
from common.scoring.latency import CALLS_FOR_P99
from common.system.settings import from_flat
from models import Network

# field of GateLimits -> argument type and help of its flag
LIMITS: dict[str, tuple[Callable[[str], Any], str]] = {
    "max_miou_drop": (fraction, "largest loss of mIoU against the first model, for example 0.01"),
    "max_class_drop": (fraction, "largest loss of IoU of any class against the first model"),
    "min_speedup": (positive_float, "least speed against the first model: its p50 / this p50"),
    "max_size_ratio": (positive_float, "largest size against the first model's file"),
    "min_miou": (fraction, "least mIoU over all images"),
    "max_latency_p99_ms": (
        positive_float,
        f"largest 99th percentile of the latency, ms; takes {CALLS_FOR_P99} timed calls",
    ),
    "max_peak_memory_mb": (non_negative_float, "largest peak memory of a process with the model alone, MB"),
    "min_sqnr_db": (float, "least SQNR of every output against the first model's, dB; with --images"),
    "min_equal_pixels": (
        fraction,
        "least share of places of the same class in every output that tells classes apart; with --images",
    ),
    "max_score_loss": (
        figure_limit,
        "of labels that are no map of classes: how much a figure may be worse than the first model's; docs/results.md",
    ),
    "worst_score": (figure_limit, "of the same labels: the lowest that a figure may be, or an error the highest"),
}


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks measure on, and how."""
    parser.add_argument(
        "--num_samples_per_dataset", type=positive_int, default=20, help="validation images scored per dataset"
    )
    parser.add_argument(
        "--warmup_runs",
        type=non_negative_int,
        default=BenchmarkSettings.warmup_runs,
        help="least number of untimed runs; more follow while it gets faster; 0: none",
    )
    parser.add_argument(
        "--timed_runs",
        type=positive_int,
        default=BenchmarkSettings.timed_runs,
        help="timed runs of each model on each image",
    )
    parser.add_argument(
        "--visualizations_per_dataset", type=positive_int, default=2, help="pictures of each model per dataset"
    )
    parser.add_argument(
        "--thread_counts",
        nargs="+",
        type=thread_count,
        default=[],
        metavar="N",
        help="also measure the throughput with these numbers of threads",
    )
    parser.add_argument(
        "--pin",
        nargs="+",
        type=non_negative_int,
        metavar="CPU",
        help="keep the process on these processors (Linux); name as many as --threads",
    )


def add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each of LIMITS, and `--baseline`."""
    group = parser.add_argument_group("gate", "limits, with exit code 3 where one is missed")
    group.add_argument(
        "--gate_models",
        nargs="+",
        metavar="NAME",
        help="models that the limits hold for (default: all but the first, or the only one)",
    )
    group.add_argument(
        "--gate_by",
        choices=GATE_BY,
        default=GateSettings.gate_by,
        help="what has to keep a limit: the figure, or the worse end of its 95 %% interval where it has one",
    )
    for name, (kind, text) in LIMITS.items():
        if f"--{name}" not in parser._option_string_actions:  # a script's own flag of that name says more
            of_figures = kind is figure_limit
            metavar = "FIGURE=X" if of_figures else "X"
            group.add_argument(f"--{name}", type=kind, nargs="+" if of_figures else None, metavar=metavar, help=text)
    group.add_argument(
        "--baseline",
        nargs="+",
        type=Path,
        metavar="JSON",
        help="results.json of earlier runs; a regression beyond the noise fails, and what cannot be compared, too",
    )


def benchmark_settings(args: argparse.Namespace) -> BenchmarkSettings:
    """How the command line wants models measured."""
    return from_flat(BenchmarkSettings, vars(args))


def gate_settings(args: argparse.Namespace) -> GateSettings:
    """What the command line wants a run checked against."""
    return from_flat(GateSettings, vars(args))


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
