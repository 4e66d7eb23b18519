"""A network and its checkpoint to an ONNX file or a program of ExecuTorch; the check of a file that is there."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli.auto_float import float_limit
from common.commands.auto_float import choose_in_conversion, require_maps, write_choice
from common.commands.export import camera_of, export_options
from common.export.calibration import folder_images
from common.export.conversion import calibrate_source, compare_with_fp32, convert_fp32, convert_half, write_int8
from common.export.options import ExportOptions
from common.networks.opening import OpenedNetwork, open_network
from common.networks.registry import find_network
from common.quantization.methods import PtqMethods
from common.quantization.settings import QuantizationSettings
from common.runtimes.agreement import Agreement
from common.runtimes.target_check import check_file, optimized_note
from common.runtimes.targets import DEFAULT_TARGET, TARGETS
from common.system.files import require_output
from common.system.markdown import table
from common.system.process import seed_everything


def convert(args: argparse.Namespace, methods: PtqMethods, parser: argparse.ArgumentParser) -> None:
    """Write the file, and print how near it comes to the network in FP32.

    Args:
        methods: of the quantization without training.
    """
    target = args.target or DEFAULT_TARGET
    seed_everything(args.seed)
    require_output(args.onnx_model_path, TARGETS[target].suffix, args.model_checkpoint_path)
    if args.calibration_data and not args.int8:
        raise ValueError("--calibration_data is for --int8; add --int8, or leave the flag out")
    camera = camera_of(args, *find_network(args.name))
    source = open_network(args.name, args.model_checkpoint_path, args.input_hw, args.weights)
    options = export_options(args, camera, target)
    if args.int8:
        agreements = quantize(source, args, options, target, methods, parser)
    else:
        agreements = (convert_half if args.half else convert_fp32)(source, args.onnx_model_path, options)
    for name, agreement in zip(source.network.outputs or (), agreements, strict=True):
        runtime = "ONNX Runtime" if TARGETS[target].opsets else TARGETS[target].title
        print(f"{name}: {runtime} against PyTorch FP32: {agreement}")
    print(f"wrote {args.onnx_model_path} ({args.onnx_model_path.stat().st_size / 1e6:.2f} MB)")


def quantize(
    source: OpenedNetwork,
    args: argparse.Namespace,
    options: ExportOptions,
    target: str,
    methods: PtqMethods,
    parser: argparse.ArgumentParser,
) -> Sequence[Agreement]:
    """Calibrate on a part of the images, write the INT8 file, judge and time it on the others."""
    if args.calibration_data is None:
        raise ValueError("--int8 needs --calibration_data FOLDER, a folder of images like those of the car")
    limit = float_limit(args, target, parser)
    require_maps(limit, source.network, parser)
    folder, count = args.calibration_data, args.num_calibration_samples
    images = folder_images(source, folder, count, args.seed, args.egolanes_checkpoint, args.image_bits, args.weights)
    per_channel = TARGETS[target].per_channel if args.per_channel is None else args.per_channel
    settings = QuantizationSettings(
        per_channel, args.fuse, tuple(args.keep_float or ()), target=target, reduced_range=args.reduced_range
    )
    calibrated = calibrate_source(source, settings, images.to_calibrate(), methods)
    choice = None
    if limit:
        int8, choice = choose_in_conversion(args, parser, source, calibrated, images, options, target, limit)
    else:
        int8 = calibrated.finished()
    judging = images.to_judge()
    agreements = write_int8(source, int8, args.onnx_model_path, options, target, judging, methods)
    if choice:
        print(f"wrote {write_choice(args.onnx_model_path, choice)}")
    print(table(compare_with_fp32(source, args.onnx_model_path, judging[0], options)))
    print(f"calibrated on {len(images.calibrating)} images, judged on {len(judging)} others")
    return agreements


def check(path: Path, target: str) -> None:
    """List the nodes of the ONNX file `path` that break rules of a target.

    Raises:
        ValueError: there are any, or it is no ONNX file.
    """
    wrong, title = check_file(path, target), TARGETS[target].title
    print(*wrong, sep="\n") if wrong else print(f"{path}: keeps all rules of {title}")
    if note := optimized_note(path):
        print(f"{path}: {note}; no file of pairs, for ONNX Runtime alone")
    if wrong:
        raise ValueError(f"{path}: breaks {len(wrong)} rules of {title}; they are listed above")
