"""Whether this processor multiplies int8 exactly in ONNX Runtime's default kernels."""

from functools import cache

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

CHANNELS = (16, 15)  # a kernel of its own takes channels in fours, the matrix product any number


@cache
def sums_saturate() -> bool:
    """Whether a sum of products of uint8 and int8 comes out too small.

    x86 processors without an int8 dot product (AVX-512 VNNI, AVX-VNNI) add two products in 16 bits, where 2 x 255 x 127
    does not fit. Found by computing the largest sum rather than by the processor's name, which says less: it holds for
    every kernel that this ONNX Runtime chooses here.
    """
    return any(_largest_sum(channels) < 255 for channels in CHANNELS)


def _largest_sum(channels: int) -> int:
    """A 1x1 convolution of `channels` values of 255 with weights of 127, in steps of 1/255 of what is right."""
    stored = {
        "one": np.float32(1),
        "step": np.float32(127 * channels),
        "zero": np.uint8(0),
        "weight": np.full((channels, channels, 1, 1), 127, np.int8),
        "weight_zero": np.int8(0),
    }
    convolution = helper.make_node(
        "QLinearConv", ["codes", "one", "zero", "weight", "one", "weight_zero", "step", "zero"], ["sums"]
    )
    shape = [1, channels, 1, 1]
    graph = helper.make_graph(
        [convolution],
        "largest_sum",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("sums", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"codes": np.full(shape, 255, np.uint8)})
    return int(sums.min())
