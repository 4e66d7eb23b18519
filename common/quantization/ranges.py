"""Observers of post-training quantization: activations by histograms, weights by the least squared error."""

from bisect import bisect_left, bisect_right

import numpy as np
import torch
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e import ObserverBase as ObserverBase

STEP = 1e-5  # of a quantile, torchao's
# the quantiles of all steps from either side, each from the one before
LOWS, HIGHS = (np.cumsum([start, *[step] * (round(1 / STEP) + 2)]) for start, step in ((0.0, STEP), (1.0, -STEP)))
PERCENTILE = 99.99  # of the values are within, on either side
SHARES = torch.linspace(0, 1, 41)[1:]  # of an end of the range that are tried
LEAST_SHARE = 0.4  # of the largest weight, that are tried as the largest code


class ActivationObserver(HistogramObserver):
    """The range of an activation from a histogram of all that it was; hands the input on as it is.

    Args:
        ranges: `histogram`: torchao's search for the ends where rounding and clipping cost least, which goes inwards by
            quantiles; `percentile`: between the rarest values, see PERCENTILE; `mse`: `least_squares_range`.
        lower: inputs below it count as `lower`.
    """

    def __init__(self, ranges: str = "histogram", lower: float | None = None, **options: object):
        super().__init__(**options)
        self.ranges, self.lower = ranges, lower

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x if self.lower is None else x.clamp(min=self.lower))
        return x

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        ends = self.min_val.double().item(), self.max_val.double().item()
        if self.ranges == "histogram" or ends[0] == ends[1]:
            return self._search_by_quantiles()
        if self.ranges == "percentile":
            found = percentile_range(self.histogram, ends)
        else:
            found = least_squares_range(self.histogram, ends, self.quant_max - self.quant_min)
        smallest, largest = (torch.as_tensor(end).to(self.min_val) for end in found)
        return smallest, largest

    def _search_by_quantiles(self) -> tuple[Tensor, Tensor]:
        """torchao's search, which cuts off STEP of the values from that side where more bins go, until the error grows.

        Its ends to the last bit, in a small part of the time: torchao compares bin after bin as tensors, and takes
        every step, most of which cut off no bin.
        """
        below, total = self.histogram.cumsum(dim=0).tolist(), self.histogram.sum().item()
        lows, highs = ((quantiles * total).astype(np.float32) for quantiles in (LOWS, HIGHS))
        low = high = 0  # steps from either side
        first, last = 0, self.bins - 1
        least = float("inf")
        while first < last and LOWS[low] < HIGHS[high]:
            left = min(max(bisect_left(below, lows[low + 1]), first), last)
            right = max(min(bisect_right(below, highs[high + 1]) - 1, last), first)
            ends = first, last
            if left - first > last - right:
                ends, low = (left, last), low + 1
            elif right < last:
                ends, high = (first, right), high + 1
            else:  # to the step before the one that cuts off the last bin
                high = int(np.searchsorted(-highs, -below[last], side="right")) - 1
                continue
            error = self._compute_quantization_error(*ends)
            if error > least:
                break
            least, (first, last) = error, ends
        width = (self.max_val - self.min_val) / self.bins
        return self.min_val + width * first, self.min_val + width * (last + 1)


def percentile_range(histogram: Tensor, ends: tuple[float, float]) -> tuple[float, float]:
    """The ends between which all but the rarest values are: 1 - PERCENTILE / 100 of them are cut off on either side.

    `histogram` (bins,) counts values from the first to the second of `ends`, in bins of one width.
    """
    width = (ends[1] - ends[0]) / len(histogram)
    below = histogram.double().cumsum(dim=0) / histogram.double().sum()
    cut = 1 - PERCENTILE / 100
    first, last = int((below <= cut).sum()), int((below < 1 - cut).sum())
    return ends[0] + first * width, ends[0] + (last + 1) * width


def least_squares_range(histogram: Tensor, ends: tuple[float, float], steps: int) -> tuple[float, float]:
    """The ends (a, b) of least sum over values of (x - r(x))^2, r rounding clip(x, a, b) to steps of (b - a) / `steps`.

    Both ends are tried in 40 shares of what was seen, and 0 is between them. `histogram` as in `percentile_range`.
    Values have to be rounded one by one: most of an activation lie nearer to 0 than a step, and cost less than the
    step^2 / 12 of evenly spread ones.
    """
    counts = histogram.float().cpu()
    width = (ends[1] - ends[0]) / len(counts)
    centres = ends[0] + width * (torch.arange(len(counts)) + 0.5)
    lows, highs = (torch.unique(end * SHARES) for end in (min(ends[0], 0.0), max(ends[1], 0.0)))
    costs = []
    for low in lows:
        step = ((highs - low) / steps)[:, None]
        rounded = (torch.minimum(centres.clamp(min=low), highs[:, None]) / step).round() * step
        costs.append((rounded - centres).square() @ counts)
    row, column = divmod(int(torch.stack(costs).argmin()), len(highs))
    return lows[row].item(), highs[column].item()


def least_squares_share(weights: Tensor, largest_code: int) -> Tensor:
    """Of each row of `weights` (rows, n) the share of its largest value that as largest code rounds it best, (rows,).

    Least mean squared error of clip(round(w / s)) s, with s = share * max |w| / `largest_code`.
    """
    largest = weights.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    best, least = torch.ones_like(largest), torch.full_like(largest, torch.inf)
    for share in torch.linspace(1, LEAST_SHARE, 61).tolist():
        scale = share * largest / largest_code
        rounded = (weights / scale).round().clamp(-largest_code, largest_code) * scale
        error = (rounded - weights).square().mean(dim=1, keepdim=True)
        better = error < least
        best, least = torch.where(better, share, best), torch.where(better, error, least)
    return best.flatten()


class SquaredErrorObserver(MinMaxObserver):
    """The range of weights, of all of them, in which rounding and clipping them cost least (mean square)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.min_val.isfinite():  # weights are the same for all images
            super().forward(x)
            share = least_squares_share(x.detach().reshape(1, -1), self.quant_max)[0]
            self.min_val.mul_(share)
            self.max_val.mul_(share)
        return x


class SquaredErrorPerChannelObserver(PerChannelMinMaxObserver):
    """The same of each output channel."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.min_val.numel():
            super().forward(x)
            share = least_squares_share(x.detach().movedim(self.ch_axis, 0).flatten(1), self.quant_max)
            self.min_val.mul_(share)
            self.max_val.mul_(share)
        return x
