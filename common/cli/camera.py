"""The flags that give an ONNX file the form of a camera: bytes in, a map of classes out."""

import argparse

from common.data.camera import CHANNELS, LAYOUTS, OUTPUTS, PLAIN, TYPES, CameraFormat
from common.export.camera import require_camera
from common.runtimes.targets import TARGETS
from models import Network

FLAGS = {"layout": "input_layout", "type": "input_type", "channels": "channels", "output": "output"}  # field -> flag


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


def camera_of(
    args: argparse.Namespace, name: str, network: Network, target: str, parser: argparse.ArgumentParser
) -> CameraFormat:
    """What the flags say of the files of the network `name`; exit code 2 where a target's files have no such form.

    Raises:
        ValueError: the network has none.
    """
    given = [flag for flag in FLAGS.values() if getattr(args, flag) != parser.get_default(flag)]
    if given and not TARGETS[target].opsets:
        parser.error(
            f"argument --{given[0]}: is for ONNX files; --target {target} takes {TARGETS[target].suffix} files"
        )
    own = network.channel_order.lower()
    channels = None if args.channels == own else args.channels
    camera = CameraFormat(args.input_layout, args.input_type, channels, args.output)
    require_camera(camera, name, network)
    return camera
