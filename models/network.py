"""A network as the scripts see it: one row that says how it is built, what it takes and what it gives."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a row is known without PyTorch, of which --help has no need
    from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNEL_ORDERS = ("RGB", "BGR")
MOST_CLASSES = 254  # a mask is 8 bits, 255 is what is ignored
OUTPUT_KINDS = {
    "classes": "logits of classes on axis 1, of which one holds",
    "logits": "independent logits, each of something that is there where it is above 0",
    "values": "anything else: depths, boxes, distances",
}
TENSOR_NAME = re.compile(r"[A-Za-z_]\w*")  # of an input or output, as every runtime takes it

Colour = tuple[int, int, int]  # RGB, 0..255


@dataclass(frozen=True)
class Network:
    """What the scripts need to know of a network; `build` and `input_shape` are enough for one that segments images.

    Raises:
        ValueError: a field that cannot be meant so; the message names it.
    """

    build: Callable[..., "nn.Module"]  # build() or build(width=1.0): random weights, nothing is downloaded
    input_shape: tuple[int, int, int]  # native channels, height, width
    # name -> meaning; several are consecutive images in the order of time, each of `input_shape`
    inputs: Mapping[str, str] = field(default_factory=lambda: {"input": "image, (pixel / 255 - mean) / std"})
    outputs: Mapping[str, str] | None = None  # name -> meaning; None: `output`, or `output_0`, ... of a tuple
    # name -> one of OUTPUT_KINDS, for outputs that task and shape would take for another kind
    output_kinds: Mapping[str, str] = field(default_factory=dict)
    task: str = "segmentation"
    mean: tuple[float, ...] | None = IMAGENET_MEAN  # of 0..1, in `channel_order`; None: the input is no image
    std: tuple[float, ...] | None = IMAGENET_STD
    channel_order: str = "RGB"
    # what labels tell apart: names of the output's first channels, of lane maps, of the kinds of objects of a detector;
    # (): class 0, class 1, ...
    classes: tuple[str, ...] = ()
    colours: tuple[Colour, ...] = ()  # of the classes in pictures; (): distinguishable ones
    mask_colours: Mapping[Colour, str] = field(default_factory=dict)  # stored colour -> class, of data without labels
    size_multiple: int | None = 1  # height and width of the input are multiples of it; None: the native size alone
    published_keys: tuple[
        tuple[str, str], ...
    ] = ()  # (published, ours) prefixes of the weights' names, where they differ
    width_key: tuple[str, int] | None = None  # a published key and its first axis at width 1: their ratio is the width
    # build_for(state): of these weights' shapes, where several exist
    build_for: Callable[..., "nn.Module"] | None = None
    made_by: tuple[str, int] | None = None  # the network whose outputs on so many consecutive images are the input

    def __post_init__(self) -> None:
        _require(callable(self.build), "build", self.build, "a class or function that makes the network")
        sizes = self.input_shape
        _require(_is_shape(sizes), "input_shape", sizes, "(channels, height, width)")
        _require(self.channel_order in CHANNEL_ORDERS, "channel_order", self.channel_order, " or ".join(CHANNEL_ORDERS))
        for name in ("inputs", "outputs"):
            _require(_are_tensor_names(getattr(self, name)), name, getattr(self, name), "a dict of name -> meaning")
        for name, kind in self.output_kinds.items():
            _require(kind in OUTPUT_KINDS, f"output_kinds[{name!r}]", kind, ", ".join(OUTPUT_KINDS))
            _require(self.outputs is None or name in self.outputs, "output_kinds", name, "the name of an output")
        self._check_normalisation()
        self._check_classes()
        step = self.size_multiple
        _require(step is None or (type(step) is int and step > 0), "size_multiple", step, "a whole number, or None")
        if step and (sizes[1] % step or sizes[2] % step):
            raise ValueError(f"input_shape {sizes}: height and width have to be multiples of size_multiple {step}")

    @property
    def channels(self) -> int:
        """Of all inputs together, which the toolkit hands on as one tensor (N, channels, H, W)."""
        return self.input_shape[0] * len(self.inputs)

    @property
    def images(self) -> int:
        """How many consecutive images an input is made of."""
        return self.made_by[1] if self.made_by else len(self.inputs)

    @property
    def maps_classes(self) -> bool:
        """Whether its first output is a map of classes of which one holds at each pixel, as masks name them."""
        return self.task == "segmentation" and len(self.classes) > 1

    def kind_of(self, output: str, shape: Sequence[int]) -> str:
        """Which of OUTPUT_KINDS the output of that name and shape is."""
        if output in self.output_kinds:
            return self.output_kinds[output]
        if self.task == "segmentation" and len(shape) == 4:
            return "classes" if shape[1] > 1 else "logits"
        return {"lanes": "logits", "steering": "classes"}.get(self.task, "values")

    def kinds_of(self, shapes: Sequence[Sequence[int]]) -> list[str]:
        """The kinds of all outputs, in their order, which have these shapes."""
        return [self.kind_of(name, shape) for name, shape in zip(self.outputs or (), shapes, strict=True)]

    def _check_normalisation(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std: give both, or None for both where the input is no image")
        for name in ("mean", "std") if self.mean is not None else ():
            values = getattr(self, name)
            wanted = f"{self.input_shape[0]} numbers, one for each channel"
            _require(_are_numbers(values, self.input_shape[0]), name, values, wanted)
        _require(self.std is None or all(self.std), "std", self.std, "numbers other than 0")

    def _check_classes(self) -> None:
        names = self.classes
        known = isinstance(names, tuple) and all(isinstance(name, str) and name.strip() for name in names)
        _require(known and len(set(names)) == len(names), "classes", names, "a tuple of different names")
        _require(len(names) <= MOST_CLASSES, "classes", len(names), f"at most {MOST_CLASSES}")
        if self.colours and len(self.colours) != len(names):
            raise ValueError(f"colours: {len(self.colours)} for {len(names)} classes; give one for each, or none")
        for name, colours in (("colours", self.colours), ("mask_colours", self.mask_colours)):
            _require(all(map(_is_colour, colours)), name, colours, "(red, green, blue) of 0 to 255 each")
        for name in self.mask_colours.values():
            _require(name in names, "mask_colours", name, f"one of the classes: {', '.join(names)}")


def check_input_hw(network: Network, input_hw: tuple[int, int]) -> None:
    """Raise ValueError for an input size that the network cannot take."""
    height, width = input_hw
    step = network.size_multiple
    if step is None:
        if input_hw != network.input_shape[1:]:
            native = "x".join(map(str, network.input_shape[1:]))
            raise ValueError(f"input size {height}x{width}: this network is bound to {native}")
    elif min(input_hw) <= 0 or height % step or width % step:
        raise ValueError(f"input size {height}x{width}: height and width have to be multiples of {step}")


def _require(accepted: bool, name: str, found: object, wanted: str) -> None:
    if not accepted:
        raise ValueError(f"{name} is {found!r:.60}, wanted {wanted}")


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(type(each) is int and each > 0 for each in value)


def _is_colour(value: object) -> bool:
    return (
        isinstance(value, tuple) and len(value) == 3 and all(type(each) is int and 0 <= each <= 255 for each in value)
    )


def _are_numbers(values: object, count: int) -> bool:
    if not isinstance(values, tuple) or len(values) != count:
        return False
    return all(isinstance(each, int | float) and abs(each) < float("inf") for each in values)


def _are_tensor_names(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, Mapping) and bool(value) and all(TENSOR_NAME.fullmatch(str(name)) for name in value)
