"""One part of the run on a GPU: where a penalised step spends its time and memory, and whether it waits for the device.

Of each model a plain step and a penalised one, with AdamW and bfloat16 autocast: the milliseconds, the peak of memory,
what the profiler saw most of, and how often the host waited. On a GPU torch is told to refuse every wait meanwhile.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from examples.experiments.common.clock import quartiles, seconds
from examples.experiments.common.files import write_json
from examples.experiments.cost.contenders import CONTENDERS, SUBJECTS
from examples.experiments.cost.measure import LiveBytes

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize", "cudaEventSynchronize")
PROFILED = 3  # steps
QUIET = 66  # steps that must not wait: one of them is a 64th, in which the penalty looks at the model anew


def looped(name, contender, size, batch, device):
    """Return a function that trains for one step."""
    torch.manual_seed(0)
    model = SUBJECTS[name].build(size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loss_of = CONTENDERS[contender].start(batch)
    x = torch.rand(batch, SUBJECTS[name].channels, size, size, device=device)
    y = torch.randint(10, (batch,), device=device)

    def step():
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def peak(step, device):
    """Bytes that are held at most during a step."""
    if device == "cpu":
        with LiveBytes() as live:
            step()
        return live.peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def refused(step, device, times):
    """What torch says of the first step that waits, None where none does."""
    if device == "cpu":
        for _ in range(times):
            step()
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(times):
            step()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def profiled(step, device):
    """Return how often a step waits, and what takes longest: name -> milliseconds a step."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED):
            step()
    events = profiler.key_averages()
    waits = sum(event.count for event in events if event.key in WAITS) / PROFILED
    if device == "cuda":
        times = {e.key: e.self_device_time_total for e in events if e.device_type == DeviceType.CUDA}
    else:
        times = {e.key: e.self_cpu_time_total for e in events}
    longest = sorted(times, key=times.get, reverse=True)[:6]
    return waits, {key[:80]: round(times[key] / 1000 / PROFILED, 3) for key in longest}


def measured(name, contender, size, batch, device, quick):
    step = looped(name, contender, size, batch, device)
    for _ in range(3):
        step()
    memory = peak(step, device)
    complaint = refused(step, device, 3 if quick else QUIET)
    waits, longest = profiled(step, device)
    low, middle, high = quartiles([seconds(step, device) for _ in range(3 if quick else 10)])
    return {
        "milliseconds": round(1000 * middle, 3),
        "quartiles": [round(1000 * low, 3), round(1000 * high, 3)],
        "gibibytes": round(memory / 2**30, 3),
        "waits": waits,
        "refused": complaint,
        "longest": longest,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu/profile.json"))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny images and batches")
    options = parser.parse_args(arguments)
    device, size, batch = ("cpu", 32, 4) if options.rehearse else ("cuda", 224, 128)
    measure = partial(measured, size=size, batch=batch, device=device, quick=options.rehearse)
    names = ("mlp", "vit_tiny") if options.rehearse else ("resnet50", "vit_small")
    models = {name: {contender: measure(name, contender) for contender in ("plain", "tv")} for name in names}
    write_json(options.out, {"image size": size, "batch size": batch, "models": models})
    for name, of in models.items():
        more = of["tv"]["waits"] - of["plain"]["waits"]
        print(f"{name}: {of['plain']['milliseconds']} and {of['tv']['milliseconds']} ms, {more:g} waits more a step")
        if more > 0 or of["tv"]["refused"]:
            raise SystemExit(f"{name}: a penalised step waits for the device: {of['tv']['refused'] or of['tv']}")


if __name__ == "__main__":
    main()
