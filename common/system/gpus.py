"""Keeping a process away from GPUs that it does not compute on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def gpus_hidden() -> Iterator[None]:
    """PyTorch finds no GPU within this context; ONNX Runtime, which has its own way to it, does.

    Where PyTorch says that there is one, it takes hold of it for work on the CPU, too, and so do its libraries: at each
    step of AdamW, in torch.export, in XNNPACKQuantizer. That costs memory of the GPU, and fails where it is busy. The
    variable CUDA_VISIBLE_DEVICES comes too late: torchao asks the driver while it is imported.
    """
    found = torch.cuda.is_available
    torch.cuda.is_available = lambda: False
    try:
        yield
    finally:
        torch.cuda.is_available = found
