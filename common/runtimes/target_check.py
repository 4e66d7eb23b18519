"""Whether an ONNX file keeps the rules of the target that it is for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from common.runtimes import target_rules as rules
from common.runtimes.onnx_files import read_graph
from common.runtimes.optimized import OptimizedNote
from common.runtimes.quantized_graphs import graphs_of, label
from common.runtimes.target_rules import Rule
from common.runtimes.targets import TARGETS

ONNX_DOMAINS = ("", "ai.onnx")
TOLD = 3  # nodes, of those that break a rule, in an error

OF_EVERY_RUNTIME = (rules.constant_parameters, rules.codes_of_eight_bits, rules.activations_by_tensor)
# target that takes ONNX files -> its rules for them
RULES: Mapping[str, tuple[Rule, ...]] = {
    "onnxruntime": (*OF_EVERY_RUNTIME, rules.unsigned_inputs, rules.integer_biases),
    "tensorrt": (
        *(rules.standard_operators, rules.no_integer_operators, rules.constant_parameters),
        *(rules.signed_codes, rules.no_zero_points, rules.activations_by_tensor),
        *(rules.weights_by_output_channel, rules.symmetric_codes_of_weights, rules.weights_in_float),
        *(rules.biases_in_float, rules.both_or_none, rules.no_pair_before_fused),
        *(rules.int8_behind_pairs, rules.pairs_stand_together),
    ),
    "openvino": (*OF_EVERY_RUNTIME, rules.standard_operators),
}


def broken_rules(model: onnx.ModelProto, target: str) -> list[str]:
    """What of a file its target does not take or is slow at, one line for each node and rule: "Conv conv2d: ...".

    Args:
        target: one of TARGETS that takes ONNX files.
    """
    version = next((each.version for each in model.opset_import if each.domain in ONNX_DOMAINS), 1)
    oldest, newest = TARGETS[target].opsets or (version, version)
    wrong = [] if oldest <= version <= newest else [f"operator set {version}, wanted {oldest} to {newest}"]
    for graph in graphs_of(model):
        found = [(node, why) for rule in RULES[target] for node, why in rule(graph)]
        places = {id(node): place for place, node in enumerate(graph.nodes)}
        wrong += [f"{label(node)}: {why}" for node, why in sorted(found, key=lambda each: places[id(each[0])])]
    return list(dict.fromkeys(wrong))


def require_rules(model: onnx.ModelProto, target: str) -> None:
    """Raise ValueError where a file breaks rules of its target; the line names the first nodes."""
    if wrong := broken_rules(model, target):
        listed = "; ".join(wrong[:TOLD]) + ("; ..." if len(wrong) > TOLD else "")
        raise ValueError(f"the file breaks {len(wrong)} rules of {TARGETS[target].title}: {listed}")


def check_file(path: Path, target: str) -> Sequence[str]:
    """`broken_rules` of an ONNX file, with the weights that it keeps in others.

    Raises:
        FileNotFoundError, ValueError: no ONNX file, one that claims what it does not hold, or a target that has none.
    """
    if not TARGETS[target].opsets:
        raise ValueError(f"--target {target}: takes {TARGETS[target].suffix} files, to which no rules of ONNX apply")
    read_graph(path)  # what it claims, before its weights are read
    return broken_rules(onnx.load(path), target)


def optimized_note(path: Path) -> OptimizedNote | None:
    """What an ONNX file says of its integer operators; None where it holds pairs, or says nothing."""
    return OptimizedNote.of({entry.key: entry.value for entry in read_graph(path).metadata_props})
