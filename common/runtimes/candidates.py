"""The models of a benchmark: what kind of file each is, how it is opened in any process, and what it takes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common.data.camera import PLAIN, CameraFormat
from common.networks.checkpoints import load_network
from common.networks.registry import find_network
from common.runtimes.kinds import KINDS
from common.runtimes.onnx_files import (
    data_files,
    fixed_hw,
    read_graph,
    require_image_input,
    stored_camera,
    stored_precision,
)
from common.runtimes.predictors import OnnxPredictor, Predictor, TorchPredictor, require_provider
from common.runtimes.providers import CPU
from common.runtimes.pte import PtePredictor
from common.runtimes.traced import exported_hw, read_exported, read_torchscript, torchscript_hw
from models import check_input_hw

SHORT_FORMS = {
    "PyTorch": ".pth",
    "ONNX FP32": ".onnx",
    "ONNX INT8": ".onnx",
    "ExecuTorch": ".pte",
}  # label of a short flag -> suffix of its files


Form = tuple[tuple[int, int], CameraFormat]  # height and width, and all of the camera's form but for the output


@dataclass(frozen=True)
class Candidate:
    """A model to benchmark: how to open it (in any process), and how it takes its images."""

    path: Path
    open: Callable[[int], Predictor]  # of the number of CPU threads; pickles
    precision: str  # fp32, fp16, int8, or unknown where a file does not say
    input_hw: tuple[int, int]
    beside: tuple[Path, ...] = ()  # other files that it keeps weights in
    camera: CameraFormat = PLAIN  # the form of its image and of its map of classes

    @property
    def files(self) -> tuple[Path, ...]:
        """All that has to be copied, and counts for its size."""
        return (self.path, *self.beside)

    @property
    def form(self) -> Form:
        """What an image has to be: models of one form take the same tensor."""
        return self.input_hw, replace(self.camera, output=PLAIN.output)

    @property
    def dtype(self) -> torch.dtype:
        """Of its input."""
        return torch.uint8 if self.camera.type == "uint8" else torch.float32

    def input_shape(self, channels: int) -> list[int]:
        """Of one input, whose images have `channels` together."""
        return self.camera.axes((1, channels, *self.input_hw))

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class OpenOptions:
    """What the command line says of all models."""

    device: torch.device  # of the PyTorch kinds
    threads: int
    network: str  # its name: which one the weights of a .pth are of, and whose input size a file has that says none
    pytorch_hw: tuple[int, int] | None = None  # None: the file's own, or the network's
    onnx_hw: tuple[int, int] | None = None
    provider: str = CPU  # of ONNX Runtime
    weights: str | None = None  # which of several sets in a checkpoint


def open_candidates(
    models: Sequence[tuple[str, Path, str]], options: OpenOptions, providers: Sequence[str] = (CPU,)
) -> dict[str, Candidate]:
    """Label -> candidate for (label, path, suffix), in that order; a wrong file fails here, before any timing.

    Each ONNX file is opened with each of ONNX Runtime's `providers`; with several, its labels name them.

    Raises:
        ValueError: no model, two of one name, an unknown kind, a file that is not what its kind or label says, or a
            provider that is not there or does not take all of a file.
    """
    for each in providers:
        require_provider(each)
    if not models:
        raise ValueError(
            "no model given; name one with --model NAME=PATH, or with --pytorch_model_path, --fp32_model_path or "
            "--int8_model_path"
        )
    candidates: dict[str, Candidate] = {}
    for label, path, suffix in models:
        if suffix not in KINDS:
            raise ValueError(f"{path}: no kind of model file ends in {suffix!r}; known: {', '.join(KINDS)}")
        several, opener = suffix == ".onnx" and len(providers) > 1, OPENERS[KINDS[suffix]]
        named = {f"{label}, {each}": each for each in providers} if several else {label: providers[0]}
        if named.keys() & candidates.keys():
            raise ValueError(f"two models are named {label!r}; give each a name of its own with --model NAME=PATH")
        opened = {name: opener(path, replace(options, provider=provider)) for name, provider in named.items()}
        candidates |= opened
        precision = next(iter(opened.values())).precision
        if suffix == ".onnx" and label in SHORT_FORMS and (precision == "int8") != (label == "ONNX INT8"):
            raise ValueError(f"{path}: an {precision} file given as {label}; use the other flag")
    return candidates


def _checkpoint(path: Path, options: OpenOptions) -> Candidate:
    _, description = load_network(options.network, path, options.weights)
    input_hw = options.pytorch_hw or description.input_hw
    check_input_hw(find_network(options.network)[1], input_hw)
    opener = partial(_open_checkpoint, options.network, path, options.device, options.weights)
    return Candidate(path, opener, "fp32", input_hw)


def _open_checkpoint(
    network: str, path: Path, device: torch.device, weights: str | None, threads: int
) -> TorchPredictor:
    torch.set_num_threads(threads)
    return TorchPredictor(load_network(network, path, weights)[0], device)


def _torchscript(path: Path, options: OpenOptions) -> Candidate:
    precision = _precision(read_torchscript(path, torch.device("cpu")).state_dict().values())
    input_hw = _traced_hw(path, torchscript_hw(path), options)
    return Candidate(path, partial(_open_torchscript, path, options.device), precision, input_hw)


def _open_torchscript(path: Path, device: torch.device, threads: int) -> TorchPredictor:
    torch.set_num_threads(threads)
    return TorchPredictor(read_torchscript(path, device), device)


def _exported(path: Path, options: OpenOptions) -> Candidate:
    module = read_exported(path, torch.device("cpu"))
    tensors = [value for value in (*module.parameters(), *module.buffers(), *vars(module).values())]
    precision = _precision(value for value in tensors if isinstance(value, Tensor))
    input_hw = _traced_hw(path, exported_hw(path), options)
    return Candidate(path, partial(_open_exported, path, options.device), precision, input_hw)


def _open_exported(path: Path, device: torch.device, threads: int) -> TorchPredictor:
    torch.set_num_threads(threads)
    return TorchPredictor(read_exported(path, device), device)


def _traced_hw(path: Path, own: tuple[int, int] | None, options: OpenOptions) -> tuple[int, int]:
    """A traced file is bound to the size it was traced with."""
    if own and options.pytorch_hw and own != options.pytorch_hw:
        raise ValueError(f"--pytorch_target_hw {options.pytorch_hw}: {path} is fixed to {own}; leave the flag out")
    return own or options.pytorch_hw or _native_hw(options)


def _onnx(path: Path, options: OpenOptions) -> Candidate:
    model = read_graph(path)
    row = find_network(options.network)[1]
    channels = row.input_shape[0]
    camera = stored_camera(model, path)
    require_image_input(model, path, channels, len(row.inputs), camera)
    own = fixed_hw(model, camera)
    if own and options.onnx_hw and own != options.onnx_hw:
        raise ValueError(f"--onnx_target_hw {options.onnx_hw}: {path} is fixed to {own}; leave the flag out")
    input_hw = own or options.onnx_hw or _native_hw(options)
    opener = partial(OnnxPredictor, path, provider=options.provider, shape=camera.axes((1, channels, *input_hw)))
    opener(options.threads)  # what the runtime does not take fails here
    return Candidate(path, opener, stored_precision(model), input_hw, tuple(data_files(model, path)), camera)


def _program(path: Path, options: OpenOptions) -> Candidate:
    predictor = PtePredictor(path, options.threads)
    own = predictor.input_hw
    if options.onnx_hw and own != options.onnx_hw:
        raise ValueError(f"--onnx_target_hw {options.onnx_hw}: {path} is fixed to {own}; leave the flag out")
    precision = str(predictor.metadata.get("precision", "unknown"))
    return Candidate(path, partial(PtePredictor, path), precision, own)


def _native_hw(options: OpenOptions) -> tuple[int, int]:
    return find_network(options.network)[1].input_shape[1:]


def _precision(tensors: Iterable[Tensor]) -> str:
    """By the weights' types, as `stored_precision` does for ONNX."""
    types = {tensor.dtype for tensor in tensors if tensor.dim() > 1}
    if types & {torch.int8, torch.uint8, torch.qint8}:
        return "int8"
    return "fp16" if torch.float16 in types else "fp32"


# kind of file -> how such a file becomes a candidate; a new one is one function and one row
OPENERS: dict[str, Callable[[Path, OpenOptions], Candidate]] = {
    "checkpoint": _checkpoint,
    "torchscript": _torchscript,
    "exported": _exported,
    "onnx": _onnx,
    "program": _program,
}
