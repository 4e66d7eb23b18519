"""The picture of the README: image, truth and what two files see, side by side."""

import onnx
import pytest
from PIL import Image

from examples import picture
from examples.make_scenes import write_dataset

HW = (64, 128)


def write_file(path, first_class, hw=HW):
    """A file whose logits are the colours of the image in another order, (N, 3, H, W) of one size."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weights = [1.0 if (row + first_class) % 3 == column else 0.0 for row in range(3) for column in range(3)]
    kernel = helper.make_tensor("kernel", float32, [3, 3, 1, 1], weights)
    ends = [helper.make_tensor_value_info(name, float32, ["batch", 3, *hw]) for name in ("input", "output")]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "kernel"], ["output"])], "g", ends[:1], ends[1:], [kernel]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("picture")
    write_dataset(folder / "data", "Mapillary_Vistas", 10, seed=0)
    write_file(folder / "fp32.onnx", 0)
    write_file(folder / "int8.onnx", 1)
    write_file(folder / "small.onnx", 1, (32, 64))
    return folder


def draw(folder, *flags, int8="int8.onnx", output="demo.png"):
    files = ["--dataset_root", folder / "data", "--fp32", folder / "fp32.onnx", "--int8", folder / int8]
    words = map(str, [*files, "-o", folder / output, *flags])
    picture.main(picture.get_args_parser().parse_args([*words]))
    return folder / output


def test_four_panels_in_a_small_file(folder, capsys):
    path = draw(folder)
    assert path.stat().st_size <= 300_000
    assert capsys.readouterr().out.startswith(f"wrote {path}")
    with Image.open(path) as drawn:
        assert drawn.width > 4 * HW[1]
        panels = [
            drawn.convert("RGB").crop((left, 40, left + 100, 100))
            for left in range(0, drawn.width - 100, drawn.width // 4)
        ]
    assert len({panel.tobytes() for panel in panels}) == 4


def test_the_same_files_give_the_same_picture(folder):
    assert draw(folder, output="a.png").read_bytes() == draw(folder, output="b.png").read_bytes()


@pytest.mark.parametrize(
    ("flags", "files", "message"),
    [
        (["--index", "1"], {}, "--index 1: Mapillary_Vistas has 1 validation images, counted from 0"),
        ([], {"int8": "small.onnx"}, r"small.onnx: takes \(32, 64\).*draw files of one size"),
        ([], {"int8": "missing.onnx"}, "missing.onnx"),
    ],
)
def test_what_cannot_be_drawn_is_named(folder, flags, files, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        draw(folder, *flags, **files)
