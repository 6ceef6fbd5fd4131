"""What only a GPU can show. Written without one at hand, and so far rehearsed on a CPU alone (`make gpu-rehearsal`)."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from devices import DEVICE, REHEARSAL, on_gpu
from scripts import end, launch, output
from torch import nn
from torch.nn.functional import cross_entropy
from zoo import bare

pytestmark = on_gpu
ON_GPU_ALONE = pytest.mark.skipif(REHEARSAL, reason="needs a GPU, also in a rehearsal")
METHODS = {
    "max": {"num_pairs": 16},
    "sum": {"num_pairs": 16, "ascent": "adam"},
    "tv": {"input_norm": math.inf},
    "ptv": {"anchored": False, "ascent": "sgd"},
    "limit": {"method": "tv", "radius": 0},
}


def build(method, **options):
    return bare(**{"method": method, "weight": 0.1, **METHODS[method], **options})


@pytest.fixture
def data():
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.rand(32, 1, 8, 8, device=DEVICE, generator=generator)
    return x, torch.randint(10, (32,), device=DEVICE, generator=generator)


@pytest.fixture
def net():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten())
    return nn.Sequential(*conv, nn.Linear(8 * 36, 10)).to(DEVICE)


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


@pytest.fixture
def nccl(tmp_path):
    dist.init_process_group(
        "gloo" if REHEARSAL else "nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@contextlib.contextmanager
def refusing_to_wait():
    if REHEARSAL:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_wait_would_be_seen(data):
    if REHEARSAL:
        pytest.skip("a CPU waits for nobody")
    with refusing_to_wait(), pytest.raises(RuntimeError, match="synchronizing"):
        data[0].sum().item()


@pytest.mark.parametrize("method", METHODS)
def test_step_never_waits_for_the_device(net, data, method):
    penalty, (x, _) = build(method), data
    penalty(net, x, net(x)).backward()  # the first call looks at the values
    with refusing_to_wait():
        for _ in range(70):  # one of them is a 64th, in which the model is looked at anew
            penalty(net, x, net(x)).backward()


@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_the_cpu(net, data, method):
    x = data[0]
    penalty = build(method)
    value = penalty(net, x)
    on_cpu = build(method)
    on_cpu.load_state_dict(penalty.state_dict())
    if method in ("max", "sum"):
        torch.testing.assert_close(on_cpu(copy.deepcopy(net).cpu(), x.cpu(), update=False), value.cpu())
    assert value.device == x.device


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(net, data, dtype):
    x = data[0]
    net.eval()  # in train mode the forward between the two calls would move BatchNorm's statistics
    exact, inside = build("tv", radius=1e-3), build("tv", radius=1e-3)
    exact(net, x)
    with torch.autocast(DEVICE, dtype):
        y = net(x)
        inside(net, x, y)
    assert y.dtype == dtype
    torch.testing.assert_close(inside.estimate, exact.estimate, rtol=0.05, atol=0)


def test_grad_scaler(net, data):
    x, y = data
    net.eval()
    expected = copy.deepcopy(net)
    (cross_entropy(expected(x), y) + build("tv")(expected, x)).backward()
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler(DEVICE)
    with torch.autocast(DEVICE, torch.float16):
        out = net(x)
        loss = cross_entropy(out, y) + build("tv")(net, x, out)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for ours, theirs in zip(gradients(net), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=1e-3)
    scaler.step(optimizer)


@pytest.mark.parametrize("method", METHODS)
def test_ddp_with_nccl(nccl, net, data, method):
    x = data[0]
    model = nn.parallel.DistributedDataParallel(copy.deepcopy(net))
    # In the limit the last bias has no part in the penalty, and none in its gradient.
    (build(method)(net, x) + 0 * net(x).sum()).backward()
    (build(method)(model, x) + 0 * model(x).sum()).backward()
    for ours, theirs in zip(gradients(model), gradients(net), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@ON_GPU_ALONE
def test_sync_batch_norm_trains(nccl, net, data):
    model = nn.parallel.DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(net))
    x, y = data
    penalty = build("tv")
    for _ in range(2):
        out = model(x)
        (cross_entropy(out, y) + penalty(model, x, out)).backward()
    assert all(g.isfinite().all() for g in gradients(net))


@pytest.mark.compiler
@pytest.mark.parametrize("method", ["max", "tv"])
def test_cuda_graphs(net, data, method):
    x, y = data
    net.eval()
    eager, compiled = build(method), build(method)
    model = torch.compile(net, mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        expected = eager(net, x).item()
        value = compiled(model, x)
        (cross_entropy(model(x), y) + value).backward()
        assert value.item() == pytest.approx(expected, rel=1e-3)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize("method", METHODS)
def test_cudnn_lstm(data, method):
    torch.manual_seed(0)
    net, x = Recurrent().to(DEVICE), data[0].squeeze(1)
    penalty = build(method)
    value = penalty(net, x)
    value.backward()
    assert value > 0
    assert net.training
    assert penalty(net, x, update=False).item() == pytest.approx(value.item(), rel=1e-5)  # no dropout inside


@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("fsdp_version", [None, 2])
def test_accelerate(data, mixed_precision, fsdp_version, monkeypatch, free_port):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from torchlipreg.integrations.accelerate import prepare_penalty

    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    plugin = None
    if fsdp_version:  # Accelerate refuses FSDP on a CPU
        plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    try:
        accelerator = accelerate.Accelerator(mixed_precision=mixed_precision, fsdp_plugin=plugin)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).to(DEVICE)
        reference, (x, y) = copy.deepcopy(net), data
        model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
        penalty, exact = prepare_penalty(accelerator, build("tv")), build("tv")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bfloat16 shards
            out = model(x)
            value = penalty(model, x, out)
        exact(reference, x)
        torch.testing.assert_close(penalty.estimate.float(), exact.estimate, rtol=0.1, atol=0)
        accelerator.backward(cross_entropy(out.float(), y) + value)
        optimizer.step()
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        if dist.is_initialized():
            dist.destroy_process_group()


EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINER = ["--max_steps", "20", "--eval_strategy", "no", "--save_strategy", "no", *(["--use_cpu"] if REHEARSAL else [])]
LIGHTNING = ["--epochs", "1", "--accelerator", "cpu" if REHEARSAL else "gpu"]
ACCELERATE = ["--epochs", "1"]
SCRIPTS = {
    "trainer_image.py": (TRAINER, {"fp16": ["--fp16"], "bf16": ["--bf16"]}),
    "trainer_text.py": (TRAINER, {"fp16": ["--fp16"], "bf16": ["--bf16"]}),
    "accelerate_train.py": (ACCELERATE, {p: ["--mixed-precision", p] for p in ("fp16", "bf16")}),
    "lightning_train.py": (LIGHTNING, {"fp16": ["--precision", "16-mixed"], "bf16": ["--precision", "bf16-mixed"]}),
}


def run_script(folder, *command):
    """Run a script and see that it logs a finite quotient."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"} if REHEARSAL else None
    process = launch([sys.executable, *command], environment, folder)
    try:
        text = output(process, timeout=280)
    finally:
        end(process)
    found = [float(value) for value in re.findall(r"'?lipschitz'?: '?([-\d.einfa]+)", text)]
    assert found
    assert all(0 < value < math.inf for value in found)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=ON_GPU_ALONE)])
@pytest.mark.parametrize("name", SCRIPTS)
def test_example_scripts(tmp_path, name, precision):
    options, precisions = SCRIPTS[name]
    run_script(tmp_path, str(EXAMPLES / name), *options, *precisions[precision])


@ON_GPU_ALONE
@pytest.mark.parametrize("precision", [[], ["--bf16"], ["--fp16"]])
def test_a_trainer_that_shards(tmp_path, precision):
    (tmp_path / "fsdp.json").write_text('{"version": 2}')
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    sharded = ["--fsdp", "full_shard", "--fsdp_config", "fsdp.json"]
    run_script(tmp_path, *launch, str(EXAMPLES / "trainer_image.py"), *TRAINER, *sharded, *precision)
