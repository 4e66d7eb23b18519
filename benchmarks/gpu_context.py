"""What the parts of benchmarks.gpu_check share: their sizes, inputs, and the toolkit's scripts as a user calls them."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.parts import Record
from common.data.datasets import SampleSource, find_samples
from common.data.loading import Example
from common.data.pairs import Sample
from common.data.transforms import ImageFormat
from common.networks.checkpoints import Description, published_state, save_checkpoint
from common.quantization.pt2e import prepare_qat
from common.quantization.settings import QuantizationSettings
from examples.make_scenes import write_dataset
from examples.train_sceneseg import initialise_decoder
from models.family import find_network
from models.scene_seg import SceneSegNetwork

ROOT = Path(__file__).resolve().parent.parent
NETWORK = "SceneSeg"
SCENES = "Scenes"  # the name of the generated dataset
CPU = torch.device("cpu")
FINAL = "qat_model_final_calibrated.pth"


@dataclass(frozen=True)
class Scale:
    """The sizes of a check: for a GPU, or so small that a CPU can rehearse it."""

    networks_width: float | None  # of the forward comparison; None: as published
    width: float  # of the correctness parts
    input_hw: tuple[int, int]
    batch_size: int
    steps: int
    scenes: int
    full_width: float  # of the speed and accuracy parts
    full_hw: tuple[int, int]
    full_batch: int
    timed_steps: int
    epochs: int  # of the FP32 network that QAT starts from, in the accuracy part
    qat_epochs: int


FULL = Scale(None, 0.125, (160, 320), 4, 6, 40, 1.0, (320, 640), 32, 5, 40, 6)
TINY = Scale(1 / 8, 1 / 32, (32, 64), 2, 3, 20, 1 / 32, (32, 64), 4, 2, 2, 1)


@dataclass(frozen=True)
class Context:
    """What a part gets."""

    device: torch.device
    scale: Scale
    record: Record
    work: Path  # a folder of its own
    data: Path | None  # a data root with real images
    workers: int
    threads: int

    @property
    def on_gpu(self) -> bool:
        """Whether this is the real check."""
        return self.device.type == "cuda"

    def synchronise(self) -> None:
        """Wait until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()


def scenes(context: Context) -> Path:
    """A data root with generated scenes of twice the input size."""
    root = context.work / "scenes"
    height, width = context.scale.input_hw
    write_dataset(root, SCENES, context.scale.scenes, 0, (2 * height, 2 * width))
    return root


def samples_of(root: Path, dataset: str, split: str) -> list[Sample]:
    """The samples of one dataset below a data root, as the scripts find them."""
    return find_samples(SampleSource.of(NETWORK, find_network(NETWORK)[1], root, names=(dataset,)), split)


def image_format(input_hw: tuple[int, int]) -> ImageFormat:
    """How SceneSeg takes images of a size."""
    return ImageFormat.of(find_network(NETWORK)[1], input_hw)


def network(width: float, seed: int = 0) -> SceneSegNetwork:
    """A SceneSeg with the random weights that training starts from."""
    torch.manual_seed(seed)
    model = SceneSegNetwork(width)
    initialise_decoder(model)
    return model


def prepared_network(
    width: float, input_hw: tuple[int, int], device: torch.device, settings: QuantizationSettings | None = None
) -> GraphModule:
    """The same network prepared for QAT on `device`."""
    return prepare_qat(network(width).to(device), input_hw, settings or QuantizationSettings())


def save_network(path: Path, width: float, input_hw: tuple[int, int]) -> Path:
    """FP32 weights as the trainer writes them, untrained."""
    classes = find_network(NETWORK)[1].classes
    save_checkpoint(
        path, published_state(NETWORK, network(width)), Description(NETWORK, "fp32", width, input_hw, classes)
    )
    return path


def random_batches(count: int, batch_size: int, input_hw: tuple[int, int], seed: int = 0) -> list[Example]:
    """Batches on the CPU: smooth images, and masks that follow from them, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    return [_random_batch(batch_size, input_hw, generator) for _ in range(count)]


def _random_batch(batch_size: int, input_hw: tuple[int, int], generator: torch.Generator) -> Example:
    coarse = torch.randn(batch_size, 3, input_hw[0] // 16, input_hw[1] // 16, generator=generator)
    images = nn.functional.interpolate(coarse, size=input_hw, mode="bilinear")
    images = images + 0.1 * torch.randn(images.shape, generator=generator)
    return Example(images, images.argmax(dim=1), torch.rand(batch_size, 3, generator=generator) + 0.5)


def relative(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||, computed in double precision on the CPU."""
    expected = expected.detach().double().cpu()
    difference = actual.detach().double().cpu() - expected
    return float(difference.norm() / expected.norm().clamp(min=1e-30))


def run_script(
    context: Context, name: str, arguments: Sequence[object], device: str | None = None
) -> subprocess.CompletedProcess:
    """A script of the toolkit, or `-m` and a module, in a process of its own; its output is printed.

    Its seconds are recorded, and that it ended well is a check of the part.
    """
    entry = ["-m", name] if "." in name and not name.endswith(".py") else [str(ROOT / name)]
    device_flags = ["--device", device or context.device.type, "--threads", context.threads]
    command = [sys.executable, *entry, *map(str, [*arguments, *device_flags])]
    print("$", *command, flush=True)
    begin = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    context.record.check(
        f"{name} on {device or context.device.type}",
        done.returncode == 0,
        seconds=round(time.monotonic() - begin, 1),
        exit_code=done.returncode,
        last_line=(done.stdout.strip().splitlines() or [""])[-1],
    )
    return done


def figures_of_models(path: Path) -> dict[str, dict[str, object]]:
    """The main figures of each model in the results.json of a benchmark."""
    models = json.loads(path.read_text())["models"]
    return {
        label: {
            "provider": model["provider"],
            "miou": model["overall"]["miou"],
            "p50_ms": model["latency_ms"]["p50"],
            "size_bytes": model["size_bytes"],
        }
        for label, model in models.items()
    }


def device_memory(context: Context) -> float | None:
    """The peak of PyTorch's memory on the GPU in GB since the last call of this function."""
    if not context.on_gpu:
        return None
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 2)


def scale_figures(scale: Scale) -> dict[str, object]:
    """The sizes as JSON."""
    return asdict(scale)
