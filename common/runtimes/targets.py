"""The runtimes that a quantized network is written for, and what each of them wants of its file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from common.runtimes import target_rules as rules
from common.runtimes.onnx_files import read_graph
from common.runtimes.optimized import OptimizedNote
from common.runtimes.quantized_graphs import graphs_of, label
from common.runtimes.target_rules import Rule

ONNX_DOMAINS = ("", "ai.onnx")
TOLD = 3  # nodes, of those that break a rule, in an error


@dataclass(frozen=True)
class Target:
    """What a runtime wants of an INT8 network: read by the quantizer, the passes on its graph, and the exporter."""

    title: str  # the runtime's name in sentences
    suffix: str  # of its files

    # the quantizer, in training and calibration
    symmetric: bool = False  # activations have the zero point 0; else any
    # activations are computed with the operator before them: pairs stand only before what computes in int8
    fuses_activations: bool = False
    per_channel: bool = False  # weights, where no flag says otherwise

    # the passes
    shuffle: str | None = None  # transposed convolutions become convolutions, shuffled by "rows" or "planes"
    moves_codes: bool = False
    gates: tuple[str, ...] = ()  # activations that become int8 gates
    channelwise: bool = False  # factors by channel become depthwise convolutions, a PReLU a maximum
    unsigned: bool = False  # codes of activations are uint8; else int8
    widens_outputs: bool = False  # few output channels become 16
    rounds_biases: bool = False  # to whole steps of the integer sum

    # the exporter
    integers: bool = False  # biases as int32 codes, no zero points of 0 and no computed shapes, where it can be
    float_weights: bool = False  # stored in front of a QuantizeLinear; else as codes
    takes_half: bool = False  # what is not in int8 may be in FP16
    takes_optimized: bool = False  # files may hold its own integer operators in the place of pairs
    opsets: tuple[int, int] | None = None  # ONNX operator sets that it reads, the oldest and the newest; None: no ONNX
    rules: tuple[Rule, ...] = ()  # for its ONNX files
    # on which share of pixels a file has to agree with exact integer arithmetic; where a runtime rounds in other places
    # fewer do: on CamVid 0.994 of an eighth-width SceneSeg's in XNNPACK
    equal_pixels: float = 0.98

    def fits(self, trained: "Target") -> bool:
        """Whether a network that was quantized for another target has what this one wants of the quantizer."""
        return (self.symmetric, self.fuses_activations) == (trained.symmetric, trained.fuses_activations)


OF_EVERY_RUNTIME = (rules.constant_parameters, rules.codes_of_eight_bits, rules.activations_by_tensor)
ONNX_RUNTIME = Target(
    "ONNX Runtime",
    ".onnx",
    shuffle="rows",
    moves_codes=True,
    gates=("silu", "gelu"),
    channelwise=True,
    unsigned=True,
    widens_outputs=True,
    rounds_biases=True,
    opsets=(7, 25),
    rules=(*OF_EVERY_RUNTIME, rules.unsigned_inputs, rules.integer_biases),
    integers=True,
    takes_optimized=True,
    equal_pixels=1.0,
)
TARGETS = {
    "onnxruntime": ONNX_RUNTIME,
    "tensorrt": Target(
        "TensorRT",
        ".onnx",
        symmetric=True,
        fuses_activations=True,
        per_channel=True,
        float_weights=True,
        takes_half=True,
        opsets=(13, 22),
        rules=(
            *(rules.standard_operators, rules.no_integer_operators, rules.constant_parameters),
            *(rules.signed_codes, rules.no_zero_points, rules.activations_by_tensor),
            *(rules.weights_by_output_channel, rules.symmetric_codes_of_weights, rules.weights_in_float),
            *(rules.biases_in_float, rules.both_or_none, rules.no_pair_before_fused),
            *(rules.int8_behind_pairs, rules.pairs_stand_together),
        ),
    ),
    "openvino": replace(
        ONNX_RUNTIME,
        title="OpenVINO",
        channelwise=False,
        takes_optimized=False,
        rules=(*OF_EVERY_RUNTIME, rules.standard_operators),
    ),
    # SiLU as an int8 gate is faster there (656 instead of 672 ms of SceneSeg); GELU is not
    "executorch": Target("ExecuTorch", ".pte", shuffle="planes", gates=("silu",)),
}
DEFAULT_TARGET = "onnxruntime"


def of_target(target: str) -> dict[str, str]:
    """What a file says of its target; nothing where it is the usual one."""
    return {} if target == DEFAULT_TARGET else {"target": target}


def broken_rules(model: onnx.ModelProto, target: str) -> list[str]:
    """What of a file its target does not take or is slow at, one line for each node and rule: "Conv conv2d: ...".

    Args:
        target: one of TARGETS that takes ONNX files.
    """
    row = TARGETS[target]
    version = next((each.version for each in model.opset_import if each.domain in ONNX_DOMAINS), 1)
    oldest, newest = row.opsets or (version, version)
    wrong = [] if oldest <= version <= newest else [f"operator set {version}, wanted {oldest} to {newest}"]
    for graph in graphs_of(model):
        found = [(node, why) for rule in row.rules for node, why in rule(graph)]
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
