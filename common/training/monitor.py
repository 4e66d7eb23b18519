"""The record of a run: history.json, metrics.csv, a line in the log, and TensorBoard where asked for."""

import csv
import importlib.util
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.system.files import write_json, write_text
from common.training.loop import Moment
from common.training.task import TOGETHER, Scores

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


def require_tensorboard() -> None:
    """Fail before the training, not at its first checkpoint.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("--tensorboard: the package is not installed; pip install tensorboard, or leave the flag out")


class Monitor:
    """Writes down every moment of a run, below `folder`.

    Args:
        tensorboard: write events for TensorBoard, too; those from step `start_step` on are of this run.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, start_step: int):
        self.folder = folder
        self.events = _open_tensorboard(folder, start_step) if tensorboard else None

    def record(self, history: list[dict[str, Any]], moment: Moment, score: str) -> None:
        """Write the last entry of `history`, made by `entry`, with what it took to get there; the log has `score`."""
        write_json(self.folder / "history.json", history)
        row = {
            **_flat(history[-1]),
            "learning_rate": moment.pace.learning_rate,
            "images_per_second": round(moment.pace.images_per_second, 2),
            "data_wait": round(moment.pace.data_wait, 4),
        }
        add_row(self.folder / "metrics.csv", row)
        if self.events is not None:
            for name, value in row.items():
                if isinstance(value, int | float):
                    self.events.add_scalar(name, value, row["step"])
            self.events.flush()
        _log(row, score)


def entry(moment: Moment, scores: Scores) -> dict[str, Any]:
    """What the history keeps of a moment: nothing that a resumed run would give differently."""
    position = moment.position
    return {"epoch": position.trained_epoch, "step": position.step, "loss": moment.loss, **scores[TOGETHER]}


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A dict of columns: {"iou": {"Road": 0.5}} becomes {"iou Road": 0.5}."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= {f"{key} {name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a CSV file, whole or not at all, and drop rows of its step or later ones: a resumed run's past."""
    rows = []
    if path.exists():
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [each for each in csv.DictReader(file) if int(each["step"]) < row["step"]]
        except (ValueError, KeyError, TypeError, csv.Error) as error:  # not worth the run
            logger.warning("%s: damaged (%s); begun anew", path, error)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows([*rows, row])
    write_text(path, text.getvalue())


def _log(row: dict[str, Any], score: str) -> None:
    logger.info(
        "epoch %d step %d: loss %.4f, %s; %.1f images/s, %.0f %% of the time waiting for data",
        *(row[key] for key in ("epoch", "step", "loss")),
        score,
        row["images_per_second"],
        100 * row["data_wait"],
    )


def _open_tensorboard(folder: Path, start_step: int) -> "SummaryWriter":
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter  # here: an optional dependency

    return SummaryWriter(folder / "tensorboard", purge_step=start_step)
