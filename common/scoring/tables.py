"""Scores as a table of text."""

from collections.abc import Mapping
from typing import Any

from common.system.markdown import table

NONE = "\N{EN DASH}"  # a class that does not occur has no score


def score_row(summary: Mapping[str, Any]) -> dict[str, str]:
    """The columns of one `IoUMeter.summary`."""
    return {
        "images": str(summary["images"]),
        "mIoU": _score(summary["miou"]),
        **{name: _score(value) for name, value in summary["iou"].items()},
        "mIoU smoothed": _score(summary["miou_smoothed"]),
        **{f"{name} smoothed": _score(value) for name, value in summary["iou_smoothed"].items()},
    }


def _score(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def score_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a dataset."""
    return table([{"dataset": name, **score_row(summary)} for name, summary in scores.items()])
