"""Parts of benchmarks.gpu_check: what a step, a run and a forward pass cost on CUDA. Each has the machine to itself."""

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.gpu_context import (
    NETWORK,
    SCENES,
    Context,
    device_memory,
    image_format,
    network,
    prepared_network,
    random_batches,
    samples_of,
    scenes,
)
from benchmarks.qat_step import FP32, PHASES, make_steps, operator_rows
from common.data.loading import AugmentedDataset
from common.data.pairs import Sample
from common.quantization.pt2e import set_evaluation_mode, set_mode
from common.runtimes.predictors import TorchPredictor
from common.scoring.latency import latency, no_garbage_collection, timed
from common.training.labelled import labelled_loss
from common.training.loop import train
from common.training.precision import keep_fake_quantization_in_float32, set_precision
from common.training.settings import PRECISIONS, TrainingSettings
from common.training.stepper import Learner, make_optimizer
from models.family import find_network

MOST_OVER_FP32 = 1.5  # a QAT step against an FP32 step
MOST_DATA_WAIT = 0.05
MOST_COMPILED_LOSS = 1e-2  # share by which a loss may be off
ROWS = 25  # operators of the profile


def steps(context: Context) -> None:
    """Milliseconds and peak memory of a training step at full size: FP32 and QAT in each phase and precision."""
    for precision in PRECISIONS if context.on_gpu else ("fp32", "bf16"):
        try:
            _steps_in(context, precision)
        except torch.OutOfMemoryError as error:  # the other precisions may need less
            context.record.check(f"a step in {precision} fits into the memory", False, error=str(error).splitlines()[0])
        _release()


def _steps_in(context: Context, precision: str) -> None:
    args = _step_arguments(context, precision)
    set_precision(precision, context.device)
    calls = make_steps(args, context.device)
    rows = time_in_turns(context, calls)
    base = rows[FP32]["p50_ms"]
    for row in rows.values():
        row["of_fp32"] = round(row["p50_ms"] / base, 3)
        row["images_per_second"] = round(1000 * args.batch_size / row["p50_ms"], 2)
    context.record.figure(f"step in {precision}, batch {args.batch_size}", rows)
    if precision == "fp32" and context.on_gpu:
        worst = max(rows[name]["of_fp32"] for name in PHASES)
        passed = worst <= MOST_OVER_FP32
        context.record.check(f"a QAT step takes at most {MOST_OVER_FP32} FP32 steps", passed, worst=worst)
    if precision != "tf32":
        context.record.figure(f"operators of a step in {precision}", operator_rows(calls, ROWS))


def _step_arguments(context: Context, precision: str) -> argparse.Namespace:
    scale = context.scale
    return argparse.Namespace(
        batch_size=scale.full_batch, input_hw=scale.full_hw, width=scale.full_width, precision=precision
    )


