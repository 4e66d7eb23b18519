"""What quantization costs where, as records: the errors of the layers, and what blocks gain in float.

The analysis is in sensitivity_analysis.py; what only reads its results, as the reports do, needs none of its libraries.
"""

import math
from dataclasses import dataclass

WORST_LAYERS = 10  # of these, what each alone in float would bring is measured, too


@dataclass(frozen=True)
class LayerError:
    """Errors of one layer as signal-to-quantization-noise ratios in dB; None where there is no noise or no signal."""

    module: str
    operator: str
    weight_sqnr_db: float | None  # its weights, rounded; None also where it has none
    output_sqnr_db: float | None  # its exact output, rounded
    propagated_sqnr_db: float | None  # its output with everything before it quantized, too
    gain_db: float | None = None  # of the logits with this layer alone in float; measured for the first WORST_LAYERS

    @property
    def own(self) -> float:
        """The worse of the two errors that the layer itself makes."""
        return min(math.inf if value is None else value for value in (self.weight_sqnr_db, self.output_sqnr_db))


@dataclass(frozen=True)
class BlockGain:
    """The network with some modules in float and the rest quantized."""

    modules: list[str]
    layers: int  # with weights
    sqnr_db: float | None  # of the logits against FP32
    gain_db: float | None  # that, less the same with everything quantized
    miou: float | None


@dataclass(frozen=True)
class Sensitivity:
    """The field names are the keys of the document."""

    images: int
    sqnr_db: float | None  # of the logits with everything quantized, against FP32
    miou_fp32: float | None
    miou_int8: float | None
    blocks: list[BlockGain]  # the largest gain first
    proposed: BlockGain | None  # the best blocks together; None where none gains enough
    command: str  # that trains with them in float; empty where none is proposed
    layers: list[LayerError]  # the largest error of its own first
    coarse: list[str]  # modules of the layers below COARSE
