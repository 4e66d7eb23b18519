"""How the command line wants files written."""

import argparse

from common.data.camera import CameraFormat
from common.export.camera import require_camera
from common.export.options import ExportOptions
from common.runtimes.targets import TARGETS
from models import Network


def camera_of(args: argparse.Namespace, name: str, network: Network) -> CameraFormat:
    """The form of the files of the network `name`, by the flags of `add_camera_arguments`.

    Raises:
        ValueError: the network has no such form.
    """
    channels = None if args.channels == network.channel_order.lower() else args.channels
    camera = CameraFormat(args.input_layout, args.input_type, channels, args.output)
    require_camera(camera, name, network)
    return camera


def export_options(args: argparse.Namespace, camera: CameraFormat, target: str) -> ExportOptions:
    """By the other flags of an ONNX file, which is for `target`."""
    batch = TARGETS[target].batch if args.batch is None else args.batch
    return ExportOptions(
        args.threads,
        args.seed,
        None if batch == "dynamic" else batch,
        args.opset,
        getattr(args, "fuse", ExportOptions.fuse),  # a QAT checkpoint has its form from the training
        args.half,
        args.optimized,
        camera,
    )
