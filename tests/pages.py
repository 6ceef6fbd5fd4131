"""Run the Python blocks of a page, in order, in one namespace; put what they print into the ```text blocks after them.

python tests/pages.py docs/tutorial.md
"""

import contextlib
import io
import re
import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


def blocks(text):
    """Return the Python blocks of a page, each with the output that the page shows after it, None without one."""
    return [(match[1], match[2]) for match in BLOCK.finditer(text)]


def run(code, namespace, name):
    """Run a block; return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), namespace)
    return out.getvalue()


def what_a_script_has(folder):
    """Return what the short blocks take for granted: a model, data, an optimiser, and so on."""
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    x, y = torch.rand(300, 64), torch.randint(10, (300,))
    optimizer, criterion = torch.optim.Adam(net.parameters()), nn.CrossEntropyLoss()

    def train_one_epoch(model, loader, penalty):
        for xb, yb in loader:
            out = model(xb)
            (criterion(out, yb) + penalty(model, xb, out)).backward()
        return 0.95

    return {
        "torch": torch,
        "nn": nn,
        "rank": 0,
        "net": net,
        "DistributedDataParallel": nn.parallel.DistributedDataParallel,
        "model": net,
        "x": x,
        "y": y,
        "images": torch.rand(8, 3, 160, 160),
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=128),
        "criterion": criterion,
        "optimizer": optimizer,
        "train_one_epoch": train_one_epoch,
        "path": folder / "checkpoint.pt",
    }


def filled(text):
    """Return a page with today's output in its text blocks."""
    namespace = {}

    def fill(match):
        printed = run(match[1], namespace, "block")
        return match[0] if match[2] is None else f"```python\n{match[1]}```\n\n```text\n{printed}```\n"

    return BLOCK.sub(fill, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for page in map(Path, sys.argv[1:]):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
