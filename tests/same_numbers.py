"""The penalty's numbers over a grid of settings, to hold a rewrite against the version before it, bit for bit.

python tests/same_numbers.py --against FOLDER     # a checkout of the earlier version
python tests/same_numbers.py --record FILE        # what tests/call/test_same_numbers.py compares with
"""

import argparse
import hashlib
import json
import math
import os
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch
from torch import nn

STEPS = 20
COMMON = {"seed": 3, "output_norm": 2}


def cases():
    """Return name -> settings, in today's words."""
    found = {}
    for method, ascent, exponent in product(("max", "sum"), ("sgd", "nesterov", "adam", "power"), (1, 2)):
        for radius in (None, 0.3, 0.0):
            found[f"{method} {ascent} {exponent} {radius}"] = {
                **{"method": method, "ascent": ascent, "exponent": exponent, "radius": radius, "num_pairs": 6}
            }
    for method, anchored, ascent, radius in product(("tv", "ptv"), (True, False), ("power", "sgd", "adam"), (0.3, 0.0)):
        settings = {"method": method, "anchored": anchored, "ascent": ascent, "radius": radius, "exponent": 2}
        found[f"{method} {anchored} {ascent} {radius}"] = settings
    local = {"method": "tv", "radius": 0.2, "exponent": 2}
    for p in (1, 2, math.inf):
        found[f"norm {p}"] = {**local, "input_norm": p, "output_norm": p}
    found["exponent 1"] = {**local, "exponent": 1, "ascent_steps": 3}
    found["bounds and noise"] = {**local, "bounds": (-2.0, 2.0), "noise": 0.1}
    found["part and interval"] = {**local, "num_pairs": 3, "interval": 3}
    return found


def network(norm):
    torch.manual_seed(0)
    between = [nn.BatchNorm1d(7)] if norm else [nn.Dropout(0.2)]
    return nn.Sequential(nn.Linear(5, 7), *between, nn.Tanh(), nn.Linear(7, 4)).double()


def numbers_of(settings, norm, given):
    """Train for some steps; return each step's value, and a digest of gradients, pairs and state."""
    from torchlipreg import LipschitzPenalty
    from torchlipreg.distributed import rank

    arguments = {"weight": 0.05, "input_norm": 2, "scale": 1.0, **COMMON, **settings}
    if not hasattr(LipschitzPenalty(), "scale") and "exponent" not in repr(LipschitzPenalty()):  # version 0.1's words
        arguments["power"] = arguments.pop("exponent")
        arguments.pop("scale")
    penalty, model = LipschitzPenalty(**arguments), network(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(10 + rank())
    values, digest = [], hashlib.sha256()
    for step in range(STEPS):
        x, y = torch.randn(8, 5, dtype=torch.float64).clamp(-2, 2), torch.randint(4, (8,))
        out = model(x) if norm else model.eval()(x)
        value = penalty(model, x, out if given else None)
        if step % 7 == 3:
            values.append(penalty(model, x, out if given else None, update=False).item())
        optimizer.zero_grad()
        (nn.functional.cross_entropy(out, y) + value).backward()
        optimizer.step()
        values.append(value.item())
    tensors = [p.grad for p in model.parameters()] + [*penalty.pairs, penalty.estimate]
    penalty.synchronize()
    for state in penalty.state_dict()["ranks"]:
        for name in ("x", "x_prime"):
            tensors += [m[name] for m in state["ascent"].values()]
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return {"values": values, "digest": digest.hexdigest()}


def record(names=None):
    found = {}
    for name, settings in cases().items():
        for norm, given in ((False, True), (True, False)):
            if not names or name in names:
                found[f"{name}, norm {norm}"] = numbers_of(settings, norm, given)
    return found


def _on_rank(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = record(["max sgd 2 None", "sum adam 1 0.3", "tv True power 0.3", "ptv False sgd 0.3", "part and interval"])
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def record_all(folder):
    """Return the numbers of one process and of each of two."""
    torch.set_num_threads(1)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_on_rank, (port, str(folder)), nprocs=2)
    ranks = {f"rank {r}": json.loads(Path(folder, f"rank{r}.json").read_text()) for r in range(2)}
    return {"alone": record(), **ranks}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="a checkout of the earlier version")
    parser.add_argument("--record", type=Path, help="write this version's numbers here")
    options = parser.parse_args()
    if options.record:
        found = record_all(options.record.resolve().parent)
        options.record.write_text(json.dumps(found))
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        results = []
        for number, root in enumerate((options.against, Path(__file__).parents[1])):
            file = Path(folder, f"{number}.json")
            command = [sys.executable, str(Path(__file__).resolve()), "--record", str(file)]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(root)}, cwd=root)
            results.append(json.loads(file.read_text()))
    old, new = ({(r, name): v for r, part in result.items() for name, v in part.items()} for result in results)
    different = [key for key in old if old[key] != new.get(key)]
    print(f"{len(old) - len(different)} of {len(old)} cases equal bit for bit")
    for key in different:
        print("different:", *key)
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
