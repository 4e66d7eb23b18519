"""Where the time of an ONNX file goes, by operator."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from common.runtimes.layer_times import kernel_times


def operator_profile(path: Path, images: np.ndarray, threads: int) -> list[dict[str, str]]:
    """Rows of operator, calls and milliseconds of one run, the most expensive first; profiling itself adds a little."""
    kernels = kernel_times(path, torch.from_numpy(images), threads)
    calls, milliseconds = Counter(kernel.operator for kernel in kernels), Counter[str]()
    for kernel in kernels:
        milliseconds[kernel.operator] += kernel.ms  # type: ignore[assignment]
    return [
        {"operator": operator, "calls": str(calls[operator]), "ms": f"{spent:.2f}"}
        for operator, spent in milliseconds.most_common()
    ]
