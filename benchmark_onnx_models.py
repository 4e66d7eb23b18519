"""Compare PyTorch, FP32 ONNX and INT8 ONNX on the same images: accuracy, time, size, memory, pictures and a report."""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from common.checkpoints import load_network
from common.cli import (
    add_dataset_arguments,
    height_width,
    make_parser,
    non_negative_int,
    plain_arguments,
    positive_int,
    resolve_device,
    run,
    seed_everything,
)
from common.datasets import Sample, find_samples, spread
from common.evaluate import evaluate_datasets, warm_up
from common.memory import peak_memory
from common.onnx_export import precision_of
from common.predictors import OnnxPredictor, Predictor, TorchPredictor
from common.report import ModelResult, accuracy_table, model_result, summary_table, write_report
from common.transforms import INPUT_HW
from common.visualize import save_pictures
from models import check_input_hw, find_network

logger = logging.getLogger(__name__)

NETWORK = "SceneSeg"


@dataclass(frozen=True)
class Candidate:
    """A model to benchmark: how to open it (in any process), and how it takes its images."""

    path: Path
    open: Callable[[], Predictor]
    precision: str
    input_hw: tuple[int, int]


def get_args_parser() -> argparse.ArgumentParser:
    example = (
        "python benchmark_onnx_models.py --pytorch_model_path best_model.pth --fp32_model_path SceneSeg.onnx "
        "--int8_model_path checkpoints/onnx_models/SceneSegNetwork_QAT_INT8_final.onnx --dataset_root data"
    )
    parser = make_parser(__doc__, example)
    parser.set_defaults(device="cpu")
    parser.add_argument("--pytorch_model_path", type=Path, metavar="CKPT", help="FP32 weights (.pth)")
    parser.add_argument("--fp32_model_path", type=Path, metavar="ONNX", help="FP32 ONNX file")
    parser.add_argument("--int8_model_path", type=Path, metavar="ONNX", help="INT8 ONNX file")
    parser.add_argument("--dataset_root", required=True, type=Path, metavar="DIR", help="data root")
    parser.add_argument(
        "--num_samples_per_dataset", type=positive_int, default=20, help="validation images scored per dataset"
    )
    parser.add_argument("--warmup_runs", type=non_negative_int, default=3, help="untimed runs before the clock starts")
    parser.add_argument("--save_outputs", action="store_true", help="write pictures: Original | GT | Prediction")
    parser.add_argument(
        "--visualizations_per_dataset", type=positive_int, default=2, help="pictures of each model per dataset"
    )
    parser.add_argument(
        "--output_dir_base",
        type=Path,
        default=Path("./benchmark_multimodel_results"),
        metavar="DIR",
        help="results go to a dated folder below it",
    )
    parser.add_argument("--pytorch_target_hw", type=height_width, metavar="H,W", help="default: the checkpoint's own")
    parser.add_argument("--onnx_target_hw", type=height_width, metavar="H,W", help="default: the file's own")
    add_dataset_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    candidates = open_candidates(args)
    samples = spread(find_samples(args.dataset_root, args.datasets, "val"), args.num_samples_per_dataset)
    folder = args.output_dir_base / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True)

    models, pictures = {}, []
    for label, candidate in candidates.items():
        predict = candidate.open()
        models[label] = benchmark(label, candidate, predict, samples, args)
        if args.save_outputs:
            pictures += save_pictures(
                folder, label, predict, samples, candidate.input_hw, args.visualizations_per_dataset
            )
    write_report(folder, "PyTorch, ONNX FP32 and ONNX INT8", models, plain_arguments(args), pictures=pictures)
    print(accuracy_table(models), summary_table(models), sep="\n\n")
    print(f"wrote {folder / 'report.md'} and results.json" + (f", {len(pictures)} pictures" if pictures else ""))


def open_candidates(args: argparse.Namespace) -> dict[str, Candidate]:
    """Label -> candidate for the paths that were given.

    Raises:
        ValueError: no path was given, or a file is not what its flag says.
    """
    candidates = {}
    if args.pytorch_model_path:
        _, description = load_network(NETWORK, args.pytorch_model_path)  # a wrong file fails here, before any timing
        input_hw = args.pytorch_target_hw or description.input_hw
        check_input_hw(find_network(NETWORK)[1], input_hw)
        open_model = partial(open_pytorch, args.pytorch_model_path, resolve_device(args.device))
        candidates["PyTorch"] = Candidate(args.pytorch_model_path, open_model, "fp32", input_hw)
    for label, path in (("ONNX FP32", args.fp32_model_path), ("ONNX INT8", args.int8_model_path)):
        if path:
            candidates[label] = onnx_candidate(label, path, args)
    if not candidates:
        raise ValueError("no model given; name one of --pytorch_model_path, --fp32_model_path, --int8_model_path")
    return candidates


def open_pytorch(path: Path, device: torch.device) -> TorchPredictor:
    """The network of a checkpoint as a predictor."""
    return TorchPredictor(load_network(NETWORK, path)[0], device)


def onnx_candidate(label: str, path: Path, args: argparse.Namespace) -> Candidate:
    """An ONNX file, its precision read from the file and its input size from the flag, the file or the network."""
    own_hw = OnnxPredictor(path, args.threads).input_hw
    if own_hw and args.onnx_target_hw and own_hw != args.onnx_target_hw:
        raise ValueError(f"--onnx_target_hw {args.onnx_target_hw}: {path} is fixed to {own_hw}; leave the flag out")
    precision = precision_of(path)
    if (precision == "int8") != (label == "ONNX INT8"):
        raise ValueError(f"{path}: an {precision} file given as {label}; use the other flag")
    return Candidate(
        path, partial(OnnxPredictor, path, args.threads), precision, own_hw or args.onnx_target_hw or INPUT_HW
    )


def benchmark(
    label: str, candidate: Candidate, predict: Predictor, samples: list[Sample], args: argparse.Namespace
) -> ModelResult:
    """Warm up, score and time one model on `samples`, one image at a time, and measure its memory."""
    logger.info("%s: %s", label, candidate.path)
    warm_up(predict, samples, candidate.input_hw, args.warmup_runs)
    evaluations = evaluate_datasets(predict, samples, candidate.input_hw, description=label)
    memory = peak_memory(candidate.open, (1, 3, *candidate.input_hw), args.threads)
    return model_result(
        candidate.path, candidate.precision, predict.provider, args.threads, candidate.input_hw, evaluations, memory
    )


if __name__ == "__main__":
    run(main, get_args_parser())
