"""Measure what each part of a QAT recipe does: FP32, post-training quantization, plain QAT, and QAT with each part.

Every INT8 network is scored by its last weights on the validation images, none of which is trained or calibrated on.
Every other one of them is for choosing between the rows ("choosing"), the rest for judging the choice ("judging").
Runs go through quantize_model_sceneseg.py, in folders below --output, and an interrupted measurement goes on where it
stood.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from common.cli.flags import add_dataset_arguments, add_name_argument, make_parser
from common.cli.main import run
from common.cli.types import positive_float, positive_int
from common.commands.inputs import sample_source
from common.data.classes import classes_of
from common.data.datasets import find_samples
from common.data.pairs import Sample
from common.data.transforms import ImageFormat
from common.networks.checkpoints import load_network
from common.networks.registry import find_network
from common.quantization.checkpoints import load_qat
from common.quantization.pt2e import convert, quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.report.text import table
from common.runtimes.predictors import TorchPredictor
from common.scoring.evaluate import calibration_batches, evaluate_datasets, together
from common.system.csv_text import csv_text
from common.system.files import write_text
from common.system.process import resolve_device
from models import DEFAULT_NETWORK

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")  # where INT8 is computed
FINAL = "qat_model_final_calibrated.pth"
FP32 = "FP32"
PTQ = {"PTQ": QuantizationSettings(), "PTQ per channel": QuantizationSettings(per_channel=True)}
PLAIN = ["--recipe", "original", "--learning_rate", "{rate}"]
QAT = {  # name -> flags; {rate} and {warmup} are filled in
    "QAT original": ["--recipe", "original"],
    "QAT": PLAIN,
    "QAT + cosine": [*PLAIN, "--schedule", "cosine", "--warmup_steps", "{warmup}"],
    "QAT + EMA": [*PLAIN, "--ema", "0.99"],
    "QAT + distillation": [*PLAIN, "--distill", "1"],
    "QAT + per channel": [*PLAIN, "--per_channel"],
    "QAT + head in float": [*PLAIN, "--keep_float", "head"],
    "QAT + cosine + EMA": [*PLAIN, "--schedule", "cosine", "--warmup_steps", "{warmup}", "--ema", "0.99"],
}


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__,
        "python -m benchmarks.qat_recipes -fp32 fp32/best_model.pth -r data --datasets CamVid --output recipes -e 5",
    )
    add_name_argument(parser, default=DEFAULT_NETWORK)
    parser.add_argument("-fp32", "--fp32_model", type=Path, required=True, metavar="CKPT", help="FP32 weights")
    parser.add_argument("-r", "--root", type=Path, required=True, metavar="DIR", help="data root")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="runs, and the table as recipes.csv")
    parser.add_argument("-e", "--epochs", type=positive_int, default=5, help="of each QAT run")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="images of one step")
    parser.add_argument("--learning_rate", type=positive_float, default=1e-4, help="of all but the original recipe")
    parser.add_argument("--warmup_steps", type=positive_int, default=20, help="of the rows with a cosine")
    parser.add_argument("--num_calibration_samples", type=positive_int, default=200, help="training images")
    parser.add_argument(
        "--only", nargs="+", choices=[FP32, *PTQ, *QAT], default=[FP32, *PTQ, *QAT], help="rows to make"
    )
    add_dataset_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    resolve_device(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    samples = samples_of(args, "val")
    rows = []
    for name in args.only:
        model, image_format = make_network(name, args)
        rows.append({"network": name, **score(model, samples, image_format, args)})
        write_text(args.output / "recipes.csv", csv_text(rows))
    print(table([{key: f"{v:.4f}" if isinstance(v, float) else str(v) for key, v in row.items()} for row in rows]))
    print(f"wrote {args.output / 'recipes.csv'}")


def samples_of(args: argparse.Namespace, split: str) -> list[Sample]:
    """Those of the data root."""
    return find_samples(sample_source(args, find_network(args.name)[1], args.root), split)


def make_network(name: str, args: argparse.Namespace) -> tuple[nn.Module, ImageFormat]:
    """The network of a row, on the CPU, and how it takes images."""
    _, network = find_network(args.name)
    if name in QAT:
        folder = args.output / name.replace(" ", "_").replace("+", "with")
        train(folder, QAT[name], args)
        prepared, description, _ = load_qat(folder / FINAL, args.name, CPU)
        return convert(prepared), ImageFormat.of(network, description.input_hw)
    model, description = load_network(args.name, args.fp32_model)
    image_format = ImageFormat.of(network, description.input_hw)
    if name in PTQ:
        training, count = samples_of(args, "train"), args.num_calibration_samples
        images = calibration_batches(training, count, args.batch_size, image_format, args.seed, args.workers)
        model = quantize_after_training(model, (3, *description.input_hw), PTQ[name], images)
    return model, image_format


def train(folder: Path, recipe: list[str], args: argparse.Namespace) -> None:
    """Run the script in `folder`, or let it go on there.

    Raises:
        ValueError: the script failed; it has told why on stderr.
    """
    flags = [text.format(rate=args.learning_rate, warmup=args.warmup_steps) for text in recipe]
    for flag in ("name", "fp32_model", "root", "epochs", "batch_size", "num_calibration_samples", "workers", "device"):
        flags += [f"--{flag}", str(getattr(args, flag))]
    flags += ["--seed", str(args.seed), "--threads", str(args.threads), "--resume", "auto", "--keep_checkpoints", "1"]
    flags += ["--datasets", *args.datasets] if args.datasets else []
    flags += ["--labels", str(args.labels)] if args.labels else []
    script = ROOT / "quantize_model_sceneseg.py"
    command = [sys.executable, str(script), "--model_save_root_path", str(folder), *flags]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise ValueError(f"{folder}: the training failed, see above")


def score(
    model: nn.Module, samples: list[Sample], image_format: ImageFormat, args: argparse.Namespace
) -> dict[str, object]:
    """mIoU of the choosing and of the judging half, and of all with the IoU of each class."""
    halves = {"choosing": samples[0::2], "judging": samples[1::2]}
    predict, classes = TorchPredictor(model, CPU), classes_of(find_network(args.name)[1], samples)
    scored = {
        half: together(evaluate_datasets(predict, images, image_format, classes, 1, args.workers).values(), classes)
        for half, images in halves.items()
    }
    meter = together(scored.values(), classes)
    return {
        **{f"mIoU, {half}": part.miou() for half, part in scored.items()},
        "mIoU, all": meter.miou(),
        **dict(zip(classes.scored_names, meter.iou().tolist(), strict=True)),
        "images": meter.images,
    }


if __name__ == "__main__":
    run(main, get_args_parser())
