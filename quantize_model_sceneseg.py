"""Fine-tune an FP32 network with fake quantization (QAT, PT2E with XNNPACKQuantizer) and write QAT checkpoints."""

import argparse
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch.fx import GraphModule

from common.cli.flags import (
    add_egolanes_argument,
    add_fuse_argument,
    add_input_size_argument,
    add_name_argument,
    add_weights_argument,
    make_parser,
    refuse_with_class_maps,
    refuse_with_images,
)
from common.cli.main import resolve_device, run, seed_everything
from common.cli.ptq import add_start_arguments, start_defaults
from common.cli.targets import add_codes_arguments, add_target_argument
from common.cli.training import (
    OF_LABELS,
    add_recipe_argument,
    add_training_arguments,
    settings_of,
    use_defaults,
)
from common.cli.types import non_negative_float, non_negative_int
from common.data.pairs import BadSample
from common.export.in_float import in_float_when_converted, tell
from common.networks.checkpoints import Checkpoint, Description, load_network
from common.networks.registry import find_network
from common.quantization.checkpoints import load_qat
from common.quantization.pt2e import calibrate, prepare_qat, set_evaluation_mode, set_training_mode
from common.runtimes.targets import TARGETS
from common.system.distributed import is_writer, join_ranks
from common.system.files import require_other
from common.training.fit import Trainee, better_of, fit, open_folder, save_trainee
from common.training.imitation import from_images
from common.training.labelled import from_masks
from common.training.settings import FROM_IMAGES, RECIPES, QatRunSettings, QatSettings, holds_ranges, observed_together
from models import Network, check_input_hw

logger = logging.getLogger(__name__)

CHECKPOINT = "qat_checkpoint"
BEST = "qat_best.pth"
FINAL = "qat_model_final_calibrated.pth"


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python quantize_model_sceneseg.py -s checkpoints -r data -fp32 best_model.pth -e 5")
    add_training_arguments(parser, images=True)
    add_name_argument(parser, default=QatSettings.name)
    parser.add_argument("-fp32", "--fp32_model", type=Path, metavar="CKPT", help="FP32 weights")
    add_weights_argument(parser)
    add_start_arguments(parser)
    add_target_argument(parser, "the INT8 network is for")
    add_codes_arguments(parser)
    parser.add_argument(
        "--keep_float",
        action="append",
        metavar="PATTERN",
        help="do not quantize modules of this name, as head or 'neck.stages.*.refine'; may be repeated",
    )
    add_input_size_argument(parser)
    add_fuse_argument(parser)
    parser.add_argument(
        "--freeze_batch_norm",
        type=non_negative_int,
        help="after this many epochs; default: 1, with --images or --start_from ptq 0",
    )
    parser.add_argument(
        "--freeze_observers",
        type=non_negative_int,
        help="after this many epochs; default: 2, with --images or --start_from ptq 0",
    )
    parser.add_argument(
        "--num_calibration_samples",
        type=non_negative_int,
        help="training images for the last calibration; with --images or --start_from ptq one before the first step",
    )
    parser.add_argument(
        "--distill", type=non_negative_float, metavar="WEIGHT", help="also learn the FP32 network's logits; 0: do not"
    )
    add_egolanes_argument(parser, "with --images")
    add_recipe_argument(parser)
    use_defaults(parser, QatRunSettings())
    of_others = dict.fromkeys([*RECIPES["original"], *FROM_IMAGES, "root"])  # see settings_of
    parser.set_defaults(**of_others)
    return parser


def main(args: argparse.Namespace) -> None:
    refuse_with_images(args, get_args_parser(), OF_LABELS)
    if not args.images:
        refuse_with_class_maps(args, get_args_parser(), ("egolanes_checkpoint",))
    defaults = (FROM_IMAGES if args.images else {}) | start_defaults(args, get_args_parser())
    seed_everything(args.seed)
    device = join_ranks(resolve_device(args.device))
    settings = settings_of(QatRunSettings, args, defaults)
    records, qat = settings.records, settings.qat
    schedule = qat.schedule
    bad: list[BadSample] = []
    _, network = find_network(qat.name)
    find = from_images if qat.images else from_masks
    make_task = find(settings, network, bad)
    folder = open_folder(records.model_save_root_path, CHECKPOINT, bad)
    for written in (BEST, FINAL):
        require_other(folder.path / written, qat.fp32_model)
    prepared, description, resumed = start_graph(network, qat, folder.resumed(records.resume), device)
    logger.info("%s on %s", description.network, device)
    trainee = Trainee(
        prepared,
        description,
        train_mode=partial(set_training_mode, prepared, schedule, dropout=not qat.images),
        eval_mode=partial(set_evaluation_mode, prepared),
        state=prepared.state_dict,
        best=BEST,
    )
    task = make_task(trainee, resumed, device)
    settings = fit(trainee, task, folder, settings, device, resumed)

    if not holds_ranges(qat):
        images = task.calibration(qat.num_calibration_samples, observed_together(settings), settings)
        calibrate(prepared, images, qat.methods.ranges)
    scores = better_of(trainee, task, folder, task.score(prepared, settings))
    if is_writer():
        save_trainee(folder.path / FINAL, trainee, scores, settings)
        print(task.table(scores))
        print(f"wrote {folder.path / FINAL}")


def start_graph(
    network: Network, settings: QatSettings, resume: Path | None, device: torch.device
) -> tuple[GraphModule, Description, Checkpoint | None]:
    """The prepared graph, its description, and the checkpoint to resume from: fresh from FP32 weights, or resumed."""
    if resume:
        return load_qat(resume, settings.name, device)
    model, fp32 = load_network(settings.name, settings.fp32_model, settings.weights)
    input_hw = settings.input_hw or fp32.input_hw
    check_input_hw(network, input_hw)
    description = replace(fp32, kind="qat", input_hw=input_hw, quantization=asdict(settings.quantization))
    logger.info("preparing the quantization-aware graph")
    prepared = prepare_qat(model.to(device), input_hw, settings.quantization, network.channels)
    tell(in_float_when_converted(prepared, TARGETS[settings.target]))
    return prepared, description, None


if __name__ == "__main__":
    run(main, get_args_parser())
