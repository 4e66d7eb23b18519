"""Fine-tune an FP32 SceneSeg with fake quantization (QAT, PT2E with XNNPACKQuantizer) and write QAT checkpoints."""

import argparse
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch.fx import GraphModule

from common.cli.flags import add_fuse_argument, add_input_size_argument, make_parser, sample_source
from common.cli.main import resolve_device, run, seed_everything
from common.cli.training import add_training_arguments
from common.cli.types import non_negative_float, non_negative_int
from common.data.bad_samples import usable_samples
from common.data.datasets import spread
from common.data.pairs import BadSample
from common.networks.checkpoints import Checkpoint, Description, load_network
from common.quantization.checkpoints import load_qat
from common.quantization.pt2e import (
    QatSchedule,
    QuantizationSettings,
    calibrate,
    prepare_qat,
    set_evaluation_mode,
    set_training_mode,
)
from common.scoring.evaluate import calibration_batches
from common.system.distributed import is_writer, join_ranks
from common.system.files import require_other
from common.training.fit import Trainee, fit, open_folder, save_trainee
from common.training.resume import resolve_resume
from common.training.schedule import add_recipe_argument, apply_recipe
from common.training.validation import score_table, validate
from models import check_input_hw, find_network

logger = logging.getLogger(__name__)

NETWORK = "SceneSeg"
CHECKPOINT = "qat_checkpoint"
BEST = "qat_best.pth"
FINAL = "qat_model_final_calibrated.pth"


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python quantize_model_sceneseg.py -s checkpoints -r data -fp32 best_model.pth -e 5")
    add_training_arguments(parser, learning_rate=1e-5, weight_decay=1e-5, epochs=5)
    parser.add_argument(
        "-fp32", "--fp32_model", type=Path, default=Path("best_model.pth"), metavar="CKPT", help="FP32 weights"
    )
    parser.add_argument(
        "--per_channel", action="store_true", help="one weight scale per output channel, not per tensor"
    )
    parser.add_argument(
        "--keep_float",
        action="append",
        default=[],
        metavar="PATTERN",
        help="do not quantize modules of this name, as head or 'neck.stages.*.refine'; may be repeated",
    )
    add_input_size_argument(parser)
    add_fuse_argument(parser)
    parser.add_argument("--freeze_batch_norm", type=non_negative_int, default=1, help="after this many epochs")
    parser.add_argument("--freeze_observers", type=non_negative_int, default=2, help="after this many epochs")
    parser.add_argument(
        "--num_calibration_samples", type=non_negative_int, default=200, help="training images for the last calibration"
    )
    parser.add_argument(
        "--distill", type=non_negative_float, metavar="WEIGHT", help="also learn the FP32 network's logits; 0: do not"
    )
    add_recipe_argument(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    apply_recipe(args)
    seed_everything(args.seed)
    device = join_ranks(resolve_device(args.device))
    schedule = QatSchedule(args.freeze_batch_norm, args.freeze_observers)
    bad: list[BadSample] = []
    find = partial(usable_samples, sample_source(args, args.root), bad=bad)
    training, validation = find("train"), spread(find("val"), args.num_val_samples)
    folder = open_folder(args, CHECKPOINT, bad)
    for name in (BEST, FINAL):
        require_other(folder.path / name, args.fp32_model)
    prepared, description, resumed = start_graph(args, resolve_resume(args, folder), device)
    logger.info(
        "%d training and %d validation images, %s on %s", len(training), len(validation), description.network, device
    )
    trainee = Trainee(
        prepared,
        description,
        train_mode=partial(set_training_mode, prepared, schedule),
        eval_mode=partial(set_evaluation_mode, prepared),
        state=prepared.state_dict,
        best=BEST,
        teacher=load_network(NETWORK, args.fp32_model)[0].to(device) if args.distill else None,
    )
    fit(trainee, folder, training, validation, args, device, resumed)

    images = calibration_batches(
        training, args.num_calibration_samples, args.batch_size, description.input_hw, args.seed, args.workers
    )
    calibrate(prepared, (batch.to(device) for batch in images))
    scores = validate(prepared, device, validation, description.input_hw, args)
    if is_writer():
        save_trainee(folder.path / FINAL, trainee, scores, args)
        print(score_table(scores))
        print(f"wrote {folder.path / FINAL}")


def start_graph(
    args: argparse.Namespace, resume: Path | None, device: torch.device
) -> tuple[GraphModule, Description, Checkpoint | None]:
    """The prepared graph, its description, and the checkpoint to resume from: fresh from FP32 weights, or resumed."""
    if resume:
        return load_qat(resume, device)
    model, fp32 = load_network(NETWORK, args.fp32_model)
    settings = QuantizationSettings(args.per_channel, args.fuse, tuple(args.keep_float))
    input_hw = args.input_hw or fp32.input_hw
    check_input_hw(find_network(NETWORK)[1], input_hw)
    description = replace(fp32, kind="qat", input_hw=input_hw, quantization=asdict(settings))
    logger.info("preparing the quantization-aware graph")
    return prepare_qat(model.to(device), input_hw, settings), description, None


if __name__ == "__main__":
    run(main, get_args_parser())
