"""What no INT8 network can be faster than: its operations at the rate at which a processor multiplies codes."""

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.runtimes.int8_kernels import sums_saturate
from common.runtimes.predictors import session_options
from common.scoring.latency import interleaved_latency

CHANNELS, KERNEL, HEIGHT, WIDTH = 256, 3, 40, 80  # a convolution that is large enough for the best of its kernel
OPSET = 13
RUNS = 15

# operators that change no number: they cost time, but are computed on codes as well as in float
MOVES = {"Concat", "DepthToSpace", "Expand", "Gather", "Pad", "Reshape", "Resize", "Slice", "Split", "Transpose"}


def giga_operations(model: nn.Module, input_shape: tuple[int, ...]) -> float:
    """Of one input (C, H, W): 2 for each multiply-add of convolutions and matrix products, in units of 10^9."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, *input_shape))
    return counter.get_total_flops() / 1e9


def int8_rate(threads: int) -> float:
    """10^9 operations a second of one large convolution from codes to codes in ONNX Runtime."""
    session = ort.InferenceSession(large_convolution(), session_options(threads, sums_saturate()))
    codes = np.random.default_rng(0).integers(0, 256, (1, CHANNELS, HEIGHT, WIDTH), dtype=np.uint8)
    latency = interleaved_latency({"": lambda: session.run(None, {"codes": codes})}, RUNS)[""]
    return 2 * KERNEL**2 * CHANNELS**2 * HEIGHT * WIDTH / latency.p50 / 1e6


def large_convolution() -> bytes:
    """The model of that convolution: input `codes` (1, C, H, W) of uint8, output `out` alike."""
    weights = np.random.default_rng(1).integers(-127, 128, (CHANNELS, CHANNELS, KERNEL, KERNEL), dtype=np.int8)
    stored = {
        "scale": np.float32(0.1),
        "zero_point": np.uint8(128),
        "weights": weights,
        "weight_scale": np.float32(1e-4),  # most sums of 2304 products stay in the range of codes
        "zero": np.int8(0),
    }
    scaled = ["codes", "scale", "zero_point", "weights", "weight_scale", "zero", "scale", "zero_point"]
    node = helper.make_node("QLinearConv", scaled, ["out"], pads=[KERNEL // 2] * 4)
    shape = [1, CHANNELS, HEIGHT, WIDTH]
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in ("codes", "out")]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph([node], "convolution", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return model.SerializeToString()


def float_share(profile: list[dict[str, str]]) -> float:
    """The share, 0 to 1, of the time of a profile by operator that goes into arithmetic in float."""
    spent = {row["operator"]: float(row["ms"]) for row in profile}
    floats = sum(ms for operator, ms in spent.items() if not (operator.startswith("QLinear") or operator in MOVES))
    return floats / sum(spent.values())
