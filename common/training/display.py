"""How a run shows itself: the progress bar of an epoch, and how fast it goes."""

import time
from dataclasses import dataclass

from tqdm import tqdm

from common.system.progress import progress
from common.training.steps import LoadedSteps, Step


@dataclass(frozen=True)
class Pace:
    """What a run did between two moments; all 0 for a moment that a resumed run has to make up for."""

    learning_rate: float = 0.0  # of the last step
    images_per_second: float = 0.0
    data_wait: float = 0.0  # share of the time spent waiting for the loader


class Display:
    """Counts what is trained between two moments, and keeps the bar."""

    def __init__(self, steps: LoadedSteps, epoch_length: int, epochs: int):
        self.steps, self.epoch_length, self.epochs = steps, epoch_length, epochs
        self.bar: tqdm | None = None
        self.rate, self.images, self.started, self.waited = 0.0, 0, time.perf_counter(), 0.0

    def start(self, step: Step) -> None:
        """Training goes on with `step`, after a moment or at the start."""
        self.bar = progress(
            None, f"epoch {step.epoch + 1}/{self.epochs}", "image", total=self.epoch_length, initial=step.first
        )
        self.images, self.started, self.waited = 0, time.perf_counter(), self.steps.seconds

    def update(self, step: Step, loss: float, rate: float) -> None:
        """A step is done."""
        self.images += step.images
        self.rate = rate
        if self.bar is not None:
            self.bar.update(step.images)
            self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.1e}", wait=f"{self._data_wait():.0%}", refresh=False)

    def stop(self) -> Pace:
        """What was counted since the start; the bar goes."""
        if self.bar is not None:
            self.bar.close()
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return Pace(self.rate, self.images / seconds, self._data_wait())

    def _data_wait(self) -> float:
        return (self.steps.seconds - self.waited) / max(time.perf_counter() - self.started, 1e-9)
