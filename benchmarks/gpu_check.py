"""Check the toolkit on a GPU in one command: correctness against the CPU, speed, accuracy; see docs/gpu.md."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import gpu_accuracy, gpu_correctness, gpu_speed
from benchmarks.gpu_context import FULL, TINY, Context, scale_figures
from benchmarks.parts import NOT_STARTED, PASSED, Outcome, Part, Record, run_parts
from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.types import non_negative_int, positive_float, positive_int
from common.report.text import table
from common.system.allocator import keep_freed_memory
from common.system.environment import environment, usable_processors
from common.system.process import resolve_device

FUNCTIONS: dict[str, Callable[[Context], None]] = {
    "quantization": gpu_correctness.quantization,
    "scripts": gpu_correctness.scripts,
    "checkpoints": gpu_correctness.checkpoints,
    "one_process_group": gpu_correctness.one_process_group,
    "qat_steps": gpu_correctness.qat_steps,
    "forward": gpu_correctness.forward,
    "fake_quantization": gpu_correctness.fake_quantization,
    "determinism": gpu_correctness.determinism,
    "memory": gpu_correctness.memory,
    "loader": gpu_correctness.loader,
    "steps": gpu_speed.steps,
    "training": gpu_speed.training,
    "clock": gpu_speed.clock,
    "layouts": gpu_speed.layouts,
    "compiled": gpu_speed.compiled,
    "accuracy": gpu_accuracy.accuracy,
}
# the longest of those that run beside each other first; limits in seconds
PARTS = (
    Part("quantization", 200),
    Part("scripts", 200),
    Part("checkpoints", 200),
    Part("one_process_group", 120),
    Part("qat_steps", 120),
    Part("forward", 90),
    Part("fake_quantization", 60),
    Part("determinism", 100),
    Part("memory", 100),
    Part("loader", 60),
    Part("steps", 120, alone=True),
    Part("training", 150, alone=True),
    Part("clock", 40, alone=True),
    Part("layouts", 50, alone=True),
    Part("accuracy", 270, alone=True),
    Part("compiled", 150, alone=True),
)
REHEARSAL_LIMIT = 900.0  # seconds of a part on a CPU, which may be a slow one


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m benchmarks.gpu_check --output gpu_results --data kit/data")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for results.json and log.txt")
    parser.add_argument(
        "--data", type=Path, metavar="ROOT", help="data root with one dataset; default: generated scenes"
    )
    parser.add_argument("--seconds", type=positive_float, default=480.0, help="for everything together")
    parser.add_argument(
        "--parts", nargs="+", choices=list(FUNCTIONS), metavar="PART", help="only these, in their order"
    )
    parser.add_argument(
        "--at_once", type=positive_int, default=10, help="parts beside each other where no time is measured"
    )
    parser.add_argument(
        "--workers", type=non_negative_int, default=max(1, usable_processors() - 4), help="processes that decode images"
    )
    parser.add_argument("--rehearse", action="store_true", help="the same parts on the CPU, at tiny sizes")
    parser.add_argument("--part", choices=list(FUNCTIONS), help=argparse.SUPPRESS)  # one part, in this process
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.part:
        run_one(args)
        return
    if args.output is None:
        raise ValueError("--output: name a folder for the results")
    if args.rehearse and args.device == "auto":
        args.device = "cpu"
    device = resolve_device("cuda" if args.device == "auto" else args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    scale = TINY if args.rehearse else FULL
    header = {
        "rehearsal": args.rehearse,
        "device": device.type,
        "machine": environment(),
        "scale": scale_figures(scale),
    }
    chosen = [part for part in PARTS if not args.parts or part.name in args.parts]
    if args.rehearse:
        chosen = [Part(part.name, REHEARSAL_LIMIT, part.alone) for part in chosen]
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as work:
        outcomes = run_parts(
            chosen,
            partial(part_command, args=args, device=device),
            args.output,
            Path(work),
            args.seconds,
            args.at_once,
            header,
        )
    print(summary(outcomes))
    print(f"wrote {args.output / 'results.json'} and {args.output / 'log.txt'}")
    if any(outcome.status != PASSED for outcome in outcomes.values()):
        raise ValueError("not every part passed; see above, and log.txt")


def part_command(part: Part, record: Path, args: argparse.Namespace, device: torch.device) -> list[str]:
    """The command line of a part in a process of its own."""
    beside_each_other = 1 if part.alone else args.at_once
    threads = 1 if args.rehearse else max(2, usable_processors() // beside_each_other)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", part.name, "--record", str(record)]
    command += ["--device", device.type, "--threads", str(threads), "--workers", str(args.workers), "--debug"]
    command += ["--data", str(args.data.absolute())] if args.data else []
    return command + (["--rehearse"] if args.rehearse else [])


def run_one(args: argparse.Namespace) -> None:
    """A part in this process; ValueError where a check of it does not hold."""
    logging.getLogger().setLevel(logging.WARNING)  # of --debug, which runs every part, the tracebacks are wanted
    if args.device == "cpu":
        keep_freed_memory()
    record = Record(args.record)
    work = args.record.with_suffix("")
    work.mkdir()
    scale = TINY if args.rehearse else FULL
    device = resolve_device(args.device)
    FUNCTIONS[args.part](Context(device, scale, record, work, args.data, args.workers, args.threads))
    if record.failures:
        raise ValueError(f"{len(record.failures)} checks do not hold, the first is: {record.failures[0]}")


def summary(outcomes: dict[str, Outcome]) -> str:
    """One row a part, and one line for every check that does not hold."""
    rows = [
        {"part": name, "status": outcome.status, "seconds": f"{outcome.seconds:.0f}", "checks": _counted(outcome)}
        for name, outcome in outcomes.items()
    ]
    lines = [
        f"{name}: {check}" for name, outcome in outcomes.items() for check in outcome.checks if not check["passed"]
    ]
    lines += [
        f"{name}: {outcome.status}: {outcome.last_line}"
        for name, outcome in outcomes.items()
        if outcome.status not in (PASSED, NOT_STARTED) and outcome.last_line
    ]
    return "\n".join([table(rows), *lines])


def _counted(outcome: Outcome) -> str:
    return f"{sum(bool(check['passed']) for check in outcome.checks)} of {len(outcome.checks)}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--short_of_memory"]:  # see gpu_correctness.memory
        gpu_correctness.run_short_of_memory(sys.argv[2:])
    else:
        run(main, get_args_parser())
