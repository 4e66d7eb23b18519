"""Compare models on the same images: accuracy, time, size, memory, pictures and a report. PyTorch and ONNX files."""

import argparse
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch

from common.benchmark.gate import Gate, open_gate
from common.benchmark.outputs import require_one_size
from common.benchmark.results import Document
from common.benchmark.run import keep_to_processors
from common.cli.benchmark import (
    add_benchmark_arguments,
    add_gate_arguments,
    benchmark_settings,
    gate_settings,
    leave_by_gate,
    run_benchmark,
    run_output_benchmark,
)
from common.cli.flags import (
    add_dataset_arguments,
    add_egolanes_argument,
    add_images_argument,
    add_name_argument,
    add_weights_argument,
    compares_outputs,
    labelled_shots_of,
    make_parser,
    refuse_with_class_maps,
    refuse_with_images,
    sample_source,
    score_against_labels,
    shots_of,
)
from common.cli.main import resolve_device, run, seed_everything
from common.cli.types import height_width, named_path
from common.data.bad_samples import usable_samples
from common.data.datasets import spread
from common.data.pairs import BadSample
from common.networks.image_inputs import image_inputs
from common.networks.registry import find_network
from common.report.show import show
from common.runtimes.candidates import KINDS, SHORT_FORMS, Candidate, OpenOptions, open_candidates
from common.runtimes.predictors import CPU, PROVIDERS
from common.scoring.figures import Score
from common.system.files import new_folder
from models import DEFAULT_NETWORK, Network

TITLE = "Comparison of models"
CPU_DEVICE = torch.device("cpu")  # on which predictors take their inputs


def get_args_parser() -> argparse.ArgumentParser:
    example = (
        "python benchmark_onnx_models.py --pytorch_model_path best_model.pth --fp32_model_path SceneSeg.onnx "
        "--int8_model_path checkpoints/onnx_models/SceneSegNetwork_QAT_INT8_final.onnx --dataset_root data"
    )
    parser = make_parser(__doc__, example)
    parser.set_defaults(device="cpu")
    add_name_argument(parser, default=DEFAULT_NETWORK)
    parser.add_argument("--pytorch_model_path", type=Path, metavar="CKPT", help="FP32 weights (.pth, .safetensors)")
    parser.add_argument("--fp32_model_path", type=Path, metavar="ONNX", help="FP32 ONNX file")
    parser.add_argument("--int8_model_path", type=Path, metavar="ONNX", help="INT8 ONNX file")
    parser.add_argument("--pte_model_path", type=Path, metavar="PTE", help="ExecuTorch program")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        type=named_path,
        metavar="NAME=PATH",
        help=f"any other model, of a kind by its suffix: {', '.join(KINDS)}; may be repeated. The first model of all "
        "is the reference of the differences",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--dataset_root", type=Path, metavar="DIR", help="data root; needed unless --images or --show is given"
    )
    add_images_argument(source, "all of them; compare the outputs with the first model's")
    add_egolanes_argument(parser, "on images")
    parser.add_argument(
        "--show",
        type=Path,
        metavar="PATH",
        help="no benchmark: write what the models see in an image, a folder of images or a video, with their times",
    )
    parser.add_argument("--save_outputs", action="store_true", help="also write the pictures as PNG files")
    parser.add_argument(
        "--output_dir_base",
        type=Path,
        default=Path("./benchmark_multimodel_results"),
        metavar="DIR",
        help="results go to a dated folder below it",
    )
    parser.add_argument(
        "--providers",
        nargs="+",
        choices=PROVIDERS,
        default=[CPU],
        metavar="PROVIDER",
        help=f"run the ONNX files on each of these of ONNX Runtime, {', '.join(PROVIDERS)}; never on another one",
    )
    add_weights_argument(parser)
    parser.add_argument("--pytorch_target_hw", type=height_width, metavar="H,W", help="default: the file's own")
    parser.add_argument("--onnx_target_hw", type=height_width, metavar="H,W", help="default: the file's own")
    add_benchmark_arguments(parser)
    add_gate_arguments(parser)
    add_dataset_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    refuse_with_images(args, get_args_parser(), ("datasets", "labels", "show"))
    if not (args.dataset_root or args.images or args.show):
        get_args_parser().error("the following arguments are required: --dataset_root")  # leaves with exit code 2
    settings, limits = benchmark_settings(args), gate_settings(args)
    if args.show and (unused := [*limits.limits.given(), *["baseline"] * bool(limits.baseline)]):
        get_args_parser().error(f"argument --show: makes no benchmark to check; leave --{unused[0]} out")
    name, network = find_network(args.name)
    outputs, score = compares_outputs(args, network), score_against_labels(args, name, network)
    if not outputs:
        refuse_with_class_maps(args, get_args_parser(), ("egolanes_checkpoint",))
    seed_everything(args.seed)
    keep_to_processors(settings)
    device, sizes = resolve_device(args.device), (args.pytorch_target_hw, args.onnx_target_hw)
    options = OpenOptions(device, args.threads, name, *sizes, weights=args.weights)
    candidates = open_candidates(named_models(args), options, args.providers)
    gate = open_gate(limits, list(candidates), outputs=outputs, score=score)
    folder = args.output_dir_base / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if args.show:
        written = show(args.show, candidates, network, args.threads, folder, args.image_bits)
        print(f"wrote {len(written)} files, the first is {written[0]}")
        return
    if outputs:
        document = compare_outputs(args, folder, candidates, network, gate, score)
    else:
        document = compare_class_maps(args, folder, candidates, network, gate)
    leave_by_gate(document)


def compare_class_maps(
    args: argparse.Namespace, folder: Path, candidates: Mapping[str, Candidate], network: Network, gate: Gate
) -> Document:
    """On images with masks of classes."""
    bad: list[BadSample] = []
    found = usable_samples(sample_source(args, network, args.dataset_root), "val", bad)
    samples = spread(found, args.num_samples_per_dataset)
    gate.require_calls(len(samples), args.timed_runs)
    parts = {"bad": bad, "save_outputs": args.save_outputs}
    return run_benchmark(args, new_folder(folder), TITLE, candidates, samples, network, gate, **parts)


def compare_outputs(
    args: argparse.Namespace,
    folder: Path,
    candidates: Mapping[str, Candidate],
    network: Network,
    gate: Gate,
    score: Score | None,
) -> Document:
    """On images without masks of classes; with a score on those of the data root, with other labels."""
    inputs = image_inputs(args.name, network, require_one_size(candidates), CPU_DEVICE, args.egolanes_checkpoint)
    bad: list[BadSample] = []
    found = labelled_shots_of(args, network, "val", bad) if score else shots_of(args, network, bad)
    shots = spread(found, args.num_samples_per_dataset)
    gate.require_calls(len(shots), args.timed_runs)
    parts = {"score": score, "bad": bad, "save_outputs": args.save_outputs}
    return run_output_benchmark(args, new_folder(folder), TITLE, candidates, shots, inputs, network, gate, **parts)


def named_models(args: argparse.Namespace) -> list[tuple[str, Path, str]]:
    """(label, path, kind) of the models on the command line, those of the short flags first."""
    paths = (args.pytorch_model_path, args.fp32_model_path, args.int8_model_path, args.pte_model_path)
    short = [(label, path, kind) for (label, kind), path in zip(SHORT_FORMS.items(), paths, strict=True) if path]
    return [*short, *((name, path, path.suffix.lower()) for name, path in args.model)]


if __name__ == "__main__":
    run(main, get_args_parser())
