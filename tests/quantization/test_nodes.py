"""Nodes read as what a rewrite takes them for, and what is said where they are something else."""

import pytest
import torch

from common.quantization.nodes import input_of, is_output_of, name_of, operator_of, setting_of

aten = torch.ops.aten


@pytest.fixture
def convolution():
    """conv2d(x, weight, None, [2, 2])."""
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("stage.0.weight")
    return graph.call_function(aten.conv2d.default, (x, weight, None, [2, 2]))


def test_what_a_node_is_made_of(convolution):
    assert input_of(convolution).name == "x"
    assert name_of(input_of(convolution, 1)) == "stage.0.weight"
    assert setting_of(convolution, 2) is None
    assert setting_of(convolution, 3) == [2, 2]
    assert operator_of(convolution) == aten.conv2d.default


def test_what_computes_an_argument(convolution):
    assert is_output_of(convolution, aten.linear.default, aten.conv2d.default)
    assert not is_output_of(convolution, aten.linear.default)
    assert not is_output_of(1.0, aten.conv2d.default)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda node: input_of(node, 3), r"conv2d.*argument 3 is \[2, 2\], wanted a tensor"),
        (lambda node: input_of(node, 9), "conv2d.*has 4 arguments, wanted one at place 9"),
        (lambda node: setting_of(node, 0), "conv2d.*argument 0 is computed by x, wanted a setting"),
        (lambda node: setting_of(node, 4), "conv2d.*has 4 arguments, wanted one at place 4"),
        (name_of, "conv2d.*wanted a parameter or a module"),
        (lambda node: operator_of(input_of(node)), "x: stands for x, wanted an operator"),
    ],
)
def test_a_graph_of_another_form_is_named(convolution, read, message):
    with pytest.raises(ValueError, match=message):
        read(convolution)
