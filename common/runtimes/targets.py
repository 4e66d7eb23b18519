"""The runtimes that a quantized network is written for, and what each of them wants of its file."""

from dataclasses import dataclass, replace


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
    channelwise: bool = False  # factors by channel become depthwise convolutions, a PReLU a sum of two
    unsigned: bool = False  # codes of activations are uint8; else int8
    pads_channels: bool = False  # of convolutions, to multiples of 4 and 16
    rounds_biases: bool = False  # to whole steps of the integer sum

    # the exporter
    slow_pools: bool = False  # average pools of operator set 19 and newer take ten times as long as older ones
    integers: bool = False  # biases as int32 codes, no zero points of 0 and no computed shapes, where it can be
    float_weights: bool = False  # stored in front of a QuantizeLinear; else as codes
    takes_half: bool = False  # what is not in int8 may be in FP16
    takes_optimized: bool = False  # files may hold its own integer operators in the place of pairs
    batch: int | None = None  # of files where no flag says otherwise; None: a dynamic axis
    opsets: tuple[int, int] | None = None  # ONNX operator sets that it reads, the oldest and the newest; None: no ONNX
    # on which share of pixels a file has to agree with exact integer arithmetic; where a runtime rounds in other places
    # fewer do: on CamVid 0.994 of an eighth-width SceneSeg's in XNNPACK
    equal_pixels: float = 0.98

    def fits(self, trained: "Target") -> bool:
        """Whether a network that was quantized for another target has what this one wants of the quantizer."""
        return (self.symmetric, self.fuses_activations) == (trained.symmetric, trained.fuses_activations)


ONNX_RUNTIME = Target(
    "ONNX Runtime",
    ".onnx",
    shuffle="rows",
    moves_codes=True,
    gates=("silu", "gelu"),
    channelwise=True,
    unsigned=True,
    pads_channels=True,
    rounds_biases=True,
    opsets=(7, 25),
    slow_pools=True,
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
    ),
    # which computes SiLU and GELU in float with the convolution before them: 1.12 and 1.23 times as fast as gates
    # (AutoSpeed, and SceneSeg of an eighth of the width); a fixed batch is 1.3 to 1.8 times as fast as a dynamic one
    # (AutoSpeed, ESPNet, TwinLiteNet)
    "openvino": replace(
        ONNX_RUNTIME,
        title="OpenVINO",
        gates=(),
        channelwise=False,
        pads_channels=False,
        batch=1,
        takes_optimized=False,
        slow_pools=False,
        equal_pixels=Target.equal_pixels,
    ),
    # SiLU as an int8 gate is faster there (656 instead of 672 ms of SceneSeg); GELU is not
    "executorch": Target("ExecuTorch", ".pte", shuffle="planes", gates=("silu",)),
}
DEFAULT_TARGET = "onnxruntime"


def of_target(target: str) -> dict[str, str]:
    """What a file says of its target; nothing where it is the usual one."""
    return {} if target == DEFAULT_TARGET else {"target": target}
