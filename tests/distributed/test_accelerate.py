"""Hugging Face Accelerate: gradients, mixed precision, accumulation, checkpoints, logging."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from data_parallel import METHODS, Net, assert_equal, average, batch, build, gather, local_task_gradient, task_loss
from data_parallel import union_gradient as exact_gradient
from zoo import Seen

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import GeneralTracker

from torchlipreg.integrations.accelerate import log_values, prepare_penalty


@contextlib.contextmanager
def new_accelerator(rank=0, **options):
    """An Accelerator on the CPU, in the worker's process group if there is one."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    with pytest.MonkeyPatch.context() as patch:
        names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": 0}
        for name, value in {**names, "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": 1}.items():
            patch.setenv(name, str(value)) if size > 1 else patch.delenv(name, raising=False)
        accelerator = Accelerator(cpu=True, **options)
        assert accelerator.num_processes == size
        yield accelerator
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def accumulate(rank, method, only_when_synchronised):
    with new_accelerator(rank, gradient_accumulation_steps=2) as accelerator:
        net = Net("group").double()
        model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
        penalty = prepare_penalty(accelerator, build(method))
        expected = [torch.zeros_like(p) for p in net.parameters()]
        for micro_step in range(2):
            with accelerator.accumulate(model):
                y = model(x := batch(rank, micro_step))
                loss, factor = task_loss(y), 1
                if only_when_synchronised:
                    factor = 2 if accelerator.sync_gradients else 0
                if factor:
                    loss = loss + factor * penalty(model, x, y)
                accelerator.backward(loss)
            of_task = average(local_task_gradient(net, x))
            of_penalty = exact_gradient(net, penalty)[2] if factor else [torch.zeros_like(e) for e in expected]
            expected = [e + (t + factor * p) / 2 for e, t, p in zip(expected, of_task, of_penalty, strict=True)]
        assert_equal([p.grad for p in net.parameters()], expected)
        optimizer.step()


