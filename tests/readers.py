"""What the fuzzers feed: the toolkit's readers, each with small good files of its kind to damage."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from torch import nn

from common.benchmark.baseline import read_baseline
from common.benchmark.results import SCHEMA
from common.data.decoding import read_rgb
from common.data.image_header import read_header
from common.data.loading import load_ids
from common.data.pairs import Sample
from common.export.traced_writer import write_exported, write_torchscript
from common.networks.checkpoints import Description, read_checkpoint
from common.runtimes.onnx_files import read_graph, require_image_input
from common.runtimes.traced import read_exported, read_torchscript
from common.system.archives import is_intact
from tests.family import LABELS

OURS = (ValueError, OSError)  # the errors that become one line on stderr
HW = (32, 64)
MASK_HW = (16, 24)


@dataclass(frozen=True)
class Reader:
    """How a file is read, and good files of that kind."""

    suffix: str
    read: Callable[[Path], object]
    samples: Callable[[], list[bytes]]

    def __call__(self, content: bytes, folder: Path) -> None:
        """Read `content` from a file; an error has to be one of ours, with the file's name in it."""
        path = folder / f"fed{self.suffix}"
        path.write_bytes(content)
        try:
            self.read(path)
        except OURS as error:
            assert path.name in str(error), f"{type(error).__name__} without the file's name: {error}"


@cache
def images(*suffixes: str) -> list[bytes]:
    """An image of one colour, which as PNG is a mask of one class."""
    pixels = np.full((*MASK_HW, 3), (220, 255, 0), np.uint8)
    return [cv2.imencode(suffix, pixels)[1].tobytes() for suffix in suffixes]


@cache
def checkpoints() -> list[bytes]:
    description = asdict(Description("SceneSeg", "fp32", 1.0, HW))
    document = {"description": description, "model_state_dict": {"a": torch.ones(9)}}
    contents = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(document, file, _use_new_zipfile_serialization=zipped)
        contents.append(file.getvalue())
    return contents


@cache
def safetensors() -> list[bytes]:
    return [save({"a": torch.ones(9), "b": torch.zeros(2, 2, dtype=torch.int64)})]


@cache
def programs(suffix: str) -> list[bytes]:
    """A network of one convolution as TorchScript (.pt) or as a file of torch.export (.pt2)."""
    torch.manual_seed(0)  # the same bytes, and with them the same damage, every time
    model, example = nn.Conv2d(3, 3, 1).eval(), torch.zeros(2, 3, *HW)
    write = {".pt": write_torchscript, ".pt2": write_exported}[suffix]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"network{suffix}"
        write(model, example, path, {})
        return [path.read_bytes()]


@cache
def onnx_files() -> list[bytes]:
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, *HW)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    return [helper.make_model(graph).SerializeToString()]


@cache
def results() -> list[bytes]:
    document = {"schema": SCHEMA, "models": {"A": {}}, "images": [], "environment": {"cpu": "x"}}
    return [json.dumps(document).encode()]


READERS = {
    "header": Reader(".png", lambda path: read_header(path.read_bytes(), path), lambda: images(".png", ".jpg")),
    "image": Reader(".png", partial(read_rgb, labelled=True), lambda: images(".png", ".jpg")),
    "mask": Reader(
        ".png", lambda path: load_ids(Sample("CamVid", path, path, LABELS), MASK_HW), lambda: images(".png")
    ),
    "checkpoint": Reader(".pth", read_checkpoint, checkpoints),
    "safetensors": Reader(".safetensors", read_checkpoint, safetensors),
    "archive": Reader(".pth", is_intact, checkpoints),
    "torchscript": Reader(".pt", lambda path: read_torchscript(path, torch.device("cpu")), lambda: programs(".pt")),
    "exported": Reader(".pt2", lambda path: read_exported(path, torch.device("cpu")), lambda: programs(".pt2")),
    "onnx": Reader(".onnx", lambda path: require_image_input(read_graph(path), path), onnx_files),
    "results": Reader(".json", read_baseline, results),
}
