"""Draw what FP32 and INT8 see in a validation image: image | truth | FP32 | INT8, as on the README's first screen."""

import argparse
from pathlib import Path

import torch
from PIL import Image

from common.cli.flags import make_parser
from common.cli.main import run
from common.cli.types import non_negative_int
from common.data.classes import classes_of
from common.data.datasets import SampleSource, find_samples
from common.data.drawing import strip
from common.data.loading import load_sample
from common.data.transforms import ImageFormat
from common.networks.registry import find_network
from common.runtimes.candidates import OpenOptions, open_candidates
from common.system.files import atomic_path


def get_args_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "python -m examples.picture -o docs/demo.png")
    parser.add_argument("--dataset_root", type=Path, default=Path("demo/data"), metavar="DIR", help="data root")
    parser.add_argument(
        "--dataset", default="Mapillary_Vistas", metavar="NAME", help="whose validation images are drawn from"
    )
    parser.add_argument("--index", type=non_negative_int, default=0, help="which of its validation images")
    parser.add_argument("--fp32", type=Path, default=Path("demo/fp32/SceneSeg.onnx"), metavar="ONNX", help="FP32 file")
    parser.add_argument(
        "--int8",
        type=Path,
        default=Path("demo/qat/onnx_models/SceneSegNetwork_QAT_INT8_final.onnx"),
        metavar="ONNX",
        help="INT8 file",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="file to write")
    return parser


def main(args: argparse.Namespace) -> None:
    name, network = find_network("SceneSeg")
    source = SampleSource.of(name, network, args.dataset_root, names=[args.dataset])
    samples = find_samples(source, "val")
    if args.index >= len(samples):
        raise ValueError(f"--index {args.index}: {args.dataset} has {len(samples)} validation images, counted from 0")
    files = [("FP32", args.fp32, ".onnx"), ("INT8", args.int8, ".onnx")]
    models = open_candidates(files, OpenOptions(torch.device("cpu"), args.threads, name))
    input_hw = models["FP32"].input_hw
    if models["INT8"].input_hw != input_hw:
        raise ValueError(
            f"{args.int8}: takes {models['INT8'].input_hw}, {args.fp32} {input_hw}; draw files of one size"
        )
    rgb, truth, _ = load_sample(samples[args.index], input_hw)
    images = ImageFormat.of(network, input_hw).to_tensor(rgb)[None]
    panels = [(label, model.open(args.threads)(images).argmax(dim=1)[0].numpy()) for label, model in models.items()]
    picture = Image.fromarray(strip(rgb, [("Truth", truth), *panels], classes_of(network)))
    with atomic_path(args.output) as temporary:
        picture.save(temporary, format="png", optimize=True)
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    run(main, get_args_parser())
