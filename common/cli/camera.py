"""The flags that give an ONNX file the form of a camera: bytes in, a map of classes out."""

import argparse

from common.data.camera import CHANNELS, LAYOUTS, OUTPUTS, PLAIN, TYPES

CAMERA_FLAGS = ("input_layout", "input_type", "channels", "output")  # in the order of the fields of CameraFormat


def add_camera_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of CameraFormat."""
    group = parser.add_argument_group("camera", "the form of the file's image and of what it says; ONNX alone")
    group.add_argument("--input_layout", choices=LAYOUTS, default=PLAIN.layout, help="order of the input's axes")
    group.add_argument(
        "--input_type",
        choices=TYPES,
        default=PLAIN.type,
        help="uint8: pixels, which the file normalises; float32: as the network takes them, normalised",
    )
    group.add_argument("--channels", choices=CHANNELS, help="order of the input's channels; default: the network's own")
    group.add_argument(
        "--output",
        choices=OUTPUTS,
        default=PLAIN.output,
        help="classes: of each map of logits the largest, as uint8 (N, H, W)",
    )
