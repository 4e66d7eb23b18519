"""The time of every layer of an ONNX file, by ONNX Runtime's own profiler."""

import ast
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import onnx
import onnxruntime as ort
from torch import Tensor

from common.runtimes.int8_kernels import sums_saturate
from common.runtimes.predictors import session_options

MODULE_NAMES = "pkg.torch.onnx.name_scopes"  # PyTorch's note on a node: "['', 'neck', 'neck.conv', 'conv2d_1']"
# what ONNX Runtime appends to the names of nodes that it fuses, copies or moves to another layout
APPENDED = re.compile(r"(_token_\d+|_nchwc|/duplicated|/\w+Fusion/)+$")
RUNS = 7


@dataclass(frozen=True)
class Kernel:
    """A node as ONNX Runtime computes it."""

    name: str
    operator: str
    ms: float  # the median of the runs; profiling itself adds a little


def kernel_times(path: Path, images: Tensor, threads: int, runs: int = RUNS) -> list[Kernel]:
    """The nodes that a file is computed by, in their order, with their times on `images` (N, C, H, W)."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads, sums_saturate())
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]  # of several, each takes its part of the channels
        fed = {name: part.numpy() for name, part in zip(names, images.chunk(len(names), dim=1), strict=True)}
        for _ in range(1 + runs):
            session.run(None, fed)
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    times, operators = defaultdict[str, list[float]](list), dict[str, str]()
    for event in kernels[len(kernels) // (1 + runs) :]:  # without the first run
        name = event["name"].removesuffix("_kernel_time")
        times[name].append(event["dur"] / 1000)
        operators[name] = event["args"]["op_name"]
    return [Kernel(name, operators[name], median(spent)) for name, spent in times.items()]


def module_times(path: Path, images: Tensor, threads: int, runs: int = RUNS) -> Mapping[str, float]:
    """Milliseconds of every module of a file that was written with `ExportOptions.named`.

    A node that says no module, as a quantize, counts with the one whose output it takes. What ONNX Runtime puts in by
    itself, as a change of layout, counts with none.
    """
    modules = _modules_of(path)
    times = defaultdict[str, float](float)
    for kernel in kernel_times(path, images, threads, runs):
        times[modules.get(APPENDED.sub("", kernel.name), "")] += kernel.ms
    return times


def _modules_of(path: Path) -> dict[str, str]:
    """Name of a node, and of its first output, which is the name in some layouts -> its module."""
    makers, found = dict[str, str](), dict[str, str]()
    for node in onnx.load(path, load_external_data=False).graph.node:
        told = next((note.value for note in node.metadata_props if note.key == MODULE_NAMES), "['']")
        module = next((name for name in reversed(ast.literal_eval(told)[:-1]) if name), "")
        module = module or next((makers[source] for source in node.input if makers.get(source)), "")
        makers |= dict.fromkeys(node.output, module)
        found |= {node.name: module, node.output[0]: module}
    return found
