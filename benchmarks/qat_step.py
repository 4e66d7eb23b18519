"""What fake quantization adds to a training step: QAT in each of its phases against FP32, and where the time goes."""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.types import height_width, positive_float, positive_int
from common.quantization.codes import codes_for_backward
from common.quantization.pt2e import prepare_qat, set_mode
from common.quantization.settings import QuantizationSettings
from common.report.text import table
from common.system.allocator import keep_freed_memory
from common.system.process import resolve_device, seed_everything
from common.training.losses import weighted_cross_entropy
from common.training.precision import arithmetic, keep_fake_quantization_in_float32, set_precision
from common.training.settings import PRECISIONS
from models.family import find_network

TimedStep = Callable[[], float]

# the phases of a QAT run, see common.quantization.settings.QatSchedule
PHASES = {
    "QAT, all is updated": {"batch_norm": True, "observers": True},
    "QAT, batch norm frozen": {"batch_norm": False, "observers": True},
    "QAT, observers frozen, too": {"batch_norm": False, "observers": False},
}
FP32 = "FP32"


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m benchmarks.qat_step --width 0.125 --input_hw 160,320 --batch_size 8")
    parser.add_argument("--width", type=positive_float, default=0.125, help="scale of the decoder's channels")
    parser.add_argument("--input_hw", type=height_width, default=(160, 320), metavar="H,W", help="input size")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="images of a step")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="arithmetic outside fake quantization")
    parser.add_argument("--steps", type=positive_int, default=10, help="timed steps of each kind, taking turns")
    parser.add_argument("--rows", type=positive_int, default=12, help="operators in the profile")
    return parser


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    device = resolve_device(args.device)
    set_precision(args.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    steps = make_steps(args, device)
    # on a CPU its own time, of all threads: other work on the machine does not count
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = {name: [] for name in steps}
    for number in range(args.steps + 2):
        for name, step in steps.items():
            begin = clock()
            step()
            if number >= 2:  # the first ones choose kernels and allocate
                seconds[name].append(clock() - begin)
    base = float(np.median(seconds[FP32]))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    print(table([{"step": k, "p50_ms": f"{1000 * v:.0f}", "of FP32": f"{v / base:.2f}"} for k, v in medians.items()]))
    print(f"\nmilliseconds of a step by operator, {args.threads} threads, {device}:")
    print(table(operator_rows(steps, args.rows)))


def make_steps(args: argparse.Namespace, device: torch.device) -> dict[str, TimedStep]:
    """A callable for each kind of step; they train networks of their own on the same batch."""
    images = torch.randn(args.batch_size, 3, *args.input_hw).to(device, memory_format=torch.channels_last)
    target = torch.randint(3, (args.batch_size, *args.input_hw), device=device)
    weights = torch.rand(args.batch_size, 3, device=device) + 0.5

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, before: Callable[[], None]) -> float:
        before()
        optimizer.zero_grad(set_to_none=True)
        with arithmetic(args.precision, device), codes_for_backward():
            loss = weighted_cross_entropy(model(images).float(), target, weights)
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the device

    def build() -> nn.Module:
        return find_network("SceneSeg")[1].build(width=args.width).to(device, memory_format=torch.channels_last)

    def stepper(model: nn.Module, before: Callable[[], None]) -> TimedStep:
        return partial(step, model, torch.optim.AdamW(model.parameters(), lr=1e-5), before)

    float_network = build()
    prepared = prepare_qat(build(), args.input_hw, QuantizationSettings())
    keep_fake_quantization_in_float32(prepared)
    phases = {
        name: stepper(prepared, partial(set_mode, prepared, dropout=True, **mode)) for name, mode in PHASES.items()
    }
    return {FP32: stepper(float_network, float_network.train), **phases}


def operator_rows(steps: dict[str, TimedStep], count: int) -> list[dict[str, str]]:
    """Self time of the operators that differ most between FP32 and the first phase of QAT."""
    fp32, qat = (operator_times(steps[name]) for name in (FP32, next(iter(PHASES))))
    names = sorted(fp32.keys() | qat.keys(), key=lambda name: -abs(qat.get(name, 0) - fp32.get(name, 0)))
    rows = []
    for name in names[:count]:
        before, after = fp32.get(name, 0.0), qat.get(name, 0.0)
        rows.append(
            {"operator": name, "FP32": f"{before:.1f}", "QAT": f"{after:.1f}", "more": f"{after - before:+.1f}"}
        )
    return rows


def operator_times(step: TimedStep) -> dict[str, float]:
    """Milliseconds of one step by operator, without those it calls; on CUDA the time of its kernels."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        step()
    times = {}
    for event in profiled.key_averages():
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        times[event.key] = times.get(event.key, 0.0) + microseconds / 1000
    return times


if __name__ == "__main__":
    run(main, get_args_parser())