@pytest.mark.parametrize("only_when_synchronised", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_accumulation(two, method, only_when_synchronised):
    two.run(accumulate, method, only_when_synchronised)


def train_in_bfloat16(rank):
    with new_accelerator(rank, mixed_precision="bf16") as accelerator:
        net = Net("group")
        exact, x = copy.deepcopy(net), batch(rank, dtype=torch.float32)
        model, seen = accelerator.prepare(net), Seen()
        net.head.register_forward_hook(lambda module, inputs, y: seen.append(y.dtype))
        penalty, reference = (build("tv", radius=0.003) for _ in range(2))
        y = model(x)
        accelerator.backward(task_loss(y) + penalty(prepare_penalty(accelerator, penalty) and model, x, y))
        reference(exact, x)
        assert abs(penalty.estimate - reference.estimate) <= 1e-4 * reference.estimate
        assert not penalty.reuses_outputs
        model(x)
        assert seen.items[0] == seen.items[-1] == torch.bfloat16
        assert set(seen.items[1:-1]) == {torch.float32}


def test_mixed_precision_leaves_the_training_forward_as_it_was(two):
    two.run(train_in_bfloat16)


def save(rank, folder, method="max", methods=None):
    with new_accelerator(rank) as accelerator:
        net = Net("group").double()
        model = accelerator.prepare(net)
        penalties = [prepare_penalty(accelerator, build(m)) for m in methods or [method]]
        for penalty in penalties:
            penalty(model, batch(rank))
        accelerator.save_state(folder)
        return gather([p.pairs for p in penalties]) if dist.is_initialized() else None


def load(rank, folder, methods):
    with new_accelerator(rank) as accelerator:
        model = accelerator.prepare(Net("group").double())
        penalties = [prepare_penalty(accelerator, build(m)) for m in methods]
        accelerator.load_state(folder)
        found = [p.pairs for p in penalties]
        for penalty in penalties:
            penalty(model, batch(rank, 1))
        return found


def test_checkpoints_hold_the_pairs_of_all_processes(pools, tmp_path):
    saved = pools[2].run(save, tmp_path, None, ["max", "sum"])[0]
    everyone = pools[2].run(load, tmp_path, ["max", "sum"]), pools[3].run(load, tmp_path, ["max", "sum"])
    for processes in (*everyone, [load(0, tmp_path, ["max", "sum"])]):
        for i in range(2):
            expected = torch.cat([pairs[i].x_prime for pairs in saved])
            got = torch.cat([pairs[i].x_prime for pairs in processes])
            assert sorted(got.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


def test_an_older_checkpoint_loads_with_a_warning(tmp_path):
    save(0, tmp_path, methods=["max"])
    (tmp_path / "lipschitz_penalty_0.bin").unlink()
    with pytest.warns(UserWarning, match="no penalty in .* start anew"):
        assert load(0, tmp_path, ["max"]) == [None]


def test_another_kind_of_penalty_is_refused(tmp_path):
    save(0, tmp_path, methods=["max"])
    with pytest.raises(ValueError, match="method='sum', but got 'max'"):
        load(0, tmp_path, ["sum"])


def test_prepare_leaves_a_penalty_untouched():
    penalty = build("tv")
    with new_accelerator() as accelerator:
        assert accelerator.prepare(penalty) is penalty
        assert prepare_penalty(accelerator, penalty) is penalty


class Recorder(GeneralTracker):
    name, requires_logging_directory, tracker = "recorder", False, None
    main_process_only = True

    def __init__(self):
        super().__init__()
        self.lines = []

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None):
        self.lines.append(values)


def test_values_are_ready_for_trackers():
    recorder = Recorder()
    with new_accelerator(log_with=recorder) as accelerator:
        accelerator.init_trackers("run")
        penalty = prepare_penalty(accelerator, build("tv"))
        value = penalty(Net("group").double(), batch(0))
        accelerator.log(log_values(penalty, value))
        accelerator.log(log_values(build("max")))
    assert {type(v) for line in recorder.lines for v in line.values()} == {float}
    assert recorder.lines[0]["penalty"] == value.item()
    assert recorder.lines[0]["lipschitz"] == penalty.estimate.item()
    assert set(recorder.lines[1]) == {"lipschitz", "lipschitz_weight"}


def test_bad_arguments():
    with new_accelerator() as accelerator:
        with pytest.raises(TypeError, match="`penalty`"):
            prepare_penalty(accelerator, torch.nn.Linear(1, 1))
        with pytest.raises(TypeError, match="`accelerator`"):
            prepare_penalty(build("tv"), accelerator)


def save_on_the_main_process(rank, folder, method):
    with new_accelerator(rank) as accelerator:
        model = accelerator.prepare(Net("group").double())
        penalty = prepare_penalty(accelerator, build(method))
        for step in range(2):
            if step == 1 and accelerator.is_main_process:
                accelerator.save_state(folder)
            accelerator.backward(penalty(model, batch(rank, step)))


@pytest.mark.parametrize("method", ["tv", "ptv"])
def test_the_main_process_alone_may_save_what_keeps_no_pairs(two, tmp_path, method):
    """As it was, the other one's next collective was taken for its part in the saving."""
    two.run(save_on_the_main_process, str(tmp_path), method)
    assert (tmp_path / "lipschitz_penalty_0.bin").exists()


def test_a_penalty_of_an_attempt_that_was_given_up_leaves_no_file(tmp_path):
    """``find_executable_batch_size`` tries anew inside of the function that prepares: as it was, as another one."""

    def attempt(accelerator, fails):
        accelerator.free_memory()
        net = Net("group").double()
        model = accelerator.prepare(net)
        penalty, other = (prepare_penalty(accelerator, build("max", seed=seed)) for seed in (1, 2))
        (penalty(model, batch(0)) + other(model, batch(0))).backward()
        if fails:
            raise MemoryError
        return penalty, other

    with new_accelerator() as accelerator:
        with pytest.raises(MemoryError):
            attempt(accelerator, fails=True)
        saved = attempt(accelerator, fails=False)
        accelerator.save_state(tmp_path)
    assert sorted(f.name for f in tmp_path.glob("lipschitz*")) == [f"lipschitz_penalty_{i}.bin" for i in range(2)]
    with new_accelerator() as accelerator:
        loaded = attempt(accelerator, fails=False)
        accelerator.load_state(tmp_path)
    for penalty, reference in zip(loaded, saved, strict=True):
        assert torch.equal(penalty.pairs.x, reference.pairs.x)
    assert not torch.equal(saved[0].pairs.x, saved[1].pairs.x)
