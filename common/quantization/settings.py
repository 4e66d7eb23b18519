"""The choices of quantization that are saved with a network."""

from dataclasses import dataclass

from common.runtimes.targets import DEFAULT_TARGET, TARGETS


@dataclass(frozen=True)
class QuantizationSettings:
    """Choices that shape the prepared graph; a checkpoint can be rebuilt only with the ones it was trained with."""

    per_channel: bool = False  # one weight scale per output channel, instead of one per tensor (the original's)
    fused: bool = True  # upsampling stages in their fused form, models/fuse.py
    keep_float: tuple[str, ...] = ()  # modules that are not quantized, by patterns for their names
    target: str = DEFAULT_TARGET  # the runtime that it is for, one of TARGETS
    reduced_range: bool = False  # codes of weights are -64..63, whose sums fit into 16 bits by twos

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target is {self.target!r:.60}, wanted one of {', '.join(TARGETS)}")
        if not isinstance(self.keep_float, tuple | list) or not all(isinstance(each, str) for each in self.keep_float):
            raise ValueError(f"keep_float is {self.keep_float!r:.60}, wanted patterns for names")


@dataclass(frozen=True)
class QatSchedule:
    """When QAT stops updating its statistics: from these epochs on, counted from 0, they stay as they are."""

    freeze_batch_norm: int = 1
    freeze_observers: int = 2

    def __post_init__(self) -> None:
        if self.freeze_observers < self.freeze_batch_norm:
            raise ValueError(
                f"observers freeze after {self.freeze_observers} epochs, before batch norm after "
                f"{self.freeze_batch_norm}; they would keep ranges that later statistics change"
            )
