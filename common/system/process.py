"""The process that a script computes in: its threads, its arithmetic, the GPUs it sees, its device and its seeds."""

import logging
import random
import warnings
from contextlib import AbstractContextManager, nullcontext

import cv2
import numpy as np
import torch

from common.system.arithmetic import use_full_float32
from common.system.gpus import gpus_hidden

OF_DEVELOPERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")  # loggers whose notices are for theirs


def computing(device: str, threads: int) -> AbstractContextManager[None]:
    """Set the arithmetic and the CPU threads; the context in which to compute on `device` (auto, cpu or cuda)."""
    use_full_float32()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    return gpus_hidden() if device == "cpu" else nullcontext()


def silence_libraries() -> None:
    """Leave out what libraries tell their developers, also those that are imported later."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # what it warns of is raised, too
    warnings.simplefilter("ignore")
    warnings.showwarning = lambda *_, **__: None  # of filters that a library puts before this one
    for package in OF_DEVELOPERS:
        logging.getLogger(package).setLevel(logging.ERROR)


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA when there is one. It computes in full float32 unless a training asks for less.

    Raises:
        ValueError: `cuda` was asked for and is not there; nothing falls back in silence.
    """
    available = name != "cpu" and torch.cuda.is_available()  # asked for the CPU, a GPU is not even looked for
    if name == "cuda" and not available:
        raise ValueError("--device cuda: PyTorch finds no CUDA device on this machine; use --device cpu or auto")
    use_full_float32()
    return torch.device("cuda" if available else "cpu")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
