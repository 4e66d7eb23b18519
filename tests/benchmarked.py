"""A measurement and its document made of nothing but arithmetic, for the tests of the reports."""

from functools import partial

import torch

from common.benchmark.measure import Measurement, measure
from common.benchmark.memory import ModelMemory
from common.benchmark.results import results_document
from common.benchmark.sensitivity import BlockGain, LayerError, Sensitivity
from common.benchmark.settings import BenchmarkSettings
from common.data.pairs import Sample
from common.runtimes.candidates import Candidate
from examples.make_scenes import write_dataset
from tests.family import NETWORK, found

HW = (32, 64)


class Guess:
    """A predictor without weights: road below the middle, background above, foreground in the upper `wrong` (0..1)."""

    provider = "arithmetic"

    def __init__(self, wrong, threads=1):
        self.wrong = wrong

    def __call__(self, images):
        height, width = images.shape[2:]
        ids = torch.zeros(height, width, dtype=torch.long)
        ids[height // 2 :] = 2
        ids[: round(self.wrong * height)] = 1
        return torch.nn.functional.one_hot(ids, 3).permute(2, 0, 1)[None].float()


def candidates(folder, **wrongs):
    """Label -> candidate with a file of some bytes; labels with `_` for blanks."""
    result = {}
    for number, (name, wrong) in enumerate(wrongs.items()):
        path = folder / f"{name}.onnx"
        path.write_bytes(bytes(1_000_000 // (number + 1)))
        result[name.replace("_", " ")] = Candidate(path, partial(Guess, wrong), "fp32", HW)
    return result


def samples(folder, names=("Town", "Country"), images=30) -> list[Sample]:
    for seed, name in enumerate(names):
        write_dataset(folder, name, images, seed=seed, size=(48, 96))
    return found(folder, names, "val")


def measured(folder, **wrongs) -> Measurement:
    """Real scores and times of guesses."""
    return measured_models(candidates(folder, **wrongs), samples(folder))


def measured_models(models, images) -> Measurement:
    """Real scores and times, with memory figures made up."""
    measurement = measure(models, images, NETWORK, BenchmarkSettings(threads=1, warmup_runs=1, workers=0))
    measurement.memory = {label: ModelMemory(200_000_000, 50_000_000, None, 0.5, 0.01) for label in models}
    return measurement


def document_of(measurement, title="A title", notes=(), sensitivity=None):
    return results_document(title, measurement, BenchmarkSettings(threads=1), notes, sensitivity)


def sensitivity() -> Sensitivity:
    """Two blocks, one of them worth leaving in float, and a layer with a range that does not fit."""
    head, neck = BlockGain(["head.stages.0"], 3, 21.5, 4.25, 0.75), BlockGain(["neck"], 2, 17.0, -0.25, 0.7)
    layers = [
        LayerError("head.stages.0.refine", "conv2d", 8.5, 31.0, 16.5, 3.5),
        LayerError("neck.stages.1", "add", None, 28.25, None),
    ]
    return Sensitivity(4, 17.25, 0.76, 0.71, [head, neck], head, "python train.py", layers, ["head.stages.0.refine"])
