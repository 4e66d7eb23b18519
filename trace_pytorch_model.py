"""Trace a network and its checkpoint to a TorchScript file that computes what the network computes."""

import argparse
import logging
from pathlib import Path

import torch

from common.checkpoints import load_network
from common.cli import add_network_arguments, height_width, make_parser, resolve_device, run, seed_everything
from common.files import atomic_path, require_parent
from common.parity import compare, example_inputs, require_agreement
from common.predictors import TorchPredictor
from models import check_input_hw, find_network

logger = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python trace_pytorch_model.py -n SceneSeg -p SceneSeg.pth -o SceneSeg.pt")
    add_network_arguments(parser)
    parser.add_argument(
        "-o", "--output_pt_trace_filepath", required=True, type=Path, metavar="OUT.pt", help="file to write"
    )
    parser.add_argument(
        "--input_hw", type=height_width, metavar="H,W", help="input size; default: the checkpoint's own"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    require_parent(args.output_pt_trace_filepath)
    device = resolve_device(args.device)
    name, network = find_network(args.name)
    model, description = load_network(name, args.model_checkpoint_path)
    input_hw = args.input_hw or description.input_hw
    check_input_hw(network, input_hw)
    input_shape = (network.input_shape[0], *input_hw)

    logger.info("tracing %s (width %g) with input %s on %s", name, description.width, input_shape, device)
    reference = TorchPredictor(model, device)
    with torch.inference_mode():
        traced = torch.jit.trace(model, torch.zeros(1, *input_shape, device=device), check_trace=False)
    with atomic_path(args.output_pt_trace_filepath) as temporary:
        traced.save(temporary)
        saved = TorchPredictor(torch.jit.load(temporary, map_location=device), device)
        agreement = require_agreement(compare(reference, saved, example_inputs(input_shape, args.seed)))
    print(f"TorchScript against PyTorch: {agreement}")
    print(f"wrote {args.output_pt_trace_filepath} ({args.output_pt_trace_filepath.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    run(main, get_args_parser())
