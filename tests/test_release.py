"""What would be released: every tracked file that tests and site need, nothing else, one version everywhere."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import torchlipreg

ROOT = Path(__file__).parents[1]
OF_THE_REPOSITORY = (".github/", ".gitignore", ".pre-commit-config.yaml")
GENERATED = ("PKG-INFO", "setup.cfg", "torchlipreg.egg-info/")
# A home folder, or a key: what would come from somebody's machine.
PRIVATE = re.compile(rb"/(?:home|root|Users)/\w|BEGIN [A-Z ]*PRIVATE KEY|\b(?:ghp|pypi|hf)[-_][A-Za-z0-9]{20}")


def tracked():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode or not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist of the tracked files, as name -> contents."""
    pytest.importorskip("setuptools", "77")
    source = tmp_path_factory.mktemp("sdist") / "torchlipreg"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    script = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, check=True)
    (path,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(path) as tar:
        files = [member for member in tar if member.isfile()]
        return {member.name.partition("/")[2]: tar.extractfile(member).read() for member in files}


@pytest.mark.distributed
def test_the_sdist_holds_what_is_tracked_and_nothing_else(sdist):
    expected = {name for name in tracked() if not name.startswith(OF_THE_REPOSITORY)}
    assert {name for name in sdist if not name.startswith(GENERATED)} == expected


@pytest.mark.distributed
def test_the_sdist_holds_nothing_private(sdist):
    assert PRIVATE.search(b"made in /home/" + b"somebody/data")
    assert [name for name, contents in sdist.items() if PRIVATE.search(contents)] == []


def test_one_version_everywhere():
    version = torchlipreg.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(name for name in sections if name != "Unreleased") == version


def test_each_section_of_the_changelog_is_in_order():
    order = ["Added", "Changed", "Deprecated", "Fixed", "Removed", "Security"]
    for section in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        kinds = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert kinds == sorted(set(kinds), key=order.index)


def test_every_extra_is_tried():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(
        re.findall(r"^([\w-]+) = \[", text.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.M)
    )
    tried = set(re.search(r"^EXTRAS = \((.*)\)$", (ROOT / ".ci" / "dist.py").read_text("utf-8"), re.M)[1].split(", "))
    assert {name.strip('"') for name in tried} == extras - {"examples", "test", "dist", "docs"}
