"""Nodes of an exported graph, read as what a rewrite takes them for; a graph of another form is an error that says so.

A node of torch.fx has arguments of any kind. A rewrite knows of each whether it is a tensor that another operator
computes or a setting, from the operator's signature.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

from torch.fx import Node


def input_of(node: Node, place: int = 0) -> Node:
    """The node whose output is an argument of `node`.

    Raises:
        ValueError: there is no such argument, or it is a setting.
    """
    found = _argument(node, place)
    if not isinstance(found, Node):
        raise ValueError(f"{node.name} ({node.target}): argument {place} is {found!r:.60}, wanted a tensor")
    return found


def setting_of(node: Node, place: int) -> Any:
    """An argument of `node` that is the same for all images: a number, a list of sizes, a type.

    Raises:
        ValueError: there is no such argument, or it is computed by another node.
    """
    found = _argument(node, place)
    if isinstance(found, Node):
        raise ValueError(f"{node.name} ({node.target}): argument {place} is computed by {found}, wanted a setting")
    return found


def _argument(node: Node, place: int) -> Any:
    if place >= len(node.args):
        raise ValueError(f"{node.name} ({node.target}): has {len(node.args)} arguments, wanted one at place {place}")
    return node.args[place]


def name_of(node: Node) -> str:
    """The name of the parameter, buffer or module that a get_attr or call_module node stands for.

    Raises:
        ValueError: `node` calls an operator.
    """
    if not isinstance(node.target, str):
        raise ValueError(f"{node.name}: calls {node.target}, wanted a parameter or a module")
    return node.target


def operator_of(node: Node) -> Callable[..., Any]:
    """The operator that a node calls.

    Raises:
        ValueError: `node` stands for an input, a parameter or a module.
    """
    if isinstance(node.target, str):
        raise ValueError(f"{node.name}: stands for {node.target}, wanted an operator")
    return node.target


def is_output_of(value: object, *operators: object) -> TypeGuard[Node]:
    """Whether an argument is what one of `operators` computes."""
    return isinstance(value, Node) and value.target in operators
