from argparse import Namespace

import pytest
import torch

from common.commands import benchmark_qat
from common.commands.qat_images import Images
from common.commands.qat_setup import Plan
from common.data.camera import PLAIN
from common.networks.checkpoints import Description

HW = (8, 16)
WITHOUT_LABELS = {"batch_size": 4, "images": ("drive",), "freeze_batch_norm": 0, "freeze_observers": 0}


def drawn_for(asked, arguments):
    """How many images, and how many at a time, calibrate a network that was trained by `arguments`; None: none do."""
    drawn = []

    def draw(count, batch_size):
        drawn.append((count, batch_size))
        return [torch.rand(1, 3, *HW)]

    images = Images(training=50, validation=(), draw=draw, inputs=None, run=None, choosing=(), read=None)
    trained = Description("Tiny", "qat", 1.0, HW, ("a", "b"), arguments=arguments)
    benchmark_qat.find_ranges(None, Namespace(num_calibration_samples=asked), trained, images, torch.device("cpu"))
    return drawn[0] if drawn else None


@pytest.mark.parametrize(
    ("asked", "arguments", "expected"),
    [
        (None, {}, (50, 8)),  # all there are, and a checkpoint that says nothing of its training
        (3, {}, (3, 8)),
        (300, {"batch_size": 16}, (50, 16)),
        (0, {"batch_size": 16}, None),
        (None, WITHOUT_LABELS, None),
        (7, WITHOUT_LABELS, (7, 32)),
    ],
)
def test_ranges_are_found_again_unless_they_are_to_be_kept(asked, arguments, expected, monkeypatch):
    monkeypatch.setattr(benchmark_qat, "calibrate", lambda graph, batches, ranges: list(batches))
    assert drawn_for(asked, arguments) == expected


@pytest.mark.parametrize(
    ("targets", "expected"),
    [(("tensorrt",), "tensorrt"), (("openvino", "executorch"), "openvino"), (("executorch",), "onnxruntime")],
)
def test_what_is_compared_is_an_onnx_file_whatever_the_target(targets, expected):
    assert Plan("Tiny", None, False, None, targets, PLAIN, 1.0, None, None).onnx_target == expected
