"""How an exported file takes a camera's images and tells classes, where that is another form than the network's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

LAYOUTS = ("nchw", "nhwc")
TYPES = ("float32", "uint8")
CHANNELS = ("rgb", "bgr")
OUTPUTS = ("logits", "classes")

T = TypeVar("T")


@dataclass(frozen=True)
class CameraFormat:
    """The form of a file's one image, and of its map of classes.

    Raises:
        ValueError: a field that is none of its values.
    """

    layout: str = "nchw"
    type: str = "float32"  # float32: normalised, as the network takes it; uint8: pixels, normalised in the file
    channels: str | None = None  # None: the network's own order
    output: str = "logits"  # or classes: uint8 (N, H, W), the first of the largest logits

    def __post_init__(self) -> None:
        for name, known in (("layout", LAYOUTS), ("type", TYPES), ("channels", (*CHANNELS, None)), ("output", OUTPUTS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r:.60}, wanted one of {', '.join(filter(None, known))}"
                )

    @property
    def changes_input(self) -> bool:
        """Whether a file takes something else than the network."""
        return (self.layout, self.type, self.channels) != (PLAIN.layout, PLAIN.type, PLAIN.channels)

    def axes(self, nchw: Sequence[T]) -> list[T]:
        """What stands for batch, channels, height and width, in the order of the file."""
        batch, channels, height, width = nchw
        return [batch, height, width, channels] if self.layout == "nhwc" else [batch, channels, height, width]

    def nchw(self, axes: Sequence[T]) -> list[T]:
        """The inverse of `axes`."""
        first, second, third, fourth = axes
        return [first, fourth, second, third] if self.layout == "nhwc" else [first, second, third, fourth]

    def described(self, order: str) -> dict[str, str]:
        """What a file says of it; `order` is the network's own."""
        channels = self.channels or order.lower()
        return {"layout": self.layout, "type": self.type, "channels": channels, "output": self.output}

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "CameraFormat":
        """The inverse of `described`; ValueError for what it never gives."""
        if not isinstance(described, Mapping) or set(described) != {"layout", "type", "channels", "output"}:
            raise ValueError(f"a camera's form is {described!r:.60}, wanted layout, type, channels and output")
        return cls(**described)


PLAIN = CameraFormat()