def time_in_turns(context: Context, calls: dict[str, Callable[[], object]]) -> dict[str, dict[str, object]]:
    """Each call's milliseconds, the calls taking turns, and the peak of the device memory while it runs."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, float | None] = {}
    with no_garbage_collection():
        for turn in range(context.scale.timed_steps + 2):
            for name, call in calls.items():
                context.synchronise()
                device_memory(context)
                begin = time.perf_counter()
                call()
                context.synchronise()
                if turn >= 2:  # the first ones choose kernels and allocate
                    seconds[name].append(time.perf_counter() - begin)
                    peaks[name] = device_memory(context)
    return {
        name: {"p50_ms": round(1000 * float(np.median(values)), 2), "peak_gb": peaks[name], "steps": len(values)}
        for name, values in seconds.items()
    }


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def layouts(context: Context) -> None:
    """What channels-last memory brings to an FP32 training step, in each precision."""
    scale = context.scale
    images, target, weights = (
        each.to(context.device) for each in random_batches(1, scale.full_batch, scale.full_hw)[0]
    )
    for precision in PRECISIONS if context.on_gpu else ("fp32",):
        set_precision(precision, context.device)
        calls = {}
        for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
            model = network(scale.full_width).to(context.device, memory_format=layout).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
            calls[name] = partial(
                _bare_step, context, model, optimizer, images.to(memory_format=layout), target, precision
            )
        context.record.figure(f"FP32 step in {precision} by layout", time_in_turns(context, calls))
        del calls, model, optimizer
        _release()


def _bare_step(
    context: Context,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    target: torch.Tensor,
    precision: str,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(context.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = nn.functional.cross_entropy(model(images).float(), target)
    loss.backward()
    optimizer.step()
    return loss.item()  # waits for the device


def training(context: Context) -> None:
    """Runs of the real loop with its loader: images per second and the share of time spent waiting for images.

    QAT against FP32 training, in each precision, and against one image at a time without workers.
    """
    scale = context.scale
    samples, source = _training_samples(context)
    context.record.figure("images", {"source": source, "count": len(samples)})
    precisions = ("fp32", "bf16") if context.on_gpu else ("fp32",)
    for precision in precisions:
        for kind in ("FP32", "QAT"):
            figures = _run(context, kind, precision, samples, scale.full_batch, context.workers, epochs=3)
            context.record.figure(f"{kind} training in {precision}, batch {scale.full_batch}", figures)
            if context.on_gpu:
                waits = figures["data_wait"]
                context.record.check(
                    f"{kind} in {precision}: waits for images less than {MOST_DATA_WAIT:.0%}",
                    waits < MOST_DATA_WAIT,
                    share=waits,
                )
            _release()
    alone = _run(context, "QAT", "fp32", samples[:24], 1, 0, epochs=2)
    context.record.figure("QAT in fp32, one image at a time, no workers", alone)


def _training_samples(context: Context) -> tuple[list[Sample], str]:
    if context.data:
        name = next(path.name for path in sorted(context.data.iterdir()) if path.is_dir())
        return samples_of(context.data, name, "train"), name
    return samples_of(scenes(context), SCENES, "train"), "generated scenes"


def _run(
    context: Context, kind: str, precision: str, samples: list[Sample], batch_size: int, workers: int, epochs: int
) -> dict[str, object]:
    """Train for some epochs of at least four steps; the figures are those after the first, which warms up."""
    scale = context.scale
    repeated = samples * -(-4 * batch_size // len(samples)) if batch_size > 1 else samples
    settings = TrainingSettings(epochs=epochs, batch_size=batch_size, precision=precision)
    set_precision(precision, context.device)
    if kind == "QAT":
        model = prepared_network(scale.full_width, scale.full_hw, context.device)
        keep_fake_quantization_in_float32(model)
        mode = partial(set_mode, model, dropout=True, batch_norm=True, observers=True)
    else:
        model = network(scale.full_width).to(context.device, memory_format=torch.channels_last)
        mode = model.train
    loss = partial(labelled_loss, settings, context.device, None)
    learner = Learner(model, make_optimizer(model, settings), lambda epoch: mode(), loss)
    dataset = AugmentedDataset(repeated, image_format(scale.full_hw), 0.5, 0)
    device_memory(context)
    moments = list(train(learner, dataset, settings, context.device, checkpoint_interval=10**9, workers=workers))
    first, *later = [moment.pace for moment in moments]
    return {
        "images_per_second": round(float(np.mean([pace.images_per_second for pace in later])), 2),
        "data_wait": round(float(np.mean([pace.data_wait for pace in later])), 4),
        "first_epoch_images_per_second": round(first.images_per_second, 2),
        "peak_gb": device_memory(context),
        "losses": [round(moment.loss, 4) for moment in moments],
        "images_of_an_epoch": len(repeated),
        "workers": workers,
    }


def clock(context: Context) -> None:
    """Latency of one image as the benchmarks measure it: the call holds the copies and waits for the device."""
    scale = context.scale
    images = torch.randn(1, 3, *scale.full_hw)
    prepared = prepared_network(scale.full_width, scale.full_hw, context.device)
    prepared(images.to(context.device))  # ranges
    set_evaluation_mode(prepared)
    for name, model in ((NETWORK, network(scale.full_width).eval()), (f"{NETWORK}, fake-quantized", prepared)):
        predict = TorchPredictor(model, context.device)
        with no_garbage_collection():
            for _ in range(5):
                predict(images)
            seconds = [timed(partial(predict, images))[1] for _ in range(30 if context.on_gpu else 5)]
        figures = asdict(latency(seconds))
        if context.on_gpu:
            kernels = _kernel_milliseconds(model, images.to(context.device))
            figures["kernels_ms"] = kernels
            context.record.check(f"{name}: the clock holds the device's work", figures["p50"] >= 0.95 * kernels)
        context.record.figure(f"latency of {name}, batch 1", figures)
    others = {}
    for name in ("AutoSpeed", "AutoSteer", "EgoLanes"):
        row = find_network(name)[1]
        torch.manual_seed(0)
        model = row.build().eval() if context.on_gpu or name == "AutoSteer" else None
        if model is not None:
            predict, example = TorchPredictor(model, context.device), torch.randn(1, *row.input_shape)
            for _ in range(5):
                predict(example)
            others[name] = asdict(latency([timed(partial(predict, example))[1] for _ in range(20)]))
    context.record.figure("latency of others, batch 1", others)


@torch.inference_mode()
def _kernel_milliseconds(model: nn.Module, images: torch.Tensor) -> float:
    """The device's own time of a forward pass, by its events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(10):
        start.record()
        model(images)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(np.median(times))


def compiled(context: Context) -> None:
    """`torch.compile` of the prepared graph: whether it runs, gives the same losses, and what a step gains."""
    scale = context.scale
    images, target, _ = (each.to(context.device) for each in random_batches(1, scale.full_batch, scale.full_hw)[0])
    images = images.to(memory_format=torch.channels_last)
    backend = "inductor" if context.on_gpu else "aot_eager"  # C++ of a CPU takes 15 minutes
    for precision in ("fp32", "bf16") if context.on_gpu else ("fp32",):
        set_precision(precision, context.device)
        calls = {}
        for name in ("as it is", "compiled"):
            prepared = prepared_network(scale.full_width, scale.full_hw, context.device)
            keep_fake_quantization_in_float32(prepared)
            set_mode(prepared, dropout=False, batch_norm=True, observers=True)
            model = torch.compile(prepared, backend=backend) if name == "compiled" else prepared
            optimizer = torch.optim.AdamW(prepared.parameters(), lr=1e-5)
            calls[name] = partial(_bare_step, context, model, optimizer, images, target, precision)
        loss, seconds = timed(calls["compiled"])
        context.record.figure(f"seconds of compiling in {precision}", round(seconds, 1))
        expected = calls["as it is"]()
        off = abs(loss - expected) / expected
        context.record.check(f"{precision}: the loss of the compiled graph", off <= MOST_COMPILED_LOSS, relative=off)
        context.record.figure(f"QAT step in {precision}", time_in_turns(context, calls))
        del calls, prepared, model, optimizer
        _release()
