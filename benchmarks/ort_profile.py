"""Where the time of an ONNX file goes, by ONNX Runtime's own profiler."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime as ort

from common.runtimes.int8_kernels import sums_saturate
from common.runtimes.predictors import session_options


def operator_profile(path: Path, images: np.ndarray, threads: int, runs: int = 5) -> list[dict[str, str]]:
    """Rows of operator, calls and milliseconds of one run, the most expensive first; profiling itself adds a little."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads, sums_saturate())
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(1 + runs):
            session.run(None, {session.get_inputs()[0].name: images})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("kernel_time")]
    kernels = kernels[len(kernels) // (1 + runs) :]  # without the first run
    milliseconds, calls = defaultdict(float), defaultdict(int)
    for event in kernels:
        operator = event["args"]["op_name"]
        milliseconds[operator] += event["dur"] / 1000 / runs
        calls[operator] += 1
    ranked = sorted(milliseconds.items(), key=lambda item: -item[1])
    return [
        {"operator": operator, "calls": str(calls[operator] // runs), "ms": f"{spent:.2f}"}
        for operator, spent in ranked
    ]
