"""Fine-tune an FP32 SceneSeg with fake quantization (QAT, PT2E with XNNPACKQuantizer) and write QAT checkpoints."""

import argparse
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch.fx import GraphModule

from common.checkpoints import Description, load_network, save_checkpoint
from common.cli import (
    add_fuse_argument,
    add_input_size_argument,
    add_training_arguments,
    make_parser,
    non_negative_int,
    plain_arguments,
    resolve_device,
    run,
    seed_everything,
)
from common.datasets import AugmentedDataset, find_samples, spread
from common.environment import versions
from common.evaluate import calibration_batches
from common.qat_checkpoints import load_qat
from common.quantization import (
    QatSchedule,
    QuantizationSettings,
    calibrate,
    prepare_qat,
    set_evaluation_mode,
    set_training_mode,
)
from common.training import (
    Position,
    make_optimizer,
    record,
    restore_training_state,
    score_table,
    train,
    training_state,
    validate,
)
from models import check_input_hw, find_network

logger = logging.getLogger(__name__)

NETWORK = "SceneSeg"
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
    add_input_size_argument(parser)
    add_fuse_argument(parser)
    parser.add_argument("--freeze_batch_norm", type=non_negative_int, default=1, help="after this many epochs")
    parser.add_argument("--freeze_observers", type=non_negative_int, default=2, help="after this many epochs")
    parser.add_argument(
        "--num_calibration_samples", type=non_negative_int, default=200, help="training images for the last calibration"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    device = resolve_device(args.device)
    schedule = QatSchedule(args.freeze_batch_norm, args.freeze_observers)
    training = find_samples(args.root, args.datasets, "train")
    validation = spread(find_samples(args.root, args.datasets, "val"), args.num_val_samples)
    prepared, description, resumed = start_graph(args, device)
    logger.info(
        "%d training and %d validation images, %s on %s", len(training), len(validation), description.network, device
    )

    optimizer = make_optimizer(prepared, args)
    start, history = Position(), []
    if args.resume:
        start, history = restore_training_state(resumed, optimizer, args, len(training))
    dataset = AugmentedDataset(training, description.input_hw, args.augmentation, args.seed)
    folder = args.model_save_root_path
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str, scores: dict, state: dict | None) -> None:
        described = replace(description, metrics=scores, arguments=plain_arguments(args), versions=versions())
        save_checkpoint(folder / name, prepared.state_dict(), described, state)

    for moment in train(
        prepared, optimizer, dataset, args, device, partial(set_training_mode, prepared, schedule), start
    ):
        set_evaluation_mode(prepared)
        scores = validate(prepared, device, validation, description.input_hw, args)
        record(history, moment, scores, folder)
        state = training_state(optimizer, moment.position, history, args, len(training))
        save(f"qat_checkpoint_epoch_{moment.epoch}_step_{moment.position.step}.pth", scores, state)

    images = calibration_batches(
        training, args.num_calibration_samples, args.batch_size, description.input_hw, args.seed, args.workers
    )
    calibrate(prepared, (batch.to(device) for batch in images))
    scores = validate(prepared, device, validation, description.input_hw, args)
    save(FINAL, scores, None)
    print(score_table(scores))
    print(f"wrote {folder / FINAL}")


def start_graph(args: argparse.Namespace, device: torch.device) -> tuple[GraphModule, Description, dict | None]:
    """The prepared graph, what its checkpoints say of it, and the state to resume from: fresh from FP32, or resumed."""
    if args.resume:
        prepared, description, checkpoint = load_qat(args.resume, device)
        return prepared, description, checkpoint.training
    model, fp32 = load_network(NETWORK, args.fp32_model)
    settings = QuantizationSettings(args.per_channel, args.fuse)
    input_hw = args.input_hw or fp32.input_hw
    check_input_hw(find_network(NETWORK)[1], input_hw)
    description = replace(fp32, kind="qat", input_hw=input_hw, quantization=asdict(settings))
    logger.info("preparing the quantization-aware graph")
    return prepare_qat(model.to(device), input_hw, settings), description, None


if __name__ == "__main__":
    run(main, get_args_parser())
