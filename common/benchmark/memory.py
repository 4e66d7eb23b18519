"""Peak memory and cold start of one model, in a process of its own so that no other model hides or adds to it."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext

import psutil
import torch

from common.runtimes.int8_kernels import sums_saturate
from common.runtimes.predictors import Predictor
from common.scoring.latency import timed
from common.system.arithmetic import use_full_float32
from common.system.memory import peak_resident, reset_peak

LIBRARIES = ["torch", "torchvision.models", "onnx", "onnxscript", "onnxruntime"]  # what opening a model imports


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of resident memory while a model is loaded and run, its share of the device memory where it has one, and
    the seconds of its cold start."""

    process: int  # peak of the whole process, with the interpreter and the libraries
    model: int  # the same less what was resident before the model was loaded
    device: int | None  # peak of PyTorch's allocations on the CUDA device
    load_seconds: float  # opening the file, the libraries being there
    first_seconds: float  # the first run


def peak_memory(
    open_model: Callable[[], Predictor],
    input_shape: Sequence[int],
    threads: int,
    dtype: torch.dtype = torch.float32,
    runs: int = 2,
) -> ModelMemory:
    """Load a model by `open_model()` (which must pickle) in a new process and run it `runs` times on zeros.

    Raises:
        ChildProcessError: that process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=_start_method()) as pool:
        try:
            return pool.submit(_measure, open_model, input_shape, threads, runs, dtype).result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "the process that measures a model's memory died; where the system killed it, memory was short: "
                "close other programs, or benchmark fewer or smaller models"
            ) from error


def _start_method() -> BaseContext:
    """New processes that share nothing with this one. Where the system can fork, a server imports the libraries once,
    for all models, and each process is a copy of it; else every process takes the seconds of importing them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def _measure(
    open_model: Callable[[], Predictor],
    input_shape: Sequence[int],
    threads: int,
    runs: int,
    dtype: torch.dtype = torch.float32,
) -> ModelMemory:
    use_full_float32()
    torch.set_num_threads(threads)
    sums_saturate()  # asked once in a process, not for each model: outside of its memory and its cold start
    reset_peak()
    before = psutil.Process().memory_info().rss
    predict, load_seconds = timed(open_model)
    images = torch.zeros(*input_shape, dtype=dtype)
    _, first_seconds = timed(lambda: predict(images))
    for _ in range(runs - 1):
        predict(images)
    peak = max(peak_resident(), before)
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return ModelMemory(peak, peak - before, device or None, load_seconds, first_seconds)
