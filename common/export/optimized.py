"""INT8 files whose operators are integer already, for hosts that run them without graph optimisation.

A file with pairs of QuantizeLinear and DequantizeLinear becomes int8 when ONNX Runtime optimises its graph; a session
without graph optimisation computes it in float, in three times the time. Here that optimisation is done beforehand.
"""

import logging
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper

from common.runtimes.optimized import OptimizedNote
from common.runtimes.predictors import session_options
from common.runtimes.providers import CPU, PROVIDERS
from common.runtimes.quantized_graphs import QuantizedGraph, label

logger = logging.getLogger(__name__)

# the one optimiser that writes nodes for the vectors of this processor; those of codes are the same on all
BOUND_TO_PROCESSOR = ("NchwcTransformer",)
ON_CODES = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger")  # how the names of integer operators begin
WEIGHTED = ("QLinearConv", "QGemm", "QLinearMatMul")  # (input, scale, zero point, weights, ...)
WEIGHTS = 3  # their place
REDUCED = range(-64, 64)  # codes of weights with --reduced_range


def use_integer_operators(path: Path) -> OptimizedNote:
    """Replace a file of pairs by the graph that ONNX Runtime makes of it, with its metadata.

    Weights stay int8, whatever processor writes the file. What is in float with full optimisation is so here.

    Raises:
        ValueError: a convolution or matrix product between pairs did not become an integer operator.
    """
    pairs = QuantizedGraph.of(onnx.load(path).graph)
    wanted = [node for node in pairs.nodes if pairs.computes_on_codes(node)]
    options = session_options(1, exact_int8=False)
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(path, options, providers=[PROVIDERS[CPU]], disabled_optimizers=list(BOUND_TO_PROCESSOR))
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    _drop_unused_domains(proto)
    found = Counter(node.op_type for node in proto.graph.node if node.op_type.startswith(ON_CODES))
    if sum(found[name] for name in WEIGHTED) < len(wanted) or not wanted:
        left = QuantizedGraph.of(proto.graph)
        names = [label(node) for node in left.nodes if left.computes_on_codes(node)]
        raise ValueError(
            f"--optimized: {sum(found[name] for name in WEIGHTED)} of {len(wanted)} convolutions and matrix products "
            f"became integer operators{f', not {names[0]}' if names else ''}; leave the flag out"
        )
    note = OptimizedNote(f"ONNX Runtime {ort.__version__}", dict(found.most_common()), _weight_bits(proto))
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    helper.set_model_props(proto, metadata | note.as_metadata())
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    logger.info("%s", note)
    return note


def _drop_unused_domains(proto: onnx.ModelProto) -> None:
    """ONNX Runtime lists all that it knows, of which an older version may not know one."""
    used = {"", *(node.domain for node in proto.graph.node)}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _weight_bits(proto: onnx.ModelProto) -> int:
    """7 where no sum of two products of a weight and a uint8 code can leave 16 bits, else 8."""
    graph = QuantizedGraph.of(proto.graph)
    signed = [node for node in graph.nodes if _stores_signed_weights(graph, node)]
    codes = [values for node in signed if (values := graph.constant(node, WEIGHTS)) is not None]
    return 7 if all(values.min() in REDUCED and values.max() in REDUCED for values in codes) else 8


def _stores_signed_weights(graph: QuantizedGraph, node: NodeProto) -> bool:
    return node.op_type in WEIGHTED and graph.stored_type(node, WEIGHTS) == TensorProto.INT8
