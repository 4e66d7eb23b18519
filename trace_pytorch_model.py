"""Trace a network and its checkpoint to a file that runs without this repository and computes what the network does."""

import argparse
import copy
import logging
from pathlib import Path

import torch

from common.cli.flags import add_network_arguments, make_parser
from common.cli.main import resolve_device, run, seed_everything
from common.export.traced_writer import write_exported, write_torchscript
from common.networks.metadata import describe
from common.networks.opening import open_network
from common.runtimes.parity import compare, example_inputs, require_agreement
from common.runtimes.predictors import TorchPredictor
from common.runtimes.traced import read_exported, read_torchscript
from common.system.environment import versions
from common.system.files import atomic_path, require_output
from models.fuse import fuse_upsampling

logger = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python trace_pytorch_model.py -n SceneSeg -p SceneSeg.pth -o SceneSeg.pt")
    add_network_arguments(parser)
    parser.add_argument(
        "-o", "--output_pt_trace_filepath", required=True, type=Path, metavar="OUT", help="file to write, .pt or .pt2"
    )
    parser.add_argument(
        "--format",
        choices=sorted(FORMATS),
        default="torchscript",
        help="torchscript: .pt for LibTorch; exported: .pt2 of torch.export, which replaces TorchScript in PyTorch",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    suffix, write, read = FORMATS[args.format]
    require_output(args.output_pt_trace_filepath, suffix, args.model_checkpoint_path)
    device = resolve_device(args.device)
    source = open_network(args.name, args.model_checkpoint_path, args.input_hw, args.weights)
    input_shape = source.input_shape
    reference = TorchPredictor(source.model, device)
    model = fuse_upsampling(copy.deepcopy(source.model)) if args.fuse else source.model

    logger.info("tracing %s (width %g) with input %s on %s", source.name, source.width, input_shape, device)
    description = describe(source.name, source.network, source.width, "fp32", input_shape, versions())
    with atomic_path(args.output_pt_trace_filepath) as temporary:
        write(model, torch.zeros(2, *input_shape), temporary, description)
        saved = TorchPredictor(read(temporary, device), device)
        agreements = compare(reference, saved, example_inputs(input_shape, args.seed))
        require_agreement(agreements)
    for output, agreement in zip(source.network.outputs or (), agreements, strict=True):
        print(f"{output}: {args.format} against PyTorch: {agreement}")
    print(f"wrote {args.output_pt_trace_filepath} ({args.output_pt_trace_filepath.stat().st_size / 1e6:.2f} MB)")


FORMATS = {
    "torchscript": (".pt", write_torchscript, read_torchscript),
    "exported": (".pt2", write_exported, read_exported),
}


if __name__ == "__main__":
    run(main, get_args_parser())
