"""Observers of post-training quantization: activations by histograms, weights by the least squared error."""

import torch
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e import ObserverBase as ObserverBase

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
            return super()._non_linear_param_search()
        if self.ranges == "percentile":
            found = percentile_range(self.histogram, ends)
        else:
            found = least_squares_range(self.histogram, ends, self.quant_max - self.quant_min)
        smallest, largest = (torch.as_tensor(end).to(self.min_val) for end in found)
        return smallest, largest


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
