"""The flags that FP32 training and quantization-aware training share."""

import argparse
from pathlib import Path

from common.cli.flags import add_dataset_arguments
from common.cli.types import decay, fraction, non_negative_float, non_negative_int, positive_float, positive_int
from common.training.precision import PRECISIONS


def add_training_arguments(
    parser: argparse.ArgumentParser, learning_rate: float, weight_decay: float, epochs: int
) -> None:
    """All of them; only the defaults differ."""
    parser.add_argument("-s", "--model_save_root_path", required=True, type=Path, metavar="DIR", help="checkpoints")
    parser.add_argument("-r", "--root", required=True, type=Path, metavar="DIR", help="data root")
    add_dataset_arguments(parser)
    _add_step_arguments(parser, learning_rate, weight_decay, epochs)
    _add_data_arguments(parser)
    _add_checkpoint_arguments(parser)


def _add_step_arguments(
    parser: argparse.ArgumentParser, learning_rate: float, weight_decay: float, epochs: int
) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("-e", "--epochs", type=positive_int, default=epochs, help="passes over the training images")
    group.add_argument("--batch_size", type=positive_int, default=32, help="images of one step, over all processes")
    group.add_argument(
        "--gradient_accumulation",
        type=positive_int,
        default=1,
        help="compute a step in this many parts, to save memory",
    )
    group.add_argument("--precision", choices=PRECISIONS, default="fp32", help="arithmetic outside fake quantization")
    group.add_argument("--learning_rate", type=positive_float, default=learning_rate, help="of AdamW")
    group.add_argument("--weight_decay", type=non_negative_float, default=weight_decay, help="of AdamW")
    group.add_argument("--schedule", choices=("constant", "cosine"), default="constant", help="of the learning rate")
    group.add_argument("--warmup_steps", type=non_negative_int, default=0, help="steps of a rising learning rate")
    group.add_argument("--ema", type=decay, default=0.0, metavar="DECAY", help="average the weights; 0: do not")
    group.add_argument("--unweighted_loss", action="store_true", help="cross-entropy without the class weights")


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--augmentation", type=fraction, default=0.5, help="strength of the augmentation, 0 to 1")
    group.add_argument("--samples_per_epoch", type=positive_int, help="train on this many images of each epoch's order")
    group.add_argument("--cache_dir", type=Path, metavar="DIR", help="keep prepared images here, about 0.8 MB each")
    group.add_argument(
        "--reduced_decode", action="store_true", help="decode large JPEG training images at half their size"
    )


def _add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints and records")
    group.add_argument(
        "--checkpoint_interval", type=positive_int, default=8000, help="samples between checkpoints within an epoch"
    )
    group.add_argument("--keep_checkpoints", type=positive_int, metavar="K", help="keep the last K; default: all")
    group.add_argument("--resume", metavar="CKPT", help="go on from a checkpoint of this script; auto: from the newest")
    group.add_argument(
        "--num_val_samples", type=positive_int, help="validation images per dataset at each checkpoint; default: all"
    )
    group.add_argument(
        "--validation_pictures", type=non_negative_int, default=0, metavar="N", help="drawn per dataset, each time"
    )
    group.add_argument("--tensorboard", action="store_true", help="write events for TensorBoard, too")
