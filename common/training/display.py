"""How a run shows itself: the progress bar of an epoch, and the figures of each moment for those who keep them."""

import time
from dataclasses import dataclass

from tqdm import tqdm

from common.system.progress import progress
from common.training.steps import Position, Step, Waiting


@dataclass(frozen=True)
class Moment:
    """A point of the run at which a checkpoint is due: after `checkpoint_interval` samples, and after an epoch.

    Also where a signal stops the run: then `stopped` is set, and `position.due` says whether a checkpoint was due.
    The figures are those since the last moment, 0 for one that a resumed run has to make up for.
    """

    position: Position  # from which a resumed run goes on
    learning_rate: float = 0.0
    images_per_second: float = 0.0
    data_wait: float = 0.0  # share of the time spent waiting for the loader
    stopped: bool = False

    @property
    def loss(self) -> float:
        """Mean over the steps."""
        return self.position.loss_sum / max(self.position.loss_count, 1)


class Display:
    """Counts what is trained between two moments, and keeps the bar."""

    def __init__(self, batches: Waiting, epoch_length: int, epochs: int):
        self.batches, self.epoch_length, self.epochs = batches, epoch_length, epochs
        self.bar: tqdm | None = None
        self.rate, self.images, self.started, self.waited = 0.0, 0, time.perf_counter(), 0.0

    def start(self, step: Step) -> None:
        """Training goes on with `step`, after a moment or at the start."""
        self.bar = progress(
            None, f"epoch {step.epoch + 1}/{self.epochs}", "image", total=self.epoch_length, initial=step.first
        )
        self.images, self.started, self.waited = 0, time.perf_counter(), self.batches.seconds

    def update(self, step: Step, loss: float, rate: float) -> None:
        """A step is done."""
        self.images += step.count
        self.rate = rate
        self.bar.update(step.count)
        self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.1e}", wait=f"{self._data_wait():.0%}", refresh=False)

    def moment(self, position: Position, stopped: bool = False) -> Moment:
        """What was counted since the last moment; the bar goes."""
        if self.bar is not None:
            self.bar.close()
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return Moment(position, self.rate, self.images / seconds, self._data_wait(), stopped)

    def _data_wait(self) -> float:
        return (self.batches.seconds - self.waited) / max(time.perf_counter() - self.started, 1e-9)
