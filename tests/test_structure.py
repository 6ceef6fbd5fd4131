"""The house: imports one way only, small files, the public names, no optional package in the core."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import torchlipreg

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "torchlipreg"
ORDER = [  # each may import its own and those before it
    {"geometry"},
    {"checks", "tensor_checks", "notice", "outputs", "distributed"},
    {"model"},
    {"inspection"},
    {"call"},
    {"batches", "gradients", "lower_bound", "measure", "penalty", "schedules", "warmup"},
    {"__init__"},
]
CORE = sorted(PACKAGE.rglob("*.py"))
INTEGRATIONS = sorted((ROOT / "integrations").glob("*.py"))
OPTIONAL = {"accelerate", "lightning", "lightning_fabric", "matplotlib", "pandas", "PIL", "pytorch_lightning", "rich"}
OPTIONAL |= {"scipy", "sklearn", "timm", "torchvision", "tqdm", "transformers"}
LINES = 200  # that are neither blank nor comment
LAZY = ("batches", "tqdm.auto")  # the only optional package, imported on request


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


def name_of(path):
    """Return a module's name below the package: "geometry.norms"; a package's own is "geometry"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = {name_of(path) for path in CORE}
SOURCES = {name_of(path): path.read_text(encoding="utf-8") for path in CORE}


def floor(name):
    """Return at which height of the house a module lies."""
    return next(i for i, names in enumerate(ORDER) if name.partition(".")[0] in names)


def uses(name, source):
    """Return the modules of the package that one imports, and what else it should not."""
    own, foreign = [], []
    for dotted, inside in imports(source):
        top, _, rest = dotted.partition(".")
        if top == "torchlipreg":
            own.append(rest)
        elif top != "torch" and top not in sys.stdlib_module_names and not (inside and (name, dotted) == LAZY):
            foreign.append(dotted)
    return own, foreign


def wrong_imports(name, source):
    """Return the imports that the folders forbid, whatever the files in them are called."""
    own, wrong = uses(name, source)
    return wrong + [rest for rest in own if rest not in NAMES or floor(rest) > floor(name)]


def cycle(graph):
    """Return a module that imports itself by some way, None without one."""
    done = set()

    def visit(name, path):
        if name in path:
            return name
        if name in done:
            return None
        found = next(filter(None, (visit(other, {*path, name}) for other in graph.get(name, []))), None)
        done.add(name)
        return found

    return next(filter(None, (visit(name, frozenset()) for name in graph)), None)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_imports_go_one_way(name):
    assert wrong_imports(name, SOURCES[name]) == []


def test_no_imports_in_a_circle():
    graph = {name: uses(name, source)[0] for name, source in SOURCES.items()}
    assert cycle(graph) is None
    assert cycle({**graph, "geometry.norms": ["call.step"]}) is not None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("geometry.norms", "from torchlipreg.checks import check_norm"),
        ("geometry.norms", "from torchlipreg.model.fixed import fixed_function"),
        ("geometry.norms", "import numpy as np"),
        ("model.frozen", "from torchlipreg.call.settings import Settings"),
        ("model.frozen", "from torchlipreg.penalty import LipschitzPenalty"),
        ("call.step", "def f():\n    from torchlipreg.penalty import LipschitzPenalty"),
        ("call.step", "import timm"),
        ("call.step", "from . import region"),
        ("batches", "from tqdm.auto import tqdm"),
        ("penalty", "import torchlipreg"),
        ("penalty", "from torchlipreg.integrations.timm import LipschitzTask"),
    ],
)
def test_a_wrong_import_is_seen(name, line):
    assert wrong_imports(name, line)


def test_torchs_private_names_have_one_home():
    """Whoever mends the library for a new torch looks into one folder, and one file."""
    names = "buffers|parameters|modules|dynamo|orig_mod|version|cdata|forward_hooks|backward_hooks"
    private = re.compile(rf"torch(?:\.\w+)*\._(?!_)\w+|\b_(?:{names})\b")
    at_home = ("model.", "inspection.operations")
    outside = {name: private.findall(text) for name, text in SOURCES.items() if not name.startswith(at_home)}
    assert {name: found for name, found in outside.items() if found} == {}
    assert private.findall(SOURCES["model.frozen"])


def test_collectives_have_one_home():
    collective = re.compile(r"dist\.(?:all_|broadcast|reduce|gather|scatter|barrier|send|recv)")
    assert {name for name, text in SOURCES.items() if collective.search(text)} == {"distributed"}


def test_schedules_need_no_tensors():
    names = [n for n, _ in imports((ROOT / "torchlipreg" / "schedules.py").read_text(encoding="utf-8"))]
    assert not any(n.split(".")[0] == "torch" for n in names)


@pytest.mark.parametrize("path", INTEGRATIONS, ids=lambda p: p.stem)
def test_integrations_import_the_core_absolutely(path):
    names = [n for n, _ in imports(path.read_text(encoding="utf-8"))]
    assert not any(n.startswith((".", "integrations")) for n in names)
    if path.stem == "__init__":
        assert names == []


@pytest.mark.parametrize("path", [*CORE, *INTEGRATIONS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_file_fits_in_a_head(path):
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(bool(line) and not line.startswith("#") for line in lines) <= LINES or "Long:" in lines[0]


def test_a_call_is_one_page():
    tree = ast.parse(SOURCES["call.step"])
    step = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__call__")
    documented, *body = step.body
    assert ast.get_docstring(step)
    assert body[-1].end_lineno - documented.end_lineno <= 25


def test_public_names():
    names = {
        "LipschitzPenalty",
        "DiscrepancyWeight",
        "ExponentialWeight",
        "RadiusDecay",
        "WeightWarmup",
        "gradient_ratio",
        "difference_quotient",
        "operator_norm",
        "lipschitz_lower_bound",
    }
    assert set(torchlipreg.__all__) == names
    modules = {name.partition(".")[0] for name in NAMES} | {"integrations"}
    assert {n for n in dir(torchlipreg) if not n.startswith("_")} - modules == names


def loaded_by(*modules):
    """Return the top-level packages that a fresh interpreter has after importing these."""
    script = f"import {', '.join(modules)}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.distributed
def test_the_core_loads_no_optional_package():
    by_torch = loaded_by("torch", "torch.func", "torch.distributed", "torch.utils.checkpoint", "torch.nn.attention")
    added = loaded_by("torchlipreg") - by_torch
    assert "torchlipreg" in added
    assert added & (OPTIONAL | {"numpy"}) == set()


@pytest.mark.distributed
def test_an_optional_package_would_be_seen():
    pytest.importorskip("rich")
    assert "rich" in loaded_by("torchlipreg", "rich") & OPTIONAL
