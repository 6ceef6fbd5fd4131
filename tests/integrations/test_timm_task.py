"""LipschitzTask around timm's tasks, in one process."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from timm.models import create_model
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    MultiLabelClassificationTask,
    TokenDistillationTask,
    TrainingTask,
    load_task_ema_checkpoint,
    resume_task_checkpoint,
)
from timm.utils import CheckpointSaver
from torch import nn
from zoo import bare

from torchlipreg.integrations import _timm_task
from torchlipreg.integrations.timm import LipschitzTask
from torchlipreg.outputs import root_probabilities, smallest_margins

CLASSES, SIZE = 5, 32


def build(name, **options):
    torch.manual_seed(0)
    model = create_model(name, num_classes=CLASSES, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))  # timm's start is so flat that a penalty would be lost in rounding
    return model


def vit(name="vit_tiny_patch16_224"):
    return build(name, img_size=SIZE, embed_dim=24, depth=2, num_heads=2, patch_size=8)


def resnet():
    return build("test_resnet")


QUIET = {"verbose": False}
TASKS = {
    "classification": lambda: ClassificationTask(resnet(), **QUIET),
    "soft targets": lambda: ClassificationTask(vit(), criterion_kwargs={"soft_targets": True}, **QUIET),
    "multi-label": lambda: MultiLabelClassificationTask(vit(), **QUIET),
    "logit": lambda: LogitDistillationTask(vit(), resnet(), **QUIET),
    "feature": lambda: FeatureDistillationTask(vit(), resnet(), **QUIET),
    "token": lambda: TokenDistillationTask(vit("deit_tiny_distilled_patch16_224"), resnet(), **QUIET),
}
SOFT = ("soft targets", "multi-label")


def batch(kind="classification", size=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, SIZE, SIZE, generator=generator)
    if kind in SOFT:
        return x, torch.rand(size, CLASSES, generator=generator).softmax(1)
    return x, torch.randint(CLASSES, (size,), generator=generator)


WEIGHTS = {"tv": 20.0, "max": 2e4}  # a penalty of the order of the loss


def strong(method="tv"):
    return bare(method, WEIGHTS[method], num_pairs=4)


def gradients(task):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in task.get_trainable_module().parameters()]


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("method", ["tv", "max"])
def test_loss_and_gradient_are_the_tasks_plus_the_penaltys(kind, method):
    plain, (x, y) = TASKS[kind]().double(), batch(kind)
    x, y = x.double(), y.double() if kind in SOFT else y
    task = LipschitzTask(copy.deepcopy(plain), strong(method))
    student = getattr(plain.trainable_module, "student", plain.trainable_module)

    expected = plain(x, y)
    penalty = strong(method)(student, x)
    (expected["loss"] + penalty).backward()
    result = task(x, y)
    result["loss"].backward()

    assert penalty > 1e-2 * expected["loss"]
    torch.testing.assert_close(result["loss"], expected["loss"] + penalty)
    torch.testing.assert_close(result["penalty"], penalty.detach())
    assert set(result) == {*expected, "penalty", "lipschitz"}
    torch.testing.assert_close(result["output"], expected["output"])
    for actual, wanted in zip(gradients(task), gradients(plain), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-10)


def test_the_student_is_penalised_as_it_predicts():
    task = LipschitzTask(TASKS["token"](), strong())
    x, y = batch()
    task(x, y)
    student = task.trainable_module.eval()
    pairs = task.penalty.pairs
    with torch.no_grad():
        change = (student(pairs.x_prime) - student(pairs.x)).flatten(1).norm(dim=1)
    quotients = change / (pairs.x_prime - pairs.x).flatten(1).norm(dim=1)
    torch.testing.assert_close(task.penalty.estimate, quotients.max(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("output", [None, root_probabilities])
@pytest.mark.parametrize(("model", "reused"), [(vit, True), (resnet, False)])
def test_the_tasks_output_serves_as_f_of_x_where_it_is_the_same(model, reused, output):
    task = LipschitzTask(ClassificationTask(model(), **QUIET), bare("tv", output=output))
    task(*batch())
    assert task.penalty.reuses_outputs is reused


@pytest.mark.parametrize("model", [vit, resnet])
def test_the_tasks_output_chooses_the_points(model):
    penalty = bare("tv", num_pairs=2, choose=smallest_margins)
    task = LipschitzTask(ClassificationTask(model(), **QUIET), penalty)
    x, y = batch()
    result = task(x, y)
    assert torch.equal(penalty.pairs.x, x[smallest_margins(result["output"], 2)])


def test_a_checkpoint_names_the_functions_of_its_penalty(tmp_path):
    def task():
        penalty = bare("tv", num_pairs=2, choose=smallest_margins, output=root_probabilities)
        return LipschitzTask(ClassificationTask(vit(), **QUIET), penalty)

    saved, loaded = task(), task()
    saved(*batch())
    torch.save(saved.get_task_state(), tmp_path / "task.pt")
    loaded.load_task_state(torch.load(tmp_path / "task.pt", weights_only=True))  # without a warning
    assert loaded.penalty._state.calls == 1


def test_an_output_function_of_ones_own_leaves_nothing_to_choose_from():
    penalty = bare("tv", num_pairs=2, choose=smallest_margins, output=lambda y: y)
    with pytest.raises(ValueError, match=r"`penalty`.*`choose`.*root_probabilities"):
        LipschitzTask(ClassificationTask(vit(), **QUIET), penalty)


def test_an_output_function_of_ones_own_gets_what_the_model_returns():
    seen = []
    task = LipschitzTask(ClassificationTask(vit(), **QUIET), bare("tv", output=lambda y: seen.append(y) or y))
    task(*batch())
    assert seen
    assert task.penalty.reuses_outputs is None


def test_results_are_separate_tensors():
    task = LipschitzTask(TASKS["classification"](), strong("max"))
    result = task(*batch())
    before = {name: result[name].item() for name in ("loss", "penalty", "lipschitz")}
    loss = result["loss"]
    loss /= 4  # as train.py does
    assert result["penalty"].item() == before["penalty"]
    result["penalty"] /= 4
    result["lipschitz"] *= 0
    assert loss.item() == pytest.approx(before["loss"] / 4)
    loss.backward()
    assert not result["penalty"].requires_grad
    assert not result["lipschitz"].requires_grad
    assert task.penalty.estimate.item() == before["lipschitz"] > 0


@pytest.mark.parametrize("situation", ["eval", "model.eval", "no_grad", "inference_mode", "weight 0"])
def test_no_penalty_outside_training(situation):
    plain = TASKS["classification"]()
    task = LipschitzTask(copy.deepcopy(plain), strong())
    if situation == "weight 0":
        task.penalty.weight = 0
    elif situation == "eval":
        task.eval(), plain.eval()
    elif situation == "model.eval":
        task.get_eval_model().eval(), plain.get_eval_model().eval()
    guard = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(situation, torch.enable_grad)
    x, y = batch()
    with guard():
        expected, result = plain(x, y), task(x, y)
    assert torch.equal(result["loss"], expected["loss"])
    assert result["penalty"] == 0
    assert task.penalty.pairs is None


def test_it_is_the_task_in_every_other_respect():
    plain = TASKS["multi-label"]()
    twin = copy.deepcopy(plain)
    task = LipschitzTask(plain, strong())
    assert task is plain
    assert isinstance(task, LipschitzTask)
    assert isinstance(task, MultiLabelClassificationTask)
    assert not isinstance(twin, LipschitzTask)
    assert [p.shape for p in task.get_clip_parameters()] == [p.shape for p in twin.get_clip_parameters()]
    assert task.create_evaluator().metric_names == twin.create_evaluator().metric_names
    assert {k for k in task.state_dict()} == {k for k in twin.state_dict()}


def test_a_refused_penalty_leaves_the_task_alone():
    task = TASKS["classification"]()
    with pytest.raises(TypeError, match="`penalty`"):
        LipschitzTask(task, "tv")
    assert not isinstance(task, LipschitzTask)


def test_a_copy_has_a_penalty_of_its_own():
    task = LipschitzTask(TASKS["classification"](), strong())
    twin = copy.deepcopy(task)
    assert type(twin) is type(task)
    twin(*batch())
    assert twin.penalty.pairs is not None
    assert task.penalty.pairs is None


def test_a_task_can_be_pickled():
    task = LipschitzTask(TASKS["classification"](), strong())
    task(*batch())
    twin = pickle.loads(pickle.dumps(task))
    assert type(twin) is type(task)
    assert isinstance(twin, ClassificationTask)
    torch.testing.assert_close(twin(*batch())["penalty"], task(*batch())["penalty"])


def test_the_teacher_stays_in_eval_mode():
    task = LipschitzTask(TASKS["logit"](), strong()).train()
    task(*batch())
    assert task.trainable_module.training
    assert not task.teacher.training


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own access
@pytest.mark.compiler
@pytest.mark.parametrize("kind", ["classification", "feature"])
def test_compiled_with_a_moving_average(kind):
    task = LipschitzTask(TASKS[kind](), strong())
    reference = LipschitzTask(TASKS[kind](), strong())
    task.setup_ema(decay=0.5)
    task.compile(backend="eager")
    task.compile_ema(backend="eager")
    result, expected = task(*batch()), reference(*batch())
    torch.testing.assert_close(result["loss"], expected["loss"])
    assert result["penalty"] > 0
    result["loss"].backward()
    with torch.no_grad():
        for p in task.get_trainable_module().parameters():
            p.sub_(0.1)
    before = task.get_eval_model(ema=True)(batch()[0]).detach().clone()
    task.update_ema(step=1)
    assert not torch.equal(task.get_eval_model(ema=True)(batch()[0]), before)


def test_channels_last_and_bfloat16():
    x, y = batch()
    estimates = []
    for amp in (False, True):
        task = LipschitzTask(ClassificationTask(resnet().to(memory_format=torch.channels_last), **QUIET), strong())
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            result = task(x.contiguous(memory_format=torch.channels_last), y)
        result["loss"].backward()
        assert result["output"].dtype == (torch.bfloat16 if amp else torch.float32)
        estimates.append(result["lipschitz"].item())
    assert estimates[1] == pytest.approx(estimates[0], rel=0.05)


def test_a_step_reads_no_tensor(monkeypatch):
    task = LipschitzTask(TASKS["classification"](), strong("max"))
    task(*batch())

    def refuse(self, *args):
        raise AssertionError("the step waits for the device")

    for name in ("item", "__bool__", "__float__", "__int__", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    task(*batch())


# Saving and resuming


def train(task, optimizer, steps):
    task.train()
    for step in steps:
        optimizer.zero_grad()
        task(*batch(seed=step))["loss"].backward()
        optimizer.step()
        task.update_ema(step=step)


def start(kind, penalty):
    task = TASKS[kind]()
    task = task if penalty is None else LipschitzTask(task, penalty)
    return task, torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.01)


def save(directory, task, optimizer):
    saver = CheckpointSaver(task.get_trainable_module(), optimizer, checkpoint_dir=str(directory), task=task)
    saver.save_checkpoint(0)
    return str(directory / "last.pth.tar")


def weights(task):
    return torch.cat([p.detach().flatten() for p in task.get_trainable_module().parameters()])


@pytest.mark.parametrize("kind", ["classification", "feature"])
@pytest.mark.parametrize("method", ["max", "tv"])
def test_resuming_equals_not_having_stopped(kind, method, tmp_path):
    task, optimizer = start(kind, strong(method))
    task.setup_ema(decay=0.5)
    train(task, optimizer, range(3))
    path = save(tmp_path, task, optimizer)
    train(task, optimizer, range(3, 5))

    resumed, optimizer = start(kind, strong(method))
    resume_task_checkpoint(resumed, path, optimizer, log_info=False)
    resumed.setup_ema(decay=0.5)
    load_task_ema_checkpoint(resumed, path)
    train(resumed, optimizer, range(3, 5))
    assert torch.equal(weights(resumed), weights(task))

    forgetful, optimizer = start(kind, strong(method))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["task_state"].pop("lipschitz")
    torch.save(checkpoint, path)
    with pytest.warns(UserWarning, match="holds no penalty, so its pairs start anew"):
        resume_task_checkpoint(forgetful, path, optimizer, log_info=False)
    train(forgetful, optimizer, range(3, 5))
    assert not torch.equal(weights(forgetful), weights(task))


@pytest.mark.parametrize("kind", ["classification", "feature"])
def test_a_plain_run_resumes_from_a_penalised_one(kind, tmp_path):
    task, optimizer = start(kind, strong())
    train(task, optimizer, range(2))
    plain, plain_optimizer = start(kind, None)
    resume_task_checkpoint(plain, save(tmp_path, task, optimizer), plain_optimizer, log_info=False)
    assert torch.equal(weights(plain), weights(task))
    assert "lipschitz" not in plain.get_task_state()


@pytest.mark.parametrize(("weight", "warns"), [(0.5, 1), (0, 0)])
def test_a_penalised_run_resumes_from_a_plain_one(weight, warns, tmp_path):
    plain, optimizer = start("classification", None)
    path = save(tmp_path, plain, optimizer)
    task, optimizer = start("classification", bare("max", weight))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resume_task_checkpoint(task, path, optimizer, log_info=False)
    assert len(caught) == warns
    train(task, optimizer, range(1))


@pytest.mark.parametrize(
    ("options", "weight", "radius", "message"),
    [
        ({}, 0.3, 0.05, None),  # as a schedule left them
        ({"weight": 0.7}, 0.7, 0.05, "other options than the checkpoint's: weight=0.7"),
        ({"radius": 0.2, "exponent": 1}, 0.3, 0.2, "radius=0.2, exponent=1"),
        ({"method": "sum"}, 0.5, 0.1, "pairs start anew. .*method='sum'"),
    ],
)
def test_options_at_resume(options, weight, radius, message, tmp_path):
    arguments = {"method": "max", "weight": 0.5, "radius": 0.1, "num_pairs": 4, "bounds": (-9.0, 9.0)}
    task, optimizer = start("classification", bare(**arguments, input_norm=math.inf))
    train(task, optimizer, range(1))
    task.penalty.weight, task.penalty.radius = 0.3, 0.05
    path = save(tmp_path, task, optimizer)

    resumed, optimizer = start("classification", bare(**{**arguments, **options}, input_norm=math.inf))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resume_task_checkpoint(resumed, path, optimizer, log_info=False)
    assert (resumed.penalty.weight, resumed.penalty.radius) == (weight, radius)
    assert len(caught) == (message is not None)
    if message:
        with pytest.warns(UserWarning, match=message):
            warnings.warn(caught[0].message, stacklevel=1)
    train(resumed, optimizer, range(1, 2))


def test_the_averages_state_holds_no_penalty():
    task = LipschitzTask(TASKS["feature"](), strong())
    task.setup_ema(decay=0.5)
    assert set(task.get_task_state()) == {"projection", "lipschitz"}
    assert set(task.get_task_state(ema=True)) == {"projection"}


# Bad input


class NoModel(TrainingTask):
    def forward(self, input, target):
        return {"loss": input.sum().requires_grad_()}


def test_arguments_are_checked():
    task, penalty = TASKS["classification"](), strong()
    with pytest.raises(TypeError, match=r"`task` to be a timm\.task\.TrainingTask, but got ResNet"):
        LipschitzTask(task.trainable_module, penalty)
    with pytest.raises(TypeError, match="`penalty` to be a LipschitzPenalty, but got float"):
        LipschitzTask(task, 0.1)
    with pytest.raises(TypeError, match="without a penalty, but got a LipschitzTask"):
        LipschitzTask(LipschitzTask(task, penalty), penalty)


def test_a_task_without_a_model_is_refused():
    task = LipschitzTask(NoModel(), strong())
    with pytest.raises(TypeError, match=r"`get_eval_model\(\)` of LipschitzNoModel to return its model"):
        task(*batch())


class NaFlex(nn.Linear):
    def forward(self, x):
        return super().forward(x["patches"].mean(1))


def test_naflex_batches_are_refused_unless_the_weight_is_zero():
    task = LipschitzTask(ClassificationTask(NaFlex(12, CLASSES), **QUIET), strong())
    x, y = {"patches": torch.randn(6, 4, 12)}, batch()[1]
    with pytest.raises(TypeError, match="NaFlex"):
        task(x, y)
    task.penalty.weight = 0
    assert task(x, y)["penalty"] == 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_model_is_refused():
    model = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES)))
    with pytest.raises(TypeError, match="scripted"):
        LipschitzTask(ClassificationTask(model, **QUIET), strong())(*batch())


def test_pairs_that_were_gathered_earlier_are_saved_with_the_weight_of_today(monkeypatch):
    monkeypatch.setattr(_timm_task, "world_size", lambda: 2)
    task = LipschitzTask(TASKS["classification"](), bare("max", radius=0.1, num_pairs=4))
    task(*batch())["loss"].backward()
    task.update_ema()
    task.penalty.weight, task.penalty.radius = 0.5, 0.05
    state = task.get_task_state()["lipschitz"]["state"]
    assert (state["weight"], state["radius"]) == (0.5, 0.05)
