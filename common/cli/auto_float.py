"""The flags that have it chosen what stays in float, and the command line that gets there directly."""

import argparse
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch.fx import GraphModule

from common.benchmark.auto_float import FloatRequest, Subject, choose_float, require_kept
from common.benchmark.float_choice import MAX_MIOU_DROP, MIN_SQNR, FloatChoice, FloatLimit
from common.benchmark.float_images import divide, division, labelled_inputs, shot_inputs, without
from common.benchmark.float_search import FEWEST_EVALUATIONS, Material
from common.benchmark.image_counts import LabelledInput
from common.benchmark.results import plain
from common.cli.benchmark import LIMITS
from common.cli.flags import add_dataset_arguments, sample_source
from common.cli.types import positive_int
from common.data.bad_samples import report_bad, usable_samples
from common.data.classes import Classes, classes_of
from common.data.datasets import evenly_spaced
from common.data.pairs import BadSample
from common.data.transforms import ImageFormat
from common.export.calibration import FolderImages
from common.export.options import ExportOptions
from common.export.writing import write_candidate
from common.networks.opening import OpenedNetwork
from common.quantization.pt2e import Calibrated
from common.quantization.rounding import as_prepared
from common.report.float_choice import float_tables
from common.runtimes.predictors import TorchPredictor
from common.runtimes.targets import TARGETS
from common.system.files import write_json
from models import Network

EVALUATIONS = 40
MOST_IMAGES = 256  # to choose by and to check together; they are held in memory
CHOICE = ("auto_float", "max_evaluations", MAX_MIOU_DROP, MIN_SQNR)  # what the direct command does without
DATA = ("dataset_root", "datasets", "labels", "workers", "skip_bad")  # of a conversion, which else takes no labels


def add_auto_float_arguments(parser: argparse._ActionsContainer, images: str) -> None:
    """`--auto_float` and `--max_evaluations`; `images` says of which the choice is made."""
    parser.add_argument(
        "--auto_float",
        action="store_true",
        help="choose the fewest blocks in float with which INT8 keeps --max_miou_drop (masks) or --min_sqnr_db (images "
        f"without labels) against the network in float: one half of {images} chooses, the other checks",
    )
    parser.add_argument(
        "--max_evaluations",
        type=positive_int,
        help=f"--auto_float: most measurements of the accuracy of a candidate; default: {EVALUATIONS}",
    )


def add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    """The choice of a conversion, with its limits and its labelled images."""
    group = parser.add_argument_group("choice", "of what stays in float, with --int8")
    add_auto_float_arguments(group, "the images")
    texts = {
        MAX_MIOU_DROP: "largest loss of mIoU against FP32, for example 0.005; takes --dataset_root",
        MIN_SQNR: "least SQNR of every output against FP32, dB; on images of --calibration_data that do not calibrate",
    }
    for name, text in texts.items():
        group.add_argument(f"--{name}", type=LIMITS[name][0], metavar="X", help=f"--auto_float: {text}")
    group.add_argument(
        "--dataset_root",
        type=Path,
        metavar="DIR",
        help="--auto_float: data root of images with masks, of which the validation images choose and check",
    )
    add_dataset_arguments(parser)


def float_limit(
    args: argparse.Namespace, network: Network, target: str, parser: argparse.ArgumentParser
) -> FloatLimit | None:
    """The limit of the choice, None without `--auto_float`; exit code 2 where flags do not go together."""
    if not args.auto_float:
        if args.max_evaluations is not None:
            parser.error("argument --max_evaluations: is for --auto_float")
        return None
    given = [name for name in (MAX_MIOU_DROP, MIN_SQNR) if getattr(args, name) is not None]
    if len(given) != 1:
        parser.error("argument --auto_float: takes a limit, --max_miou_drop or --min_sqnr_db")
    if given == [MAX_MIOU_DROP] and not (args.dataset_root and network.maps_classes):
        parser.error("argument --max_miou_drop: takes masks of classes (--dataset_root) and a network of such maps")
    if given == [MIN_SQNR] and args.dataset_root:
        parser.error("argument --min_sqnr_db: is for images without labels; with --dataset_root take --max_miou_drop")
    if TARGETS[target].opsets is None:
        parser.error(f"argument --auto_float: times ONNX files; --target {target} takes {TARGETS[target].suffix} files")
    if args.max_evaluations is not None and args.max_evaluations < FEWEST_EVALUATIONS:
        parser.error(f"argument --max_evaluations: {FEWEST_EVALUATIONS} are the fewest that can find anything")
    return FloatLimit(given[0], getattr(args, given[0]))


