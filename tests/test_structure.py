"""The house: imports one way only, small files, the public names, no optional package in the core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torchlipreg

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "torchlipreg").glob("*.py"))
INTEGRATIONS = sorted((ROOT / "integrations").glob("*.py"))
LAYERS = [  # a module imports from the layers above it in this list only
    {"norms", "distributed", "batchnorm"},
    {"checks", "modules"},
    {"outputs"},
    {"pairs", "quotient", "frozen", "settings", "schedules"},
    {"ascent", "jacobian", "reuse"},
    {"objective", "methods", "state"},
    {"step", "estimate"},
    {"penalty"},
    {"__init__"},
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
OPTIONAL = {"accelerate", "matplotlib", "pandas", "PIL", "rich", "scipy", "sklearn", "timm", "torchvision", "tqdm"}
LINES = 260


def imports(source):
    """Return (dotted name, whether inside a function) of everything that a module imports."""
    tree = ast.parse(source)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or ""), id(node) in inside))
    return found


def out_of_order(name, source):
    """Return the imports of a core module that the picture does not have."""
    wrong = []
    for dotted, inside in imports(source):
        top, _, rest = dotted.partition(".")
        if top == "torchlipreg":
            if HEIGHT.get(rest, len(LAYERS)) >= HEIGHT[name]:
                wrong.append(dotted)
        elif top != "torch" and top not in sys.stdlib_module_names and (name, dotted, inside) != LAZY:
            wrong.append(dotted)
    return wrong


LAZY = ("estimate", "tqdm.auto", True)  # the only optional package, on request


def test_every_module_is_in_the_picture():
    assert {path.stem for path in CORE} == set(HEIGHT)


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    assert out_of_order(path.stem, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("norms", "from torchlipreg.pairs import PairSet"),
        ("pairs", "import torchlipreg.penalty"),
        ("pairs", "from torchlipreg.quotient import quotient"),
        ("penalty", "from torchlipreg.integrations.timm import LipschitzTask"),
        ("penalty", "import torchlipreg"),
        ("step", "def f():\n    from torchlipreg.penalty import LipschitzPenalty"),
        ("step", "import timm"),
        ("step", "import numpy as np"),
        ("estimate", "from tqdm.auto import tqdm"),
        ("step", "from . import pairs"),
    ],
)
def test_a_wrong_import_is_seen(name, line):
    assert out_of_order(name, line)


def test_collectives_have_one_home():
    users = {
        path.stem for path in CORE if any("distributed" in n and "torch." in n for n, _ in imports(path.read_text()))
    }
    assert users == {"distributed"}


def test_schedules_need_no_tensors():
    names = [n for n, _ in imports((ROOT / "torchlipreg" / "schedules.py").read_text(encoding="utf-8"))]
    assert not any(n.split(".")[0] == "torch" for n in names)


@pytest.mark.parametrize("path", INTEGRATIONS, ids=lambda p: p.stem)
def test_integrations_import_the_core_absolutely(path):
    names = [n for n, _ in imports(path.read_text(encoding="utf-8"))]
    assert not any(n.startswith((".", "integrations")) for n in names)
    if path.stem == "__init__":
        assert names == []


@pytest.mark.parametrize("path", [*CORE, *INTEGRATIONS], ids=lambda p: p.stem)
def test_a_file_fits_in_a_head(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


def test_public_names():
    names = {
        "LipschitzPenalty",
        "DiscrepancyWeight",
        "RadiusDecay",
        "difference_quotient",
        "operator_norm",
        "lipschitz_lower_bound",
    }
    assert set(torchlipreg.__all__) == names
    modules = set(HEIGHT) | {"integrations"}
    assert {n for n in dir(torchlipreg) if not n.startswith("_")} - modules == names


def loaded_by(*modules):
    """Return the top-level packages that a fresh interpreter has after importing these."""
    script = f"import {', '.join(modules)}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_core_loads_no_optional_package():
    by_torch = loaded_by("torch", "torch.func", "torch.distributed", "torch.utils.checkpoint", "torch.nn.attention")
    added = loaded_by("torchlipreg") - by_torch
    assert "torchlipreg" in added
    assert added & (OPTIONAL | {"numpy"}) == set()


def test_an_optional_package_would_be_seen():
    pytest.importorskip("rich")
    assert "rich" in loaded_by("torchlipreg", "rich") & OPTIONAL
