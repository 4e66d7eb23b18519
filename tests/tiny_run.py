"""A training run as the scripts do it, on a network of two layers: what the tests of long runs start and kill."""

import argparse
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.training import add_training_arguments, settings_of, use_defaults
from common.cli.types import height_width
from common.data.bad_samples import usable_samples
from common.data.pairs import BadSample
from common.networks.checkpoints import Description, read_checkpoint
from common.system.distributed import is_writer, join_ranks, world_size
from common.system.process import resolve_device, seed_everything
from common.training.fit import Trainee, fit, open_folder, save_trainee
from common.training.labelled import LabelledTask, sample_source
from common.training.settings import RunSettings, TrainingSettings
from tests.family import NAME, NETWORK, format_of


@dataclass(frozen=True)
class TinySettings:
    """The network."""

    input_hw: tuple[int, int] = (16, 32)
    dropout: float = 0.3
    frozen_batch_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class TinyRunSettings(RunSettings):
    training: TrainingSettings = TrainingSettings(epochs=3, learning_rate=1e-2, weight_decay=1e-2)
    tiny: TinySettings = field(default_factory=TinySettings)


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python tests/tiny_run.py -s out -r data")
    add_training_arguments(parser)
    parser.add_argument("--input_hw", type=height_width)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--frozen_batch_norm", action="store_true")
    use_defaults(parser, TinyRunSettings())
    return parser


def make_model(dropout: float) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(dropout), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    device = join_ranks(resolve_device(args.device))
    settings = settings_of(TinyRunSettings, args, processes=world_size())
    data, tiny = settings.data, settings.tiny
    bad: list[BadSample] = []
    find = partial(usable_samples, sample_source(data, NAME, NETWORK), bad=bad)
    training, validation = find("train"), find("val")
    folder = open_folder(settings.records.model_save_root_path, "checkpoint", bad)
    resume = folder.resumed(settings.records.resume)
    model = make_model(tiny.dropout)
    checkpoint = read_checkpoint(resume) if resume else None
    if checkpoint:
        model.load_state_dict(checkpoint.state)

    def train_mode(epoch: int) -> None:
        model.train()
        model[2].train(not tiny.frozen_batch_norm)

    description = Description("Tiny", "fp32", 1.0, tiny.input_hw, NETWORK.classes)
    trainee = Trainee(model, description, train_mode, model.eval, model.state_dict, "best.pth")
    task = LabelledTask(training, validation, NETWORK, format_of(tiny.input_hw), device)
    settings = fit(trainee, task, folder, settings, device, checkpoint)
    if is_writer():
        save_trainee(folder.path / "final.pth", trainee, {}, settings)
    print(f"done {torch.distributed.is_initialized()}")


if __name__ == "__main__":
    run(main, get_args_parser())
