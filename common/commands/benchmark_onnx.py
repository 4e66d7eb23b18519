"""Models side by side on the same images: from flags to the report, or to what they see in images and videos."""

import argparse
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch

from common.benchmark.gate import Gate, open_gate
from common.benchmark.outputs import require_one_size
from common.benchmark.results import Document
from common.benchmark.run import keep_to_processors
from common.cli.benchmark import benchmark_settings, gate_settings
from common.cli.flags import refuse_with_class_maps
from common.commands.inputs import compares_outputs, labelled_shots_of, sample_source, score_against_labels, shots_of
from common.commands.reports import leave_by_gate, run_benchmark, run_output_benchmark
from common.data.bad_samples import usable_samples
from common.data.datasets import spread
from common.data.pairs import BadSample
from common.networks.image_inputs import image_inputs
from common.networks.registry import find_network
from common.report.show import show
from common.runtimes.candidates import SHORT_FORMS, Candidate, OpenOptions, open_candidates
from common.scoring.figures import Score
from common.system.files import new_folder
from common.system.process import resolve_device, seed_everything
from models import Network

TITLE = "Comparison of models"
CPU_DEVICE = torch.device("cpu")  # on which predictors take their inputs


def compare_models(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Measure the models side by side, or show what they see; exit code 3 where one misses a limit."""
    settings, limits = benchmark_settings(args), gate_settings(args)
    name, network = find_network(args.name)
    outputs, score = compares_outputs(args, network), score_against_labels(args, name, network)
    if not outputs:
        refuse_with_class_maps(args, parser, ("egolanes_checkpoint",))
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
