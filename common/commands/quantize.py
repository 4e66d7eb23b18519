"""Quantization-aware training of an FP32 network: from flags to QAT checkpoints."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from common.cli.training import settings_of
from common.data.pairs import BadSample
from common.export.in_float import in_float_when_converted, tell
from common.networks.checkpoints import Checkpoint, Description, load_network
from common.networks.registry import find_network
from common.quantization.checkpoints import load_qat
from common.quantization.pt2e import calibrate, prepare_qat, set_evaluation_mode, set_training_mode
from common.runtimes.targets import TARGETS
from common.system.distributed import is_writer, join_ranks, world_size
from common.system.files import require_other
from common.system.process import resolve_device, seed_everything
from common.training.fit import Trainee, better_of, fit, open_folder, save_trainee
from common.training.imitation import from_images
from common.training.labelled import from_masks
from common.training.settings import QatRunSettings, QatSettings, holds_ranges, observed_together
from models import Network, check_input_hw

logger = logging.getLogger(__name__)

CHECKPOINT = "qat_checkpoint"
BEST = "qat_best.pth"
FINAL = "qat_model_final_calibrated.pth"


def quantize(args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Train, write the checkpoints, and print the scores of the best.

    Args:
        defaults: what flags are where they are not given, other than the recipe says.
    """
    seed_everything(args.seed)
    device = join_ranks(resolve_device(args.device))
    settings = settings_of(QatRunSettings, args, defaults, world_size())
    records, qat = settings.records, settings.qat
    schedule = qat.schedule
    bad: list[BadSample] = []
    _, network = find_network(qat.name)
    find = from_images if qat.images else from_masks
    make_task = find(settings, network, bad)
    folder = open_folder(records.model_save_root_path, CHECKPOINT, bad)
    for written in (BEST, FINAL):
        for source in (qat.fp32_model, qat.taught_by):
            require_other(folder.path / written, source)
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
