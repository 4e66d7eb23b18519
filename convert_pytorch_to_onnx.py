"""Convert a network and its checkpoint to an FP32 ONNX file that ONNX Runtime computes as PyTorch does."""

import argparse
import logging
from pathlib import Path

import torch

from common.checkpoints import load_network
from common.cli import add_network_arguments, height_width, make_parser, run, seed_everything
from common.environment import versions
from common.files import require_parent
from common.onnx_export import OPSET, describe, export_onnx
from common.parity import compare, example_inputs, require_agreement
from common.predictors import Predictor, TorchPredictor
from models import check_input_hw, find_network

logger = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python convert_pytorch_to_onnx.py -n SceneSeg -p SceneSeg.pth -o SceneSeg.onnx")
    add_network_arguments(parser)
    parser.add_argument("-o", "--onnx_model_path", required=True, type=Path, metavar="OUT.onnx", help="file to write")
    parser.add_argument(
        "--input_hw", type=height_width, metavar="H,W", help="input size; default: the checkpoint's own"
    )
    parser.add_argument("--opset", type=int, default=OPSET, help="ONNX operator set, 18 or newer")
    return parser


def main(args: argparse.Namespace) -> None:
    seed_everything(args.seed)
    require_parent(args.onnx_model_path)
    name, network = find_network(args.name)
    model, description = load_network(name, args.model_checkpoint_path)
    input_hw = args.input_hw or description.input_hw
    check_input_hw(network, input_hw)
    input_shape = (network.input_shape[0], *input_hw)

    reference = TorchPredictor(model, torch.device("cpu"))
    metadata = describe(name, network, description.width, "fp32", versions())
    logger.info("exporting %s (width %g) with input %s", name, description.width, input_shape)

    def check(candidate: Predictor):
        return require_agreement(compare(reference, candidate, example_inputs(input_shape, args.seed)))

    agreement = export_onnx(model, args.onnx_model_path, input_shape, metadata, check, args.threads, args.opset)
    print(f"ONNX Runtime against PyTorch: {agreement}")
    print(f"wrote {args.onnx_model_path} ({args.onnx_model_path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    run(main, get_args_parser())
