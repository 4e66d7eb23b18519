"""What a benchmark measures and what its models have to keep, made once from flags or in Python; in results.json.

A field has the name of its flag. "The original's" is a default of the scripts that these replace; the others are this
toolkit's own choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from common.system.processors import physical_processors

GATE_BY = ("estimate", "bound")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r:.60}, wanted {wanted}")


@dataclass(frozen=True)
class BenchmarkSettings:
    """How models are measured.

    Raises:
        ValueError: a value that no benchmark can have; names the field.
    """

    threads: int = field(default_factory=physical_processors)  # of each runtime, on the CPU
    workers: int = 2  # threads that read masks while no clock runs
    seed: int = 0  # of the draws of the intervals
    warmup_runs: int = 3  # least number of untimed runs; more follow while it gets faster; 0: none; the original's
    timed_runs: int = 1  # of each model on each image; the original's
    thread_counts: tuple[int, ...] = ()  # numbers of threads with which the throughput is measured, too
    pin: tuple[int, ...] | None = None  # numbers of the processors that the process is kept on; None: any

    def __post_init__(self) -> None:
        for name in ("threads", "timed_runs"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "1 or more")
        for name in ("workers", "warmup_runs"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(all(count > 0 for count in self.thread_counts), "thread_counts", self.thread_counts, "1 or more each")


@dataclass(frozen=True)
class GateLimits:
    """Limits that a model has to keep, each None where there is none; "the first": the first model of the run."""

    max_miou_drop: float | None = None  # mIoU of the first minus the model's, 0 to 1
    max_class_drop: float | None = None  # IoU of the first minus the model's, of every class, 0 to 1
    min_speedup: float | None = None  # p50 of the first / the model's
    max_size_ratio: float | None = None  # bytes of the model's files / the first's
    min_miou: float | None = None  # over all images, 0 to 1
    max_latency_p99_ms: float | None = None  # milliseconds
    max_peak_memory_mb: float | None = None  # of a process with the model alone, in 10^6 bytes
    # of runs that compare outputs, on images without masks or with labels that are no map of classes
    min_sqnr_db: float | None = None  # of every output against the first's
    min_equal_pixels: float | None = None  # of every output that tells classes apart, against the first's, 0 to 1
    # of labels that are no map of classes: key of a figure -> limit
    max_score_loss: tuple[tuple[str, float], ...] | None = None  # lower than the first's, or an error higher
    worst_score: tuple[tuple[str, float], ...] | None = None  # at least so high, or an error at most

    def given(self) -> dict[str, float | tuple[tuple[str, float], ...]]:
        """Name -> value of those that there are."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}


@dataclass(frozen=True)
class GateSettings:
    """What a run is checked against."""

    limits: GateLimits = GateLimits()
    gate_models: tuple[str, ...] | None = None  # that the limits hold for; None: all but the first, or the only one
    gate_by: str = "estimate"  # what has to keep a limit: the figure; "bound": the worse end of its 95 % interval
    baseline: tuple[Path, ...] | None = None  # results.json of earlier runs, that no figure may be worse than

    def __post_init__(self) -> None:
        _require(self.gate_by in GATE_BY, "gate_by", self.gate_by, " or ".join(GATE_BY))


@dataclass(frozen=True)
class CommandLine:
    """The command line that asked for a benchmark, for its record; nothing where it was asked for in Python."""

    command: str = ""  # as a shell takes it
    flags: Mapping[str, object] = field(default_factory=dict)  # all of them, as JSON takes them
