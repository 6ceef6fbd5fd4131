"""The site: its Python blocks run, every public name has its place with an example, what it names exists; it builds."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import torch

import torchlipreg

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TEXTS = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
ELSEWHERE = {"tutorial.md", "purposes.md"}  # the one below, the other with its experiment
BLOCKS = {name: found for name, text in TEXTS.items() if (found := pages.blocks(text)) and name not in ELSEWHERE}
NEEDS = {"frameworks/accelerate.md": "accelerate", "api/integrations.md": "accelerate", "frameworks/timm.md": "timm"}
NEEDS |= {"frameworks/lightning.md": "lightning", "frameworks/transformers.md": "transformers"}
QUIET = ["ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*is smaller than the logging interval"]


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    return pages.what_a_script_has(tmp_path)


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "several-machines.md"])
@pytest.mark.filterwarnings(*QUIET)
def test_the_blocks_of_a_page_run_in_order(name, namespace):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    for number, (code, _) in enumerate(BLOCKS[name]):
        pages.run(code, namespace, f"{name}, block {number}")


def test_the_blocks_of_several_machines_run(namespace, process_group):
    for code, _ in BLOCKS["several-machines.md"]:
        pages.run(code, namespace, "several-machines.md")


def run_tutorial(epochs):
    """Return what its blocks print, and what the page says that they do."""
    namespace = {}
    for code, shown in pages.blocks(TEXTS["tutorial.md"]):
        printed = pages.run(code.replace("epochs=30", f"epochs={epochs}"), namespace, "tutorial.md")
        yield printed, shown or ""


def test_the_tutorial_runs_from_an_empty_file(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    assert "epochs=30" in TEXTS["tutorial.md"]
    for printed, shown in run_tutorial(epochs=1):
        assert re.sub(r"[\d.]+", "0", printed) == re.sub(r"[\d.]+", "0", shown)


@pytest.mark.slow
def test_the_tutorial_prints_what_it_shows(tmp_path, monkeypatch):
    """Up to a few points, as other versions of torch round otherwise: `python tests/pages.py docs/tutorial.md`."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    for printed, shown in run_tutorial(epochs=30):
        assert numbers(printed) == pytest.approx(numbers(shown), rel=0.1, abs=3)


def documented():
    """Return the names that the reference documents, without the internals."""
    texts = [text for name, text in TEXTS.items() if name.startswith("api/") and "internals" not in name]
    return set(re.findall(r"^\.\. auto\w+:: (\S+)", "\n".join(texts), re.MULTILINE))


def public_names():
    """Return the dotted names that users import."""
    from torchlipreg import outputs

    names = {f"torchlipreg.{name}" for name in torchlipreg.__all__}
    names |= {f"torchlipreg.outputs.{name}" for name in ("per_position", "root_probabilities", "smallest_margins")}
    assert all(inspect.isfunction(getattr(outputs, name.rpartition(".")[2])) for name in names if "outputs" in name)
    of = {"accelerate": ("prepare_penalty", "log_values"), "lightning": ("LipschitzCallback",)}
    of |= {"timm": ("LipschitzTask",), "transformers": ("LipschitzTrainer", "LipschitzTrainerMixin")}
    return names | {f"torchlipreg.integrations.{module}.{name}" for module, found in of.items() for name in found}


def test_every_public_name_is_documented():
    assert public_names() - documented() == set()


@pytest.mark.parametrize("dotted", sorted(public_names()))
def test_every_public_name_has_an_example_that_runs(dotted):
    name = dotted.rpartition(".")[2]
    code = "\n".join(
        code for name, found in BLOCKS.items() if name.startswith(("api/", "frameworks/")) for code, _ in found
    )
    assert re.search(rf"\b{name}\b(?!,? (?:import|as))\W", re.sub(r"^from .* import .*$", "", code, flags=re.MULTILINE))


def test_every_page_has_its_place():
    """Sphinx says so too, but not in the quick tests."""
    places = set()
    for name, text in TEXTS.items():
        folder = name.rpartition("/")[0]
        for entries in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            places |= {f"{folder}/{entry}.md".lstrip("/") for entry in re.findall(r"^[\w/-]+$", entries, re.MULTILINE)}
    assert places == TEXTS.keys() - {"index.md"}


@pytest.mark.parametrize("name", [name for name in TEXTS if "results/" not in name])
def test_the_files_that_a_page_names_exist(name):
    named = set(re.findall(r"`((?:tests|docs|examples)/[\w/.-]*\w+\.\w+)`", TEXTS[name]))
    named |= {f"tests/{path}" for path in re.findall(r"`((?!tests/)\w+/test_\w+\.py)`", TEXTS[name])}
    pending = {path for path in named if "/results/" in path}  # of experiments that have not been run
    assert [path for path in sorted(named - pending) if not (ROOT / path).is_file()] == []


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_html", DOCS / "check_html.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOUND = '<h1 id="top">T</h1><a href="b.html#there">b</a><a href="#top">a</a><a href="https://example.org">e</a>'


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("", None),
        ('<a href="c.html">c</a>', "no such file: c.html"),
        ('<a href="b.html#gone">b</a>', "no such anchor: b.html#gone"),
        ('<a href="#gone">a</a>', "no such anchor: #gone"),
        ('<img src="gone.png" alt="gone">', "no such file: gone.png"),
        ('<img src="b.html">', "a picture without a description: b.html"),
        ('<span class="x problematic">`y`</span>', "a reference that docutils could not make out, line 1"),
        ("<math><mi>\\arg</mi></math>", "a formula with a command that is not known: \\arg"),
        ('<script src="https://example.org/x.js"></script>', "loaded from another site: https://example.org/x.js"),
    ],
)
def test_the_check_of_the_pages_sees(check, tmp_path, more, fault):
    (tmp_path / "a.html").write_text(SOUND + more)
    (tmp_path / "b.html").write_text('<h1 id="there">B</h1>')
    assert check.faults_of(tmp_path) == ([] if fault is None else [f"a.html: {fault}"])


def test_a_site_without_pages_is_no_sound_one(check, tmp_path):
    assert check.main([str(tmp_path)]) == 1


@pytest.mark.slow
@pytest.mark.distributed
def test_the_site_builds_and_all_its_links_lead_somewhere(check, tmp_path):
    """As `make docs` does."""
    for package in ("sphinx", "furo", "myst_parser", "latex2mathml"):
        pytest.importorskip(package)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(site)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert check.faults_of(site) == []
