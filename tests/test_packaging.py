"""The wheel and the sdist: complete, and the wheel trains where only torch is."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LITTER = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__", "*.png", "*.pt")
TRAIN = """
import sys

class Without:  # a finder that does not find the optional packages
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in {optional}
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
sys.path.insert(0, {target!r})
try:
    import timm
except ImportError:
    pass
else:
    raise SystemExit("the empty environment is not empty")

import torch
import torchlipreg

assert torchlipreg.__file__.startswith({target!r}), torchlipreg.__file__
net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
optimizer = torch.optim.Adam(net.parameters())
for method in ("max", "tv"):
    penalty = torchlipreg.LipschitzPenalty(method, 0.1)
    for _ in range(2):
        x = torch.randn(8, 6)
        out = net(x)
        loss = out.square().mean() + penalty(net, x, out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
# An editable install of the same package would lend what the wheel lacks.
lent = {{m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "torchlipreg"}}
assert all(path.startswith({target!r}) for path in lent), lent
print("trained", torchlipreg.__version__)
"""
OPTIONAL = {"accelerate", "lightning", "matplotlib", "rich", "sklearn", "timm", "torchvision", "tqdm", "transformers"}

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def run(*command, **options):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("build")
    source = shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "torchlipreg", ignore=LITTER)
    out = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", str(out), str(source))  # the wheel is built from the sdist
    return out


def test_the_wheel_is_complete(built):
    (wheel,) = built.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    core = {p.relative_to(ROOT).as_posix() for p in (ROOT / "torchlipreg").rglob("*.py")}
    integrations = {f"torchlipreg/integrations/{p.name}" for p in (ROOT / "integrations").glob("*.py")}
    assert "torchlipreg/integrations/timm.py" in integrations
    assert names == core | integrations | {"torchlipreg/py.typed"}


def test_the_sdist_is_complete(built):
    (sdist,) = built.glob("*.tar.gz")
    names = {n.partition("/")[2] for n in tarfile.open(sdist).getnames()}
    examples = {p.relative_to(ROOT).as_posix() for p in (ROOT / "examples").rglob("*.py")}
    tests = {p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("*.py")}
    assert "examples/quickstart.py" in examples
    missing = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml", *examples, *tests} - names
    assert missing == set()


def test_the_wheel_trains_where_only_torch_is(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    script = TRAIN.format(optional=OPTIONAL, target=str(target))
    assert run("-I", "-W", "error", "-c", script, cwd=tmp_path).startswith("trained ")
