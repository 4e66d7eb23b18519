"""Measure what each part of a QAT recipe does, with several seeds: FP32, without training, and one QAT for each part.

Every network is scored by its last weights on the validation images, none of which is trained or calibrated on. Every
other one of them is for choosing between the rows ("choosing"), the rest for judging the choice ("judging"). "trained
in float" is the FP32 network after the same steps without quantization: what training alone does to the score.
"unrounded" is the same network with its outputs in float, everything else in INT8: logits that are rounded to codes tie
in some pixels, where the first class wins, which changes the score of any network (docs/accuracy.md).
Runs go through quantize_model_sceneseg.py, in folders below --output, and an interrupted measurement goes on where it
stood. Seeds are taken one after another, so that it has a table of all rows after the first.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from benchmarks.tables import cells, write_csv
from common.cli.flags import add_dataset_arguments, add_name_argument, make_parser
from common.cli.main import run
from common.cli.types import non_negative_int, positive_float, positive_int
from common.commands.inputs import sample_source
from common.data.classes import classes_of
from common.data.datasets import find_samples
from common.data.loading import SampleDataset
from common.data.pairs import Sample
from common.data.transforms import ImageFormat
from common.networks.checkpoints import load_network
from common.networks.registry import find_network
from common.quantization.checkpoints import load_qat
from common.quantization.graphs import DEQUANTIZE, QUANTIZE
from common.quantization.nodes import input_of
from common.quantization.pt2e import convert, quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.report.text import table
from common.runtimes.predictors import TorchPredictor
from common.scoring.evaluate import batches_of, calibration_batches
from common.scoring.metrics import confusion_of, miou_of
from common.scoring.statistics import paired_intervals, resampled_iou
from common.system.process import resolve_device
from common.system.progress import progress
from common.training.settings import PRECISIONS
from models import DEFAULT_NETWORK

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")  # where INT8 is computed
FINAL = "qat_model_final_calibrated.pth"
FP32 = "FP32"
PTQ = {
    "PTQ": QuantizationSettings(),
    "PTQ, per channel": QuantizationSettings(per_channel=True),
    "PTQ, tensorrt": QuantizationSettings(per_channel=True, target="tensorrt"),
}
CONSTANT = ["--learning_rate", "{learning_rate}"]
COSINE = [*CONSTANT, "--schedule", "cosine", "--warmup_steps", "{warmup_steps}"]
WITHOUT_LABELS = ["--images", "{images}", "--learning_rate", "{unlabelled_rate}", "--warmup_steps", "{warmup_steps}"]
TRAINED = {  # name -> flags
    "trained in float": [*COSINE, "--keep_float", "*"],
    "QAT, original": ["--recipe", "original"],
    "QAT, constant": CONSTANT,
    "QAT": COSINE,
    "QAT, EMA": [*COSINE, "--ema", "0.99"],
    "QAT, distillation": [*COSINE, "--distill", "1"],
    "QAT, from PTQ": [*COSINE, "--start_from", "ptq"],
    "QAT, per channel": [*COSINE, "--per_channel"],
    "QAT, reduced range": [*COSINE, "--reduced_range"],
    "QAT, tensorrt": [*COSINE, "--target", "tensorrt"],
    "QAT, tensorrt, per tensor": [*COSINE, "--target", "tensorrt", "--no-per_channel"],
    "QAT, distillation, tensorrt": [*COSINE, "--distill", "1", "--target", "tensorrt"],
    "QAT, distillation, tensorrt, per tensor": [*COSINE, "--distill", "1", "--target", "tensorrt", "--no-per_channel"],
    "QAT without labels": WITHOUT_LABELS,
    "QAT without labels, tensorrt": [*WITHOUT_LABELS, "--target", "tensorrt"],
}


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__,
        "python -m benchmarks.qat_recipes -fp32 fp32/best_model.pth -r data --datasets CamVid --output recipes -e 5",
    )
    add_name_argument(parser, default=DEFAULT_NETWORK)
    parser.add_argument("-fp32", "--fp32_model", type=Path, required=True, metavar="CKPT", help="FP32 weights")
    parser.add_argument("-r", "--root", type=Path, required=True, metavar="DIR", help="data root")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="runs, recipes.csv and runs.csv")
    parser.add_argument("-e", "--epochs", type=positive_int, default=5, help="of each run")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="images of one step")
    parser.add_argument("--learning_rate", type=positive_float, default=1e-4, help="of all but the original recipe")
    parser.add_argument("--unlabelled_rate", type=positive_float, default=3e-5, help="of the rows without labels")
    parser.add_argument("--warmup_steps", type=non_negative_int, default=20, help="of the rows with a cosine")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of all trainings")
    parser.add_argument("--num_calibration_samples", type=positive_int, default=200, help="training images")
    parser.add_argument("--seeds", nargs="+", type=non_negative_int, default=[0, 1, 2], help="of the runs of each row")
    rows = [FP32, *PTQ, *TRAINED]
    parser.add_argument("--only", nargs="+", choices=rows, default=rows, metavar="ROW", help="; ".join(rows))
    add_dataset_arguments(parser)
    return parser


@dataclass(frozen=True)
class Run:
    """One network, scored."""

    network: str
    seed: int
    confusions: np.ndarray  # of each image, (N, C, C) or (N, C, C + 1)
    unrounded: np.ndarray  # the same with outputs in float
    seconds: float  # of its training or calibration; 0: it was there


@dataclass(frozen=True)
class RunRow:
    """A line of runs.csv."""

    network: str
    seed: int
    miou: float
    choosing: float
    judging: float
    unrounded: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """A line of recipes.csv: all seeds of a network."""

    network: str
    seeds: int
    miou: float  # the mean of the seeds, as all that follows
    lowest: float
    highest: float
    choosing: float
    judging: float
    unrounded: float
    against_fp32: float | None  # paired by image, with the 95 % interval of a bootstrap over images
    low: float | None
    high: float | None


def main(args: argparse.Namespace) -> None:
    resolve_device(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    samples = samples_of(args, "val")
    settings = {"epochs": args.epochs, "batch_size": args.batch_size, "images": len(samples)}
    runs: list[Run] = []
    for seed in args.seeds:
        for name in args.only if seed == args.seeds[0] else [name for name in args.only if name in TRAINED]:
            runs.append(one_run(name, seed, samples, args))
            write_csv(args.output / "runs.csv", [run_row(each) for each in runs], settings)
        rows = summarise(runs, [sample.dataset for sample in samples], args.seed)
        write_csv(args.output / "recipes.csv", rows, settings)
    print(table([cells(row, 4) for row in rows]))
    print(f"wrote {args.output / 'recipes.csv'} and {args.output / 'runs.csv'}")


def one_run(name: str, seed: int, samples: Sequence[Sample], args: argparse.Namespace) -> Run:
    """Make the network of a row, and score it with rounded outputs and in float."""
    start = time.perf_counter()
    model, image_format = make_network(name, seed, args)
    seconds = time.perf_counter() - start
    rounded = unrounded = score(model, samples, image_format, args)
    if isinstance(model, GraphModule) and keep_outputs(model):
        unrounded = score(model, samples, image_format, args)
    return Run(name, seed, rounded, unrounded, seconds)


def run_row(run: Run) -> RunRow:
    """The figures of one run alone."""
    figures = [miou_of(run.confusions[part]) for part in (slice(None), slice(0, None, 2), slice(1, None, 2))]
    return RunRow(run.network, run.seed, *figures, miou_of(run.unrounded), run.seconds)


def summarise(runs: Sequence[Run], strata: Sequence[str], seed: int) -> list[Row]:
    """A row for each network, in the order of the runs.

    Args:
        strata: the dataset of each image.
        seed: of the bootstrap.
    """
    reference = next((each.confusions for each in runs if each.network == FP32), None)
    rows = []
    for name in dict.fromkeys(each.network for each in runs):
        mine = [each for each in runs if each.network == name]
        alone = [run_row(each) for each in mine]
        change = (None, None, None)
        if reference is not None and name != FP32:
            images = np.full(1 + reference.shape[1], len(reference))
            before = partial(resampled_iou, reference)
            interval = paired_intervals(before, partial(mean_iou, mine), images, strata, seed)[0]
            change = (interval.value, interval.low, interval.high)
        scores = [row.miou for row in alone]
        others = [float(np.mean([getattr(row, key) for row in alone])) for key in ("choosing", "judging", "unrounded")]
        rows.append(Row(name, len(mine), float(np.mean(scores)), min(scores), max(scores), *others, *change))
    return rows


def mean_iou(runs: Sequence[Run], counts: np.ndarray) -> np.ndarray:
    """`resampled_iou` of networks of several seeds, their mean."""
    return np.mean([resampled_iou(each.confusions, counts) for each in runs], axis=0)


def samples_of(args: argparse.Namespace, split: str) -> list[Sample]:
    """Those of the data root."""
    return find_samples(sample_source(args, find_network(args.name)[1], args.root), split)


def make_network(name: str, seed: int, args: argparse.Namespace) -> tuple[nn.Module, ImageFormat]:
    """The network of a row, on the CPU, and how it takes images."""
    _, network = find_network(args.name)
    if name in TRAINED:
        folder = args.output / f"{name.replace(',', '').replace(' ', '_')}_{seed}"
        train(folder, TRAINED[name], seed, args)
        prepared, description, _ = load_qat(folder / FINAL, args.name, CPU)
        return convert(prepared), ImageFormat.of(network, description.input_hw)
    model, description = load_network(args.name, args.fp32_model)
    image_format = ImageFormat.of(network, description.input_hw)
    if name in PTQ:
        training, count = samples_of(args, "train"), args.num_calibration_samples
        images = calibration_batches(training, count, args.batch_size, image_format, seed, args.workers)
        model = quantize_after_training(model, (3, *description.input_hw), PTQ[name], images)
    return model, image_format


def keep_outputs(int8: GraphModule) -> bool:
    """Hand out in float what the graph rounds to codes for its outputs alone, in place; whether there is such a one."""
    output = next(node for node in int8.graph.nodes if node.op == "output")
    found = False
    for node in output.all_input_nodes:
        if node.target == DEQUANTIZE and input_of(node).target == QUANTIZE:
            output.replace_input_with(node, input_of(input_of(node)))
            found = True
    int8.recompile()
    return found


def train(folder: Path, recipe: Sequence[str], seed: int, args: argparse.Namespace) -> None:
    """Run the script in `folder`, or let it go on there; nothing where it is through.

    Raises:
        ValueError: the script failed; it has told why on stderr.
    """
    if (folder / FINAL).is_file():
        return
    images = training_images(args) if "--images" in recipe else None
    flags = [text.format(**vars(args) | {"images": images}) for text in recipe]
    of_all = ("name", "fp32_model", "epochs", "batch_size", "precision", "num_calibration_samples", "workers", "device")
    for flag in of_all:
        flags += [f"--{flag}", str(getattr(args, flag))]
    flags += ["--seed", str(seed), "--resume", "auto", "--keep_checkpoints", "1"]
    flags += ["--threads", str(args.threads)] if args.threads else []
    if images is None:
        flags += ["--root", str(args.root), "--cache_dir", str(args.output / "cache"), "--num_val_samples", "8"]
        flags += ["--datasets", *args.datasets] if args.datasets else []
        flags += ["--labels", str(args.labels)] if args.labels else []
    script = ROOT / "quantize_model_sceneseg.py"
    command = [sys.executable, str(script), "--model_save_root_path", str(folder), *flags]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise ValueError(f"{folder}: the training failed, see above")


def training_images(args: argparse.Namespace) -> Path:
    """A folder of links to the training images, without their masks."""
    folder = args.output / "training_images"
    folder.mkdir(exist_ok=True)
    for sample in samples_of(args, "train"):
        link = folder / f"{sample.dataset}_{sample.image.name}"
        if not link.exists():
            link.symlink_to(sample.image.resolve())
    return folder


def score(
    model: nn.Module, samples: Sequence[Sample], image_format: ImageFormat, args: argparse.Namespace
) -> np.ndarray:
    """The confusion matrix of each image."""
    predict, classes = TorchPredictor(model, CPU), classes_of(find_network(args.name)[1], list(samples))
    images = progress(batches_of(SampleDataset(samples, image_format), 1, args.workers), "evaluate", unit="image")
    return np.stack([confusion_of(predict(image.image), image.mask, classes) for image in images])


if __name__ == "__main__":
    run(main, get_args_parser())
