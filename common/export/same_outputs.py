"""The plain file and the one that is kept, as one predictor: a check of the first is a check of the second."""

import torch
from torch import Tensor

from common.export.camera import CameraFile
from common.runtimes.predictors import OnnxPredictor


class SameOutputs:
    """The plain file, whose outputs another form of it has to give in every bit, or as maps of classes in every pixel.

    Args:
        plain: the file of pairs for normalised images, with full graph optimisation.
        written: the same network with integer operators, without any, or in the form of `camera`.

    Raises:
        ValueError: in a call whose outputs differ.
    """

    def __init__(self, plain: OnnxPredictor, written: OnnxPredictor, camera: CameraFile | None = None):
        self.plain, self.written, self.camera, self.provider = plain, written, camera, plain.provider

    def __call__(self, images: Tensor) -> Tensor:
        return self.outputs(images)[0]

    def outputs(self, images: Tensor) -> list[Tensor]:
        """All outputs of the plain file."""
        if self.camera:
            self._compare_camera(self.camera, images)
        else:
            self._compare(images)
        return self.plain.outputs(images)

    def _compare(self, images: Tensor) -> None:
        if not all(map(torch.equal, self.plain.outputs(images), self.written.outputs(images))):
            raise ValueError(
                "--optimized: the integer operators do not give what the pairs give with graph optimisation; on a "
                "processor without an int8 dot product (VNNI) add --reduced_range, else leave the flag out"
            )

    def _compare_camera(self, camera: CameraFile, images: Tensor) -> None:
        expected, actual = self.plain.outputs(camera.nearest(images)), self.written.outputs(camera.fed(images))
        if not all(map(camera.same, expected, actual)):
            raise ValueError(
                "the file for a camera does not give what the plain file gives of the same pixels; leave "
                "--input_layout, --input_type, --channels and --output out"
            )
