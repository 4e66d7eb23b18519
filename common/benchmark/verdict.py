"""The answer in a sentence: what a model gives and takes against the reference."""

import math

from common.scoring.statistics import Interval

SAME_SIZE = 0.05  # share of the size; two files closer than this are called about equal
TOLERATED = 0.01  # of the mIoU
NO_CHANGE = 5e-5  # what four decimals do not show


def verdict(
    reference: str,
    label: str,
    reference_miou: float,
    miou: float,
    difference: Interval,
    speedup: Interval,
    size_ratio: float,
) -> tuple[str, str]:
    """What happened to the accuracy in a word (kept, lost, gained or unknown), and all of it in two sentences."""
    tag, accuracy = accuracy_words(difference)
    return tag, (
        f"{label} against {reference}: {size_words(size_ratio)}, {speed_words(speedup)}. "
        f"mIoU {miou:.4f} against {reference_miou:.4f}, {accuracy}."
    )


def accuracy_words(
    difference: Interval, higher_is_better: bool = True, tolerated: float = TOLERATED
) -> tuple[str, str]:
    """What happened to the accuracy in a word (kept, lost, gained or unknown), and how a figure of it changed.

    Args:
        difference: of the figure, the model's minus the reference's.
        tolerated: accuracy is called kept only where a larger loss is ruled out.
    """
    if difference.ends is None:
        value = "not known" if math.isnan(difference.value) else f"of {difference.value:+.4f}"
        return "unknown", f"a difference {value}; too few images to tell it from chance"
    low, high = difference.ends
    if max(abs(low), abs(high)) < NO_CHANGE:
        return "kept", "no difference"
    change = f"a difference of {difference.value:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
    if not difference.excludes_zero:
        at_most = max(0.0, -low if higher_is_better else high)
        if at_most > tolerated:
            return (
                "unknown",
                f"{change}: not significant, but a loss of {at_most:.4f} is not ruled out; take more images",
            )
        return "kept", f"{change}: no significant difference; a loss above {at_most:.4f} is unlikely"
    if (difference.value < 0) == higher_is_better:
        return "lost", f"{change}: accuracy is lost, by more than chance"
    return "gained", f"{change}: more than chance in its favour"


def size_words(ratio: float) -> str:
    """The size against the reference's."""
    if abs(ratio - 1) <= SAME_SIZE:
        return "about the same size"
    return f"{1 / ratio:.1f} times smaller" if ratio < 1 else f"{ratio:.1f} times larger"


def speed_words(speedup: Interval) -> str:
    """The speed against the reference's."""
    if speedup.ends is None:
        return f"{speedup.value:.2f} times as fast (too few images for an interval)"
    low, high = speedup.ends
    interval = f"{speedup.value:.2f} times as fast (95 % interval {low:.2f} to {high:.2f})"
    if low <= 1 <= high:
        return f"no significant difference in speed: {interval}"
    return interval
