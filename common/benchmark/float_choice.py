"""What was chosen to stay in float, as records: the blocks in their order, every step, the choice and its check.

The search is in float_search.py; what only reads its results, as the reports do, needs none of its libraries.
"""

from dataclasses import dataclass, field

MAX_MIOU_DROP, MIN_SQNR = "max_miou_drop", "min_sqnr_db"
FEWEST_EVALUATIONS = 4  # everything in int8, a block, a step, and the check


@dataclass(frozen=True)
class FloatLimit:
    """What INT8 has to keep against FP32: a largest loss of mIoU, 0..1, or a least SQNR of every output, dB."""

    name: str  # MAX_MIOU_DROP or MIN_SQNR
    wanted: float

    def keeps(self, figure: float) -> bool:
        """Whether a loss or an SQNR keeps it; nan does not."""
        return figure <= self.wanted if self.name == MAX_MIOU_DROP else figure >= self.wanted

    @property
    def better(self) -> int:
        """1 where larger figures are better, -1 where smaller ones are."""
        return -1 if self.name == MAX_MIOU_DROP else 1

    @property
    def title(self) -> str:
        """What its figure is called."""
        return "loss of mIoU" if self.name == MAX_MIOU_DROP else "SQNR (dB)"


@dataclass(frozen=True)
class RankedBlock:
    """A block alone in float, or some neighbours together, the rest quantized."""

    modules: list[str]
    gain_db: float  # of the outputs' SQNR
    lost_ms: float  # by the measured times of its layers in float and in int8
    gain_per_ms: float  # of at least LEAST_COST


@dataclass(frozen=True)
class FloatStep:
    """The network with some blocks in float, on the images to choose by; the field names are the keys of results.json.

    Attributes:
        figure: what the limit is of.
        error: its standard error over the images.
        int8_share: of the multiplications, 0..1.
        expected_ms: latency by the measured times of layers.
        latency_ms: p50 of its file in ONNX Runtime; None where no file was timed.
    """

    modules: list[str]
    figure: float
    error: float | None
    sqnr_db: float | None
    miou: float | None
    enough: bool
    int8_share: float
    expected_ms: float
    latency_ms: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """The file of the choice on images that it was not made by: the figure of the limit with its 95 % interval."""

    images: int
    figure: float
    low: float | None
    high: float | None
    sqnr_db: float | None
    miou: float | None
    miou_fp32: float | None


@dataclass(frozen=True)
class FloatChoice:
    """The field names are the keys of the document."""

    limit: str
    wanted: float
    evaluations: int  # accuracy of one candidate on some images, each
    max_evaluations: int
    images: int  # to choose by
    division: str  # of the images, in a sentence
    fp32_ms: float
    blocks: list[RankedBlock]  # the most gained for a millisecond first
    steps: list[FloatStep]  # the first with everything quantized
    chosen: int | None  # index into steps; None where none keeps the limit
    held_out: HeldOut | None = None  # of the choice
    kept: bool = False  # whether the limit holds on them
    command: str = ""  # that gets there directly
    modules: list[str] = field(default_factory=list)  # of the choice
