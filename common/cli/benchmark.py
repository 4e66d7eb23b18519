"""The flags that both benchmark scripts have, and the settings that these make."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.benchmark.settings import GATE_BY, BenchmarkSettings, GateSettings
from common.cli.types import (
    figure_limit,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    thread_count,
)
from common.scoring.percentiles import CALLS_FOR_P99
from common.system.settings import from_flat

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