def direct_command(parser: argparse.ArgumentParser, modules: Sequence[str], without: Collection[str] = CHOICE) -> str:
    """This process's command line without the flags `without`, and with `modules` in float."""
    flags, words, dropped = {f"--{name}" for name in without}, [], False
    for word in sys.argv[1:]:
        if (name := word.partition("=")[0]) in parser._option_string_actions:
            dropped = name in flags
        if not dropped:
            words.append(word)
    script = Path(sys.argv[0]).with_suffix(".py").name
    named = [word for module in modules for word in ("--keep_float", module)]
    return shlex.join(["python", script, *words, *named])


def request_of(
    args: argparse.Namespace,
    limit: FloatLimit,
    sentence: str,
    parser: argparse.ArgumentParser,
    without: Collection[str] = CHOICE,
) -> FloatRequest:
    """The choice that the flags ask for; `sentence` says how the images are divided."""
    return FloatRequest(
        limit,
        args.max_evaluations or EVALUATIONS,
        args.seed,
        args.threads,
        sentence,
        partial(direct_command, parser, without=without),
        by_bound=getattr(args, "gate_by", None) == "bound",
    )


def choose_in_conversion(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    source: OpenedNetwork,
    calibrated: Calibrated,
    images: FolderImages,
    options: ExportOptions,
    target: str,
    limit: FloatLimit,
) -> tuple[GraphModule, FloatChoice]:
    """The INT8 network with the chosen blocks in float, whose tables are printed.

    Raises:
        ValueError: the limit is not kept, or there are too few images.
    """
    choosing, checking, classes = _images_of(args, source, images, limit)
    cpu = torch.device("cpu")
    material = Material(
        as_prepared(calibrated.floats, calibrated.rounded()),
        TorchPredictor(source.model, cpu).outputs,
        choosing,
        classes,
        cpu,
    )
    subject = Subject(
        calibrated.floats,
        calibrated.quantized,
        calibrated.finished if calibrated.changes_weights else None,
        partial(write_candidate, source.name, source.network, source.width, source.input_shape, options, target),
        TARGETS[target],
    )
    request = request_of(args, limit, division(choosing, checking), parser, (*CHOICE, *DATA))
    choice, int8 = choose_float(subject, material, checking, request)
    print(float_tables(asdict(choice)))
    require_kept(choice)
    assert int8 is not None
    return int8, choice


def write_choice(path: Path, choice: FloatChoice) -> Path:
    """Write the choice beside the file `path`, and return where."""
    beside = path.with_suffix(".auto_float.json")
    write_json(beside, {"auto_float": plain(asdict(choice))})
    return beside


def _images_of(
    args: argparse.Namespace, source: OpenedNetwork, images: FolderImages, limit: FloatLimit
) -> tuple[list[LabelledInput], list[LabelledInput], Classes | None]:
    """Those to choose by, those to check, and what their labels are of."""
    if limit.name == MIN_SQNR:
        halves = divide(evenly_spaced(images.left, MOST_IMAGES))
        choosing, checking = (shot_inputs(half, images.inputs) for half in halves)
        return choosing, checking, None
    bad: list[BadSample] = []
    found = usable_samples(sample_source(args, source.network, args.dataset_root), "val", bad)
    print(*report_bad(bad), sep="\n", end="\n" * bool(bad))
    used = [path for shot in (*images.calibrating, *images.judging) for path in shot.images]
    samples = evenly_spaced(without(found, used), MOST_IMAGES)
    image_format = ImageFormat.of(source.network, source.input_shape[1:])
    first, second = (labelled_inputs(half, image_format) for half in divide(samples))
    return first, second, classes_of(source.network, samples)
