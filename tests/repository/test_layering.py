"""Imports go one way: scripts -> common -> models, and within common from each package to those before it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
FORBIDDEN = {
    "models": {"common", "examples", "benchmarks", "docs", "tests", *SCRIPTS},
    "common": {"examples", "benchmarks", "docs", "tests", *SCRIPTS},
    "examples": {"benchmarks", "docs", "tests", *SCRIPTS},
    "benchmarks": {"docs", "tests", *SCRIPTS},
}
# a package of common/ imports only those before it
ORDER = (
    "system",
    "data",
    "networks",
    "runtimes",
    "scoring",
    "quantization",
    "pruning",
    "export",
    "training",
    "benchmark",
    "report",
    "cli",
    "commands",
)
STRANGERS = {("benchmark", "training"), ("report", "training")}  # though the order would allow it
PACKAGES = [path.parent for path in sorted((ROOT / "common").glob("*/__init__.py"))]


def imported_modules(path: Path) -> set[str]:
    """Dotted names, wherever in the file the import stands."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def imported_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)}


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_point_downwards(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported_packages(path) & FORBIDDEN[package], path


def test_scripts_do_not_import_each_other():
    assert len(SCRIPTS) == 5
    for script in SCRIPTS:
        assert not imported_packages(ROOT / f"{script}.py") & SCRIPTS


def test_the_order_names_every_package_of_common():
    assert {path.name for path in PACKAGES} == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_those_before_it(package):
    allowed = {*ORDER[: ORDER.index(package) + 1]} - {second for first, second in STRANGERS if first == package}
    for path in (ROOT / "common" / package).rglob("*.py"):
        used = {name.split(".")[1] for name in imported_modules(path) if name.startswith("common.")} & set(ORDER)
        assert used <= allowed, path


def test_no_module_of_common_stands_loose():
    assert [path.name for path in (ROOT / "common").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_a_package_says_in_one_line_what_it_is_for(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text and "\n" not in text
    assert f"| `{folder.name}` |" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_no_function_takes_a_command_line(folder):
    if folder.name in ("cli", "commands"):
        return
    for path in folder.rglob("*.py"):
        assert "argparse" not in imported_packages(path), path


def test_quantization_libraries_are_behind_six_modules():
    users = {path.name for path in ROOT.glob("[!.]*/**/*.py") if imported_packages(path) & {"torchao", "executorch"}}
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert users - tests == {"pt2e.py", "quantizer.py", "ranges.py", "fake_quantize.py", "pte.py", "pte_writer.py"}
