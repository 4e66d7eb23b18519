"""Trace a network and its checkpoint to a file that runs without this repository and computes what the network does."""

import argparse
from pathlib import Path

from common.cli.flags import add_network_arguments, make_parser
from common.cli.main import run
from common.runtimes.kinds import TRACED


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python trace_pytorch_model.py -n SceneSeg -p SceneSeg.pth -o SceneSeg.pt")
    add_network_arguments(parser)
    parser.add_argument(
        "-o", "--output_pt_trace_filepath", required=True, type=Path, metavar="OUT", help="file to write, .pt or .pt2"
    )
    parser.add_argument(
        "--format",
        choices=sorted(TRACED),
        default="torchscript",
        help="torchscript: .pt for LibTorch; exported: .pt2 of torch.export, which replaces TorchScript in PyTorch",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from common.commands.trace import trace

    trace(args)


if __name__ == "__main__":
    run(main, get_args_parser())
