"""common/ and the C++ programs know no network and no class by name: the rows of models/ do."""

import ast
import re
from pathlib import Path

import pytest

from models import DEFAULT_NETWORK
from models.family import NETWORKS
from models.scene_seg import CLASSES

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted((ROOT / "common").rglob("*.py"))
CPP = sorted(
    path for folder in ("cpp", "libtorch", "onnx_rt", "executorch_rt") for path in (ROOT / folder).glob("*.[ch]pp")
)
SCRIPT = "quantize_model_sceneseg.py"  # named so by its first users; it takes any network
CLASS = re.compile(rf"\b({'|'.join(CLASSES)})\b")  # a road in a sentence is none


def texts_and_names(source: str) -> list[str]:
    """All that a module says to the computer: strings but for docstrings, names, attributes, imports."""
    tree = ast.parse(source)
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, described) and node.body and isinstance(node.body[0], ast.Expr)
    }
    said = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            said.append(node.value)
        elif isinstance(node, ast.Name):
            said.append(node.id)
        elif isinstance(node, ast.Attribute):
            said.append(node.attr)
        elif isinstance(node, ast.alias):
            said.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            said.append(node.module or "")
    return [text.replace(SCRIPT, "") for text in said]


def is_named(text: str) -> bool:
    return bool(CLASS.search(text) or re.search("scene_?seg", text, re.IGNORECASE))


def test_the_search_finds_what_it_should():
    found = texts_and_names(
        '"""Of SceneSeg."""\nfrom models.scene_seg import CLASSES\nname = "SceneSeg"\n'
        f'f"iou of Road {{x}}"\nBackground = "a road, {SCRIPT}"  # SceneSeg\n'
    )
    assert [text for text in found if is_named(text)] == ["models.scene_seg", "SceneSeg", "Background", "iou of Road "]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_of_common_names_a_network_or_its_classes(path):
    assert [text for text in texts_and_names(path.read_text()) if is_named(text)] == []


@pytest.mark.parametrize("path", CPP, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_cpp_program_names_a_network_or_its_classes(path):
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    assert [line for line in code.splitlines() if is_named(line)] == []


def test_there_is_something_to_search():
    assert len(PYTHON) > 80 and len(CPP) > 3


def test_the_default_network_is_one_of_the_family():
    assert DEFAULT_NETWORK in NETWORKS
