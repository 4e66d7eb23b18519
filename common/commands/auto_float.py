"""The choice of what stays in float, in a conversion and in a trained network, and the command that gets there."""

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
from common.benchmark.float_choice import MIN_SQNR, FloatChoice, FloatLimit
from common.benchmark.float_images import divide, division, labelled_inputs, shot_inputs, without
from common.benchmark.float_search import Material
from common.benchmark.image_counts import LabelledInput, outputs_with
from common.benchmark.results import plain
from common.cli.auto_float import CHOICE, DATA, EVALUATIONS
from common.commands.inputs import sample_source
from common.commands.qat_images import Images
from common.data.bad_samples import report_bad, usable_samples
from common.data.classes import Classes, classes_of
from common.data.datasets import evenly_spaced
from common.data.pairs import BadSample
from common.data.transforms import ImageFormat
from common.export.calibration import FolderImages
from common.export.options import ExportOptions
from common.export.writing import write_candidate
from common.networks.checkpoints import Description
from common.networks.opening import OpenedNetwork
from common.networks.registry import find_network
from common.quantization.pt2e import Calibrated, convert, float_form, with_float_modules
from common.quantization.rounding import as_prepared
from common.quantization.simulation import fake_quantizations
from common.report.float_choice import float_tables
from common.runtimes.predictors import TorchPredictor
from common.runtimes.targets import TARGETS
from common.system.files import write_json
from models import Network

CPU = torch.device("cpu")
MOST_IMAGES = 256  # to choose by and to check together; they are held in memory


def require_maps(limit: FloatLimit | None, network: Network, parser: argparse.ArgumentParser) -> None:
    """Leave with exit code 2 where a limit of mIoU is for a network without maps of classes."""
    if limit and limit.name != MIN_SQNR and not network.maps_classes:
        parser.error(f"argument --{limit.name}: takes a network that gives maps of classes")


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
    material = Material(
        as_prepared(calibrated.floats, calibrated.rounded()),
        TorchPredictor(source.model, CPU).outputs,
        choosing,
        classes,
        CPU,
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


def choose_in_checkpoint(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    prepared: GraphModule,
    description: Description,
    images: Images,
    untrained: OpenedNetwork | None,
    options: ExportOptions,
    target: str,
    limit: FloatLimit,
) -> tuple[GraphModule, FloatChoice]:
    """The INT8 network of a calibrated graph with the chosen blocks in float.

    It is compared with the outputs of `untrained` where these are compared, and with itself in float where there are
    masks of classes.

    Raises:
        ValueError: the limit is not kept; the tables are printed then.
    """
    name, network = find_network(args.name)
    device = next(prepared.parameters()).device
    choosing, checking = (images.read(half) for half in (images.choosing, images.validation))
    reference, classes = outputs_with(prepared, fake_quantizations(prepared), device), None
    if limit.name == MIN_SQNR:
        assert untrained is not None
        reference = TorchPredictor(untrained.model, CPU).outputs
    else:
        classes = classes_of(network, images.validation)
    shape = (network.channels, *description.input_hw)
    subject = Subject(
        float_form(prepared).cpu(),
        lambda modules: convert(with_float_modules(prepared, modules).cpu()),
        None,
        partial(write_candidate, name, network, description.width, shape, options, target),
        TARGETS[target],
    )
    request = request_of(args, limit, division(choosing, checking), parser)
    choice, int8 = choose_float(subject, Material(prepared, reference, choosing, classes, device), checking, request)
    if int8 is None:
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
