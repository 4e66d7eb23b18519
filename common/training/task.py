"""What a run learns: the loop is one, and a task says what a batch is, what the loss is, and what a model scores."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from common.training.settings import RunSettings, TrainingSettings

Batch = tuple[Tensor, ...]  # what is learned from some images; the images come first, and axis 0 counts them
LossOf = Callable[[nn.Module, Batch], Tensor]  # the mean loss of a model on a batch, which is on the CPU
Scores = dict[str, dict[str, Any]]  # by dataset, and of all under TOGETHER
TOGETHER = "together"


class Task(Protocol):
    """What is learned from which images, and by what it is judged."""

    @property
    def best_by(self) -> str:
        """The figure of `score` of which the best weights have most."""

    @property
    def starts_in_int8(self) -> bool:
        """Whether what a run starts from is a candidate for the best weights, which is scored before the first step."""

    @property
    def can_get_worse(self) -> bool:
        """Whether the best weights of a run are its result, where those at its end are not as good."""

    def dataset(self, settings: RunSettings) -> Dataset:
        """The training images: `[epoch, index]` gives a Batch without its axis 0."""

    def loss(self, settings: TrainingSettings) -> LossOf:
        """The loss that is trained with."""

    def calibration(self, count: int, batch_size: int, settings: RunSettings) -> Iterable[Tensor]:
        """Inputs of the network, on its device, from at most `count` training images."""

    def score(self, model: nn.Module, settings: RunSettings) -> Scores:
        """What a model in evaluation mode scores on the images that are kept for it; every rank has to take part."""

    def draw(self, model: nn.Module, folder: Path, count: int, step: int) -> None:
        """Write pictures of `count` validation images of each dataset below `folder`."""

    def identity(self) -> dict[str, Any]:
        """What of it makes a run this one and no other: a resumed run has to have the same."""

    def sentence(self, scores: Scores) -> str:
        """Scores in a few words, for the log."""

    def table(self, scores: Scores) -> str:
        """Scores as a table."""


def read_best(history: Sequence[dict[str, Any]], task: Task) -> float:
    """The best figure of a history that is not empty."""
    return max(entry[task.best_by] for entry in history)
