"""How files are written and checked."""

from dataclasses import dataclass, replace

from common.data.camera import PLAIN, CameraFormat

OPSET = 20  # the first with Gelu as one node
OLDEST_OPSET, NEWEST_OPSET = 17, 25  # that are written; onnx itself knows newer ones
OLDEST_HALF = 19  # whose QuantizeLinear takes FP16
FILE_EQUAL_PIXELS = 0.995  # of a file and PyTorch INT8; two right INT8 kernels may round a value in other directions


@dataclass(frozen=True)
class ExportOptions:
    """Of a file; what a flag says is named like it."""

    threads: int  # of the runtime in the check and in the timing
    seed: int = 0  # of the example inputs, and of the choice of calibration images
    batch: int | None = None  # None: a dynamic batch axis
    opset: int | None = None  # None: OPSET, or for ONNX Runtime 18 where that is faster (`lower_average_pools`)
    fuse: bool = True  # upsampling stages in their fused form, models/fuse.py
    half: bool = False  # of INT8: what is not in int8 in FP16
    optimized: bool = False  # of INT8 for ONNX Runtime: integer operators in the place of pairs
    camera: CameraFormat = PLAIN  # of ONNX files: the form of their image and of their map of classes
    named: bool = False  # nodes of ONNX files say what module they are of, for a profile

    def of(self, precision: str) -> "ExportOptions":
        """Without what is of INT8, where the file is of another precision."""
        return self if precision == "int8" else replace(self, half=False, optimized=False)
