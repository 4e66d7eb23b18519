"""The methods of post-training quantization by their names, and which of them go together."""

from collections.abc import Sequence
from dataclasses import dataclass

RANGES = ("histogram", "percentile", "mse")  # of activations: one of them is in use
MSE_WEIGHTS, EQUALIZE, CORRECT_BIASES, ADAROUND = "mse_weights", "equalize", "correct_biases", "adaround"
ON_WEIGHTS = (EQUALIZE, MSE_WEIGHTS, ADAROUND, CORRECT_BIASES)  # in the order in which they are done
BEST = "best"
BEST_METHODS = ("histogram", EQUALIZE, ADAROUND)  # what measurements chose, see docs/accuracy.md
# where training follows, which decides anew what adaround decided, see docs/training.md
START_METHODS = ("histogram", EQUALIZE, CORRECT_BIASES)
NAMES = (*RANGES, *ON_WEIGHTS, BEST)
TIME_LIMIT = 600.0  # seconds of learned rounding


@dataclass(frozen=True)
class PtqMethods:
    """How a network is quantized without training.

    Attributes:
        ranges: of activations, one of RANGES.
        on_weights: what is done to weights and biases, some of ON_WEIGHTS in that order.
        time_limit: seconds after which rounding is learned no further.
    """

    ranges: str = RANGES[0]
    on_weights: tuple[str, ...] = ()
    time_limit: float = TIME_LIMIT

    @property
    def names(self) -> list[str]:
        """As a file says them."""
        return [self.ranges, *self.on_weights]


USUAL = PtqMethods()  # ranges from histograms, and nothing else


def methods_of(names: Sequence[str], time_limit: float = TIME_LIMIT) -> PtqMethods:
    """The methods of these names; without a name of RANGES the first of it.

    Raises:
        ValueError: two ranges, or `best` beside others; says which.
    """
    if BEST in names:
        if others := [name for name in names if name != BEST]:
            raise ValueError(f"{BEST} stands for a combination; leave out {', '.join(others)}")
        names = BEST_METHODS
    if len(ranges := [name for name in RANGES if name in names]) > 1:
        raise ValueError(f"{' and '.join(ranges)} are each a way to find the ranges of activations; take one")
    on_weights = tuple(name for name in ON_WEIGHTS if name in names)
    return PtqMethods(ranges[0] if ranges else RANGES[0], on_weights, time_limit)
