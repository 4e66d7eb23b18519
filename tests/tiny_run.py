"""A training run as the scripts do it, on a network of two layers: what the tests of long runs start and kill."""

import argparse
from functools import partial

import torch
from torch import nn

from common.cli.flags import make_parser, sample_source
from common.cli.main import resolve_device, run, seed_everything
from common.cli.training import add_training_arguments
from common.cli.types import height_width
from common.data.bad_samples import usable_samples
from common.data.labels import CLASSES
from common.data.pairs import BadSample
from common.networks.checkpoints import Description, read_checkpoint
from common.system.distributed import is_writer, join_ranks
from common.training.fit import Trainee, fit, open_folder, save_trainee
from common.training.resume import resolve_resume


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python tests/tiny_run.py -s out -r data")
    add_training_arguments(parser, learning_rate=1e-2, weight_decay=1e-2, epochs=3)
    parser.add_argument("--input_hw", type=height_width, default=(16, 32))
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--frozen_batch_norm", action="store_true")
    return parser


def make_model(dropout: float) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(dropout), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    device = join_ranks(resolve_device(args.device))
    bad: list[BadSample] = []
    find = partial(usable_samples, sample_source(args, args.root), bad=bad)
    training, validation = find("train"), find("val")
    folder = open_folder(args, "checkpoint", bad)
    resume = resolve_resume(args, folder)
    model = make_model(args.dropout)
    checkpoint = read_checkpoint(resume) if resume else None
    if checkpoint:
        model.load_state_dict(checkpoint.state)

    def train_mode(epoch: int) -> None:
        model.train()
        model[2].train(not args.frozen_batch_norm)

    description = Description("Tiny", "fp32", 1.0, args.input_hw, CLASSES)
    trainee = Trainee(model, description, train_mode, model.eval, model.state_dict, "best.pth")
    fit(trainee, folder, training, validation, args, device, checkpoint)
    if is_writer():
        save_trainee(folder.path / "final.pth", trainee, {}, args)
    print(f"done {torch.distributed.is_initialized()}")


if __name__ == "__main__":
    run(main, get_args_parser())
