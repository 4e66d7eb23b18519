"""Networks by name: a user's own module, what it may hold, what is refused, and that no file has a module imported."""

import sys
from textwrap import dedent

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from common.data.classes import distinct_colours
from common.networks.checkpoints import Description, load_network, published_state, save_checkpoint
from common.networks.registry import build_network, file_stem, find_network
from common.quantization.checkpoints import load_qat
from common.runtimes.candidates import OpenOptions, open_candidates
from models import Network
from models.family import NETWORKS

CPU = torch.device("cpu")
HEAD = """
import torch
from torch import nn

from models import Network


class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.convolution = nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, image):
        return self.convolution(image)


class Pair(Net):
    def forward(self, image):
        return super().forward(image), image.mean(dim=(2, 3))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, and a search path of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture
def module(folder, request):
    """A function that writes a module of a name that no other test has, with HEAD before its text; the name."""
    written = []

    def write(text="", place=folder, head=HEAD) -> str:
        name = f"net_{abs(hash(request.node.nodeid))}_{len(written)}"
        written.append(name)
        (place / f"{name}.py").write_text(head + dedent(text))
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def found(module_name, attribute="NET") -> Network:
    name, network = find_network(f"{module_name}:{attribute}")
    assert name == f"{module_name}:{attribute}"
    return network


# ---- what an attribute may be ----------------------------------------------------------------------------------------


def test_a_row_keeps_what_it_says_and_gets_what_it_does_not(module):
    network = found(module("NET = Network(build=Net, input_shape=(3, 8, 12), classes=('a', 'b'), channel_order='BGR')"))
    assert (network.input_shape, network.channel_order) == ((3, 8, 12), "BGR")
    assert network.classes == ("a", "b", "class 2", "class 3", "class 4")
    assert network.colours == distinct_colours(5)
    assert list(network.outputs) == ["output"]


def test_a_class_and_a_function_are_networks_of_the_family_s_size(module):
    name = module("def make():\n    return Net(classes=7)\n")
    for attribute, classes in (("Net", 5), ("make", 7)):
        network = found(name, attribute)
        assert network.input_shape == (3, 320, 640)
        assert network.classes == tuple(f"class {index}" for index in range(classes))
        assert build_network(name, network)(torch.zeros(1, 3, 4, 6)).shape == (1, classes, 4, 6)


def test_a_module_in_a_package(folder, module):
    package = folder / f"package_{module()}"
    package.mkdir()
    (package / "net.py").write_text(HEAD)
    assert len(found(f"{package.name}.net", "Net").classes) == 5


def test_a_module_on_the_search_path(module, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    name = module(place=elsewhere)
    with pytest.raises(ValueError, match=f"{name}:Net: no module '{name}' in .* or on PYTHONPATH; run from its folder"):
        found(name, "Net")
    monkeypatch.syspath_prepend(elsewhere)  # as PYTHONPATH does
    assert len(found(name, "Net").classes) == 5


def test_names_of_the_family_are_not_modules(folder):
    (folder / "SceneSeg.py").write_text("raise SystemExit('imported')")
    assert find_network("sceneseg") == ("SceneSeg", NETWORKS["SceneSeg"])


def test_files_of_a_network_are_named_by_its_attribute():
    assert (file_stem("SceneSeg"), file_stem("my.networks:NET")) == ("SceneSegNetwork", "NETNetwork")


# ---- width -----------------------------------------------------------------------------------------------------------


def test_a_build_that_takes_a_width_gets_it_and_another_is_asked_for_none(module):
    name = module(
        """
        def wide(width=1.0):
            return Net(classes=int(8 * width))

        def asked(width):
            return Net(classes=int(8 * width))
        """
    )
    for attribute in ("wide", "asked"):
        network = found(name, attribute)
        assert [build_network(name, network, width).convolution.out_channels for width in (1, 0.5)] == [8, 4]
    with pytest.raises(ValueError, match=r"n:Net: its build function takes no width, so that it has no width 0\.5"):
        build_network("n:Net", found(name, "Net"), 0.5)


def test_a_width_of_another_meaning_keeps_its_default(module):
    name = module("def make(height=6, width=4):\n    return Net(classes=width)\n")
    assert len(found(name, "make").classes) == 4


# ---- outputs ---------------------------------------------------------------------------------------------------------


def test_of_a_dictionary_the_map_of_the_classes_is_taken(module):
    name = module(
        """
        class Net(Net):
            def forward(self, image):
                return {"out": super().forward(image), "aux": image}
        """
    )
    network = found(name, "Net")
    assert (list(network.outputs), len(network.classes)) == (["output"], 5)
    assert build_network(name, network)(torch.zeros(1, 3, 4, 6)).shape == (1, 5, 4, 6)


def test_several_outputs_are_named_and_the_first_is_the_map_of_the_classes(module):
    name = module(
        """
        class Listed(Pair):
            def forward(self, image):
                return list(super().forward(image))

        NAMED = Network(build=Pair, input_shape=(3, 8, 12), outputs={"logits": "of the classes", "scene": "mean"})
        """
    )
    for attribute, names in (
        ("Pair", ["output_0", "output_1"]),
        ("Listed", ["output_0", "output_1"]),
        ("NAMED", ["logits", "scene"]),
    ):
        network = found(name, attribute)
        assert (list(network.outputs), len(network.classes)) == (names, 5)
        outputs = build_network(name, network)(torch.zeros(1, 3, 4, 6))
        assert isinstance(outputs, tuple)
        assert [tuple(output.shape) for output in outputs] == [(1, 5, 4, 6), (1, 3)]


def test_an_output_that_is_no_map_of_classes_has_none(module):
    name = module("NET = Network(build=lambda: Net(classes=1), input_shape=(3, 8, 12), task='depth')")
    assert (found(name).classes, list(found(name).outputs)) == ((), ["output"])


def test_looking_at_a_network_leaves_the_random_numbers_alone(module):
    name = module()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found(name, "Net")
    assert torch.equal(torch.get_rng_state(), before)


# ---- what is refused -------------------------------------------------------------------------------------------------

NO_NETWORK = "wanted a models.Network or a callable that builds an nn.Module"
WRONG = {
    "nothing": ("", "no such attribute, " + NO_NETWORK),
    "another name": ("OTHER = Network(build=Net, input_shape=(3, 8, 12))", NO_NETWORK + "; it has OTHER$"),
    "a number": ("NET = 5", "a int, " + NO_NETWORK),
    "a built network": ("NET = nn.Conv2d(3, 5, 1)", "a network that is built already; name its class, or a function"),
    "an error at its import": ("x = 1 / 0", r"import.*: ZeroDivisionError: .*\(.*/{name}\.py:\d+: x = 1 / 0\)$"),
    "an error of several lines": ("raise ValueError('one\\ntwo')", "importing its module fails: ValueError: one "),
    "a syntax error": ("def f(:", "importing its module fails: SyntaxError: "),
    "a module that leaves": ("import sys\nsys.exit('usage: x')", "importing its module fails: SystemExit: usage"),
    "a package that is not there": ("import no_such_package", "needs 'no_such_package', which is"),
    "a wrong row": ("NET = Network(build=Net, input_shape=(8, 12))", r"importing its module fails: ValueError: input_"),
    "a build that fails": ("def NET():\n    raise OSError('no weights')", r"building it fails: OSError: no weights \("),
    "a class that wants arguments": ("class NET(nn.Module):\n    def __init__(self, n): ...", "building it fails: T"),
    "a build of something else": ("def NET():\n    return 'network'", "builds a str, wanted an nn.Module"),
    "a network that fails": (
        "NET = Network(build=Net, input_shape=(6, 8, 12), mean=None, std=None)",
        r"fails on an image \(1, 6, 8, 12\): RuntimeError: ",
    ),
    "a dictionary without out": (
        "class NET(Net):\n    def forward(self, x):\n        return {'logits': x, 'aux': x}",
        r"fails on an image .*: the network gives a dict of logits, aux; wanted a tensor, a tuple of tensors",
    ),
    "no output": ("class NET(Net):\n    def forward(self, x): ...", "fails on .*: the network gives NoneType;"),
    "outputs that are no tensors": (
        "class NET(Net):\n    def forward(self, x):\n        return x, None",
        "fails on an image .*: the network gives a tuple of Tensor, NoneType;",
    ),
    "names for other outputs": (
        "NET = Network(build=Pair, input_shape=(3, 8, 12), outputs={'a': ''})",
        "its row names 1 outputs, the network gives 2$",
    ),
    "too many classes": (
        "NET = Network(build=Net, input_shape=(3, 8, 12), classes=tuple('abcdef'))",
        r"its row names 6 classes, its output \(1, 5, 8, 12\) has 5 channels$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_modules_that_are_no_network_are_one_line_that_names_them(case, module):
    text, message = WRONG[case]
    name = module(f"\n{text}\n")
    with pytest.raises(ValueError, match=message.replace("{name}", name)) as error:
        find_network(f"{name}:NET")
    line = str(error.value)
    assert line.startswith(f"{name}:NET: ") and "\n" not in line, line


@pytest.mark.parametrize(
    "name", [":NET", "net:", "net.py:", "a/net:NET", "net.py:NET:x", "my net:NET", "..net:NET", "a-b:N"]
)
def test_what_is_no_module_with_an_attribute_is_not_imported(name, folder):
    with pytest.raises(ValueError, match=f"^{name}: not MODULE:ATTRIBUTE such as my_network:NETWORK$"):
        find_network(name)


def test_the_toolkit_s_own_package_of_networks_is_no_user_s(folder):
    with pytest.raises(ValueError, match="`models` is a package of this toolkit; give your module another name"):
        find_network("models.scene_seg:SceneSegNetwork")


# ---- nothing is imported because a file names it ---------------------------------------------------------------------


@pytest.fixture
def trap(folder, module):
    """A module that leaves a file behind when it is imported; its name as a checkpoint would have it."""
    name = module(f"from pathlib import Path\n\nPath({str(folder / 'imported')!r}).touch()\n")
    yield f"{name}:Net"
    assert not (folder / "imported").exists()
    assert name not in sys.modules


def test_the_trap_springs_when_the_command_line_names_it(folder, module):
    name = module(f"from pathlib import Path\n\nPath({str(folder / 'imported')!r}).touch()\n")
    found(name, "Net")
    assert (folder / "imported").exists()


def refused(trap):
    return pytest.raises(
        ValueError,
        match=f"a checkpoint of {trap}, not of SceneSeg; name it with -n {trap} and have its module in the",
    )


@pytest.mark.parametrize("kind", ["fp32", "qat"])
def test_a_checkpoint_of_another_module_is_refused_and_the_module_not_imported(kind, trap, folder, narrow_network):
    path, state = folder / "w.pth", published_state("SceneSeg", narrow_network)
    save_checkpoint(path, state, Description(trap, kind, 1 / 32, (32, 64)))
    with refused(trap):
        load_network("SceneSeg", path) if kind == "fp32" else load_qat(path, "SceneSeg", CPU)
    if kind == "fp32":
        with refused(trap):
            open_candidates([("A", path, ".pth")], OpenOptions(CPU, 1, "SceneSeg"))


def test_an_onnx_file_of_another_module_is_run_and_the_module_not_imported(trap, folder):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, 8, 12)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"network": trap})
    onnx.save(model, folder / "a.onnx")
    candidate = open_candidates([("A", folder / "a.onnx", ".onnx")], OpenOptions(CPU, 1, "SceneSeg"))["A"]
    assert candidate.open(1)(torch.ones(1, 3, 8, 12)).shape == (1, 3, 8, 12)


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_of_an_own_network_go_through_a_checkpoint_and_through_a_bare_state_dict(module, folder):
    name = module("NET = Network(build=Net, input_shape=(3, 8, 12), classes=('a', 'b', 'c', 'd', 'e'))")
    torch.manual_seed(0)
    network = build_network(name, found(name)).eval()
    state = published_state(f"{name}:NET", network)
    assert list(state) == ["convolution.weight", "convolution.bias"]  # its own names
    save_checkpoint(folder / "a.pth", state, Description(f"{name}:NET", "fp32", 1.0, (16, 24), tuple("abcde")))
    torch.save(state, folder / "b.pth")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, folder / "c.pth")
    image = torch.randn(1, 3, 8, 12)
    for path, hw in (("a.pth", (16, 24)), ("b.pth", (8, 12)), ("c.pth", (8, 12))):
        loaded, description = load_network(f"{name}:NET", folder / path)
        assert (description.network, description.width, description.input_hw) == (f"{name}:NET", 1.0, hw)
        assert description.classes == tuple("abcde")
        with torch.no_grad():
            assert torch.equal(loaded(image), network(image))
    with pytest.raises(ValueError, match=f"a.pth: a checkpoint of {name}:NET, not of SceneSeg"):
        load_network("SceneSeg", folder / "a.pth")
    with pytest.raises(ValueError, match=rf"b\.pth: not a checkpoint of {name}:Pair .*missing"):
        torch.save({"other.weight": torch.zeros(1)}, folder / "b.pth")
        load_network(f"{name}:Pair", folder / "b.pth")
