"""The launcher around a double of timm's train.py: in this process, and on two processes under torchrun."""

import inspect
import logging
import math
import os
import pickle
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm.task
import timm.utils
import torch
from PIL import Image
from scripts import output_once_spared
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations import _timm_launcher as timm_launcher
from torchlipreg.integrations._timm_data import DataConfig, _of_channels
from torchlipreg.integrations._timm_options import parse
from torchlipreg.integrations._timm_schedules import Schedules
from torchlipreg.integrations.timm import main
from torchlipreg.outputs import smallest_margins

SCRIPT = str(Path(__file__).with_name("train_like.py"))
LAUNCH = ["-m", "torchlipreg.integrations.timm"]
RAW = ["--lip-normalization", "0", "1"]
STRONG = ["--lip-method", "max", "--lip-weight", "10", "--lip-num-pairs", "4"]
TIMEOUT = 150  # seconds; a run takes about ten
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm's ImageFolder leaves them open


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    root, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("validation", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (40, 40, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def arguments(images, tmp_path):
    return ["--data-dir", str(images), "--output", str(tmp_path / "run")]


@pytest.fixture(autouse=True)
def logging_as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def plain(monkeypatch):
    def run(*script_arguments):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *script_arguments])
        runpy.run_path(SCRIPT, run_name="__main__")

    return run


def torchrun(*command):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def once():
        process = subprocess.run(run, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)
        return process.returncode, process.stderr

    return output_once_spared(once)


def checkpoint(directory, name="last"):
    return torch.load(Path(directory) / f"{name}.pth.tar", weights_only=False)


def same(a, b):
    return all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])


def saved_penalty(state):
    return state["task_state"]["lipschitz"]["state"]


# The command line


def test_every_option_of_the_constructor_has_its_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--lip-help"])
    shown = capsys.readouterr().out
    for name in inspect.signature(LipschitzPenalty).parameters:
        line = re.search(rf"^  --lip-{name.replace('_', '-')}\b.*\n?.*", shown, re.MULTILINE)
        assert line, name
        assert len(line[0].split()) > 4, f"{name} is not described"


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--lip-method", "ptv", "--lip-weight=3e-2"], {"method": "ptv", "weight": 0.03}),
        (["--lip-input-norm", "inf", "--lip-exponent", "1"], {"input_norm": math.inf, "exponent": 1}),
        (["--lip-bounds", "-2.1", "2.6", "--no-lip-anchored"], {"bounds": [-2.1, 2.6], "anchored": False}),
        (["--lip-num-pairs", "8", "--lip-radius", "0", "--lip-seed", "3"], {"num_pairs": 8, "radius": 0, "seed": 3}),
        *(
            (["--lip-bounds", low, high], {"bounds": [number, 10]})
            for low, high, number in (
                ("-1/2", "10", -0.5),
                ("-1e-1", "1e1", -0.1),
                ("-.5", "10.", -0.5),
                ("-1E+0/4", "10", -0.25),
                ("-inf", "10", -math.inf),
            )
        ),
        *(
            (["--lip-normalization", mean, "1,1/4,1"], {"normalization": [tuple(numbers), (1, 0.25, 1)]})
            for mean, numbers in (("-0.5,0,0", (-0.5, 0, 0)), ("-1/2,-1e-1,0", (-0.5, -0.1, 0)))
        ),
        (["--lip-output", "operator:itemgetter"], {"output": __import__("operator").itemgetter}),
        (
            ["--lip-choose", "torchlipreg.outputs:smallest_margins", "--lip-num-pairs", "8"],
            {"choose": smallest_margins, "num_pairs": 8},
        ),
    ],
)
def test_options_reach_the_constructor_and_the_rest_the_script(flags, options):
    theirs = ["--opt-betas", "-0.9", "1", "-b", "4", "-c", "x.yaml", "--mdoel=a b", "--help", "--", "--data", "-1"]
    theirs = ["--scale", "-1/2", "-1,0", "-1x", "-i", *theirs]
    for line in ([SCRIPT, *flags, *theirs], [*flags, SCRIPT, *theirs]):
        assert parse(line)[:3] == (SCRIPT, theirs, options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([SCRIPT, "--lip-wieght", "1"], "unrecognized option --lip-wieght. Did you mean --lip-weight?"),
        ([SCRIPT, "--lip-weigh=1"], "unrecognized option --lip-weigh."),
        ([SCRIPT, "--no-lip-anchor"], "Did you mean --no-lip-anchored?"),
        ([SCRIPT, "--lip-weight", "-1"], "`weight`"),
        ([SCRIPT, "--lip-method", "tvv"], "--lip-method: invalid choice"),
        ([SCRIPT, "--lip-exponent", "1.5"], "--lip-exponent: invalid int value"),
        ([SCRIPT, "--lip-step-size", "1"], "`step_size`"),
        ([SCRIPT, "--lip-output", "no.such:thing"], "package.module:name"),
        (["--lip-weight", "1"], "expected a training script"),
        (["nowhere/train.py"], "no such training script: nowhere/train.py"),
    ],
)
def test_mistakes_end_before_the_script_starts(line, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(line)
    assert message in capsys.readouterr().err


def test_help_and_typos_reach_the_script(capsys):
    with pytest.raises(SystemExit, match="0"):
        main([SCRIPT, "--help"])
    assert "A small double of train.py" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([SCRIPT, "--lrr", "1", "--lip-weight", "0"])
    assert "unrecognized arguments: --lrr" in capsys.readouterr().err


@pytest.mark.distributed
def test_as_a_module(images, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"data_dir: {images}\noutput: {tmp_path}/from_config\nepochs: 1\n")
    command = [sys.executable, *LAUNCH, SCRIPT, "-c", str(config), "--lip-weight", "0.1"]
    subprocess.run(command, check=True, timeout=TIMEOUT, capture_output=True, cwd=tmp_path)
    assert saved_penalty(checkpoint(tmp_path / "from_config"))["calls"] == 4


# A run in one process


def test_weight_zero_is_the_plain_run_bit_for_bit(plain, images, tmp_path):
    options = ["--data-dir", str(images), "--mixup", "0.3", "--cutmix", "1", "--model-ema", "--drop-path", "0.2"]
    plain(*options, "--output", str(tmp_path / "plain"))
    main([SCRIPT, *options, "--output", str(tmp_path / "zero"), "--lip-weight", "0"])
    main([SCRIPT, *options, "--output", str(tmp_path / "strong"), *STRONG])
    expected, zero, strong = (checkpoint(tmp_path / name) for name in ("plain", "zero", "strong"))
    assert same(zero, expected)
    assert not same(strong, expected)
    assert (tmp_path / "zero/summary.csv").read_text() == (tmp_path / "plain/summary.csv").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--amp", "--channels-last", "--clip-grad", "1", "--grad-accum-steps", "2"],
        ["--kd-distill-type", "logit", "--model", "test_vit", "--img-size", "160"],
        ["--kd-distill-type", "feature", "--img-size", "160"],
    ],
)
def test_the_scripts_options_work_with_a_penalty(options, arguments, tmp_path):
    main([SCRIPT, *arguments, *options, "--lip-weight", "1"])
    assert saved_penalty(checkpoint(tmp_path / "run"))["calls"] == 4


def test_logged_at_the_scripts_interval_and_once_per_epoch(arguments, caplog):
    caplog.set_level(logging.INFO)
    main([SCRIPT, *arguments, *STRONG, "--epochs", "2", "--log-interval", "3"])
    lines = [record.getMessage() for record in caplog.records if record.name == "train"]
    number = r"\d\S*"
    step = rf"Train: \d \[   [03]/4\]  Loss: {number}  Penalty: {number} \({number}\)  Lipschitz: {number}"
    step += rf"(  Share: {number})?"
    summary = rf"Penalty: \d  Mean: {number}  Largest Lipschitz estimate: {number}"
    assert len(lines) == 6
    for line, pattern in zip(lines, [step, step, summary] * 2, strict=True):
        assert re.fullmatch(pattern, line), line


def test_resuming_between_plain_and_penalised_runs(plain, arguments, tmp_path):
    last = ["--resume", str(tmp_path / "run/last.pth.tar")]
    plain(*arguments, "--model-ema")
    with pytest.warns(UserWarning, match="holds no penalty") as caught:
        main([SCRIPT, *arguments, *last, "--model-ema", "--epochs", "2", *STRONG])
    assert sum(warning.category is UserWarning for warning in caught) == 1
    assert saved_penalty(checkpoint(tmp_path / "run"))["calls"] == 4
    main([SCRIPT, *arguments, *last, "--model-ema", "--epochs", "3", *STRONG])
    assert saved_penalty(checkpoint(tmp_path / "run"))["calls"] == 8
    plain(*arguments, *last, "--model-ema", "--epochs", "4")
    assert checkpoint(tmp_path / "run")["epoch"] == 3


# Scripts of all kinds


def script(directory, text):
    path = directory / "script.py"
    path.write_text(text)
    return str(path)


SUBCLASSES = """
import sys, torch
import neighbour
from timm.task import ClassificationTask, MultiLabelClassificationTask, TrainingTask
from timm.task.classification import ClassificationTask as same

class Mine(ClassificationTask):
    def __init__(self, model):
        super().__init__(model, torch.nn.CrossEntropyLoss(), verbose=False)

class Own(TrainingTask):
    def __init__(self, model):
        super().__init__()
        self.trainable_module = model
    def forward(self, input, target):
        output = self.trainable_module(input)
        return {"loss": output.square().mean(), "output": output}

assert same is ClassificationTask and __name__ == "__main__" and sys.argv[1:] == ["--x"]
model = torch.nn.Linear(3, 2)
multi = MultiLabelClassificationTask(model, verbose=False)
assert isinstance(multi, ClassificationTask) and isinstance(multi, TrainingTask) and not isinstance(multi, Mine)
for task, target in ((Mine(model), torch.zeros(4).long()), (Own(model), None), (multi, torch.zeros(4, 2))):
    assert task(torch.randn(4, 3), target)["penalty"] > 0, task
sys.exit()
"""


def test_subclasses_and_isinstance_checks_of_the_script_hold(tmp_path):
    (tmp_path / "neighbour.py").write_text("")
    names = dict(vars(timm.task)), timm.utils.update_summary, list(sys.argv), list(sys.path)
    main([script(tmp_path, SUBCLASSES), "--x", *RAW])
    assert names == (dict(vars(timm.task)), timm.utils.update_summary, sys.argv, sys.path)


def test_a_script_without_a_task_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"script\.py never built a timm task, so it trained without a penalty"):
        main([script(tmp_path, "print('training')")])


def test_a_script_that_does_not_use_its_task_is_warned_of(tmp_path):
    text = "import torch, timm.task\ntimm.task.ClassificationTask(torch.nn.Linear(2, 2), verbose=False)"
    with pytest.warns(UserWarning, match="trained no step through it"):
        main([script(tmp_path, text), *RAW])


def test_the_scripts_own_exit_code_and_errors_pass(tmp_path):
    with pytest.raises(SystemExit, match="3"):
        main([script(tmp_path, "raise SystemExit(3)")])
    with pytest.raises(ZeroDivisionError):
        main([script(tmp_path, "1 / 0")])


# Two processes; the script itself asserts that the ranks end with equal weights


@pytest.fixture(scope="module")
def two_epochs(images, tmp_path_factory):
    """Return the directory and the log of a run on two processes, its arguments, and the command without output."""
    output = tmp_path_factory.mktemp("two") / "run"
    command = [*LAUNCH, SCRIPT, "--data-dir", str(images), "--no-aug", "--epochs", "2", "--model-ema", *STRONG]
    log = torchrun(*command, "--output", str(output), "--recovery-interval", "1")
    return output, log, command


@pytest.mark.distributed
def test_two_processes_save_both_ranks_pairs_and_log_once(two_epochs):
    output, log, _ = two_epochs
    for name, calls in (("last", 4), ("checkpoint-0", 2)):
        state = saved_penalty(checkpoint(output, name))
        assert state["calls"] == calls
        first, second = (rank["pairs"]["x"] for rank in state["ranks"])
        assert first.shape == second.shape == (4, 3, 32, 32)
        assert not torch.equal(first, second)
    assert len(saved_penalty(checkpoint(output, "recovery-1-1"))["ranks"]) == 2
    assert len(re.findall(r"^Train: .*  Penalty: .*  Lipschitz: ", log, re.MULTILINE)) == 4
    assert len(re.findall(r"^Penalty: ", log, re.MULTILINE)) == 2


@pytest.mark.distributed
def test_two_processes_resume_bit_for_bit(two_epochs, tmp_path):
    output, _, command = two_epochs
    torchrun(*command, "--output", str(tmp_path), "--resume", str(output / "checkpoint-0.pth.tar"))
    resumed, uninterrupted = checkpoint(tmp_path), checkpoint(output)
    assert same(resumed, uninterrupted)
    for a, b in zip(saved_penalty(resumed)["ranks"], saved_penalty(uninterrupted)["ranks"], strict=True):
        assert torch.equal(a["pairs"]["x"], b["pairs"]["x"])


@pytest.mark.distributed
def test_one_process_goes_on_with_the_pairs_of_two(two_epochs, tmp_path):
    output, _, command = two_epochs
    main([*command[2:], "--epochs", "3", "--output", str(tmp_path), "--resume", str(output / "last.pth.tar")])
    (only,) = saved_penalty(checkpoint(tmp_path))["ranks"]
    assert only["pairs"]["x"].shape == (8, 3, 32, 32)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.compiler
def test_weight_zero_is_the_plain_run_on_two_processes(images, tmp_path):
    command = [SCRIPT, "--data-dir", str(images), "--torchcompile", "eager", "--grad-accum-steps", "2", "--model-ema"]
    torchrun(*command, "--output", str(tmp_path / "plain"), "--no-device-ids")
    torchrun(*LAUNCH, *command, "--output", str(tmp_path / "zero"), "--lip-weight", "0")
    assert same(checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "zero"))


# Raw units, fractions and schedules


def made(arguments, *flags, script_arguments=()):
    """Return the penalty that the launcher made, after its run."""
    tasks = []
    original = timm_launcher.Meter.update

    def update(self, task, penalty, lipschitz):
        tasks.append(task)
        original(self, task, penalty, lipschitz)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_launcher.Meter, "update", update)
        main([SCRIPT, *arguments, *script_arguments, *flags])
    return tasks[-1]


def test_mean_and_std_are_the_loaders_and_a_fraction_is_a_number(arguments):
    penalty = made(arguments, "--lip-radius", "4/255").penalty
    assert penalty.settings.normalization == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert penalty.radius == penalty.settings.scale == 4 / 255
    largest = (penalty.pairs.x_prime - penalty.pairs.x).abs().max().item()
    assert largest == pytest.approx(4 / 255 / min(IMAGENET_DEFAULT_STD), rel=1e-3)


def test_mean_and_std_of_the_data_configuration(tmp_path):
    """As in train.py, which resolves it from its arguments and the model's, before it builds the task."""
    text = (
        "import torch, timm, timm.task\n"
        "from timm.data import resolve_data_config\n"
        "model = timm.create_model('test_vit', num_classes=2)\n"
        "resolve_data_config({'mean': [0.1, 0.2, 0.3], 'std': [0.4]}, model=model)\n"
        "task = timm.task.ClassificationTask(model, verbose=False)\n"
        "task(torch.randn(2, 3, 160, 160), torch.tensor([0, 1]))['loss'].backward()\n"
        "assert task.penalty.settings.normalization == ((0.1, 0.2, 0.3), (0.4, 0.4, 0.4))\n"
    )
    main([script(tmp_path, text)])


def test_a_normalisation_that_is_given_goes_first(arguments):
    penalty = made(arguments, "--lip-normalization", "0.5,0.4,0.3", "1/4").penalty
    assert penalty.settings.normalization == ((0.5, 0.4, 0.3), (0.25, 0.25, 0.25))


def test_warmup_counts_optimizer_steps_and_decay_epochs(arguments, tmp_path):
    flags = [
        "--lip-weight",
        "0.8",
        "--lip-weight-warmup",
        "4",
        "--lip-radius-decay",
        "0.5",
        "--lip-weight-gamma",
        "0.5",
    ]
    task = made(arguments, *flags, script_arguments=["--epochs", "3", "--grad-accum-steps", "2"])
    # Two updates an epoch: the warm-up ends with the second; the weight was halved after the first, and the second.
    assert task.penalty.weight == pytest.approx(0.8 / 4)
    assert task.penalty.radius == pytest.approx(8 / 255 / 4)
    assert task.penalty.settings.scale == 8 / 255


def test_schedules_resume(arguments, tmp_path):
    flags = ["--lip-weight", "0.8", "--lip-weight-warmup", "9", "--lip-radius", "0.1", "--lip-radius-decay", "0.5"]
    whole = made(arguments, *flags, script_arguments=["--epochs", "2"])
    rest = [*arguments[:-1], str(tmp_path / "parts")]
    made(rest, *flags, script_arguments=["--epochs", "1"])
    resumed = made(rest, *flags, script_arguments=["--epochs", "2", "--resume", str(tmp_path / "parts/last.pth.tar")])
    assert resumed.penalty.weight == whole.penalty.weight
    assert resumed.penalty.radius == whole.penalty.radius


@pytest.mark.parametrize("interval", [1, 2, 9])
def test_an_epoch_ends_without_a_validation_too(arguments, tmp_path, interval):
    """As it was, schedules of epochs stepped once per validation: half as often, or never."""
    flags = ["--lip-weight", "0.8", "--lip-weight-gamma", "0.5", "--lip-radius", "0.1", "--lip-radius-decay", "0.5"]
    epochs, rest = ["--val-interval", str(interval), "--epochs"], [*arguments[:-1], str(tmp_path / "parts")]
    made(rest, *flags, script_arguments=[*epochs, "2"])
    resumed = ["--resume", str(tmp_path / "parts/last.pth.tar")]
    for task in (
        made(arguments, *flags, script_arguments=[*epochs, "3"]),
        made(rest, *flags, script_arguments=[*epochs, "3", *resumed]),
    ):
        assert task.penalty.weight == pytest.approx(0.8 / 4)
        assert task.penalty.radius == pytest.approx(0.1 / 4)


WARMUP = ["--lip-weight-warmup", "4"]


@pytest.mark.parametrize(
    ("before", "after", "weight", "told"),
    [
        (["0.05"], ["0.5", *WARMUP], 0.5, True),
        (["0"], ["0.7", *WARMUP], 0.7, True),
        (["0.5", *WARMUP], ["0.05"], 0.05, True),
        (["0.5", *WARMUP], ["0.5"], 0.5, False),
        (["0.5", "--lip-weight-warmup", "99"], ["0.5"], 0.5, False),
        (["0.5", *WARMUP], ["0.9", *WARMUP], 0.9, True),
        (["0.5", *WARMUP, "--lip-radius", "0.1"], ["0.5", *WARMUP, "--lip-radius", "0.2"], 0.5, True),
        (["0.5", "--lip-weight-warmup", "99"], ["0.5", "--lip-method", "max", "--lip-num-pairs", "4"], 0.5, False),
        (["0.5", "--lip-weight-gamma", "0.5"], ["0.4", "--lip-weight-gamma", "0.5"], 0.4, True),
    ],
)
def test_a_resumed_run_comes_to_the_weight_that_was_asked_for(arguments, tmp_path, before, after, weight, told):
    """As it was, a tenth of it was taken for what was asked."""
    main([SCRIPT, *arguments, "--epochs", "1", "--lip-weight", *before])
    rest = [*arguments[:-1], str(tmp_path / "rest"), "--resume", str(Path(arguments[-1], "last.pth.tar"))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = made(rest, "--lip-weight", *after, script_arguments=["--epochs", "2"])
    assert task.penalty.weight == pytest.approx(weight)
    messages = [str(w.message) for w in caught if "other options" in str(w.message)]
    assert bool(messages) == told
    assert all(f"weight={weight}" in message for message in messages if before[0] != after[0])


@pytest.mark.parametrize(
    ("size", "mean"), [(32, [0.1, 0.2, 0.3]), ((32, 32), [0.1, 0.2, 0.3]), ((1, 32, 32), [0.2]), ((3, 8, 8), None)]
)
def test_means_are_as_many_as_channels(size, mean):
    assert _of_channels((0.1, 0.2, 0.3), size) == pytest.approx(mean or [0.1, 0.2, 0.3])


def test_a_loader_that_is_followed_is_counted_once_an_epoch_and_can_be_pickled():
    data, told = DataConfig(), []
    data.when_an_epoch_begins.append(lambda: told.append(1))
    loader = torch.utils.data.DataLoader(list(range(4)), batch_size=2)
    data._follow(loader)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
    assert len(told) == 1
    again = pickle.loads(pickle.dumps(loader))
    assert type(again) is torch.utils.data.DataLoader
    assert [batch.tolist() for batch in again] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("loader_tells", [True, False])
def test_epochs_are_those_of_the_loader_if_it_tells(loader_tells):
    """Else a validation ends one; a validation before any training ends none."""
    penalty = LipschitzPenalty(weight=1.0)
    schedules = Schedules(penalty, {"weight_gamma": [0.5]})
    schedules.after_validation({"top1": 3.0})
    for _ in range(3):
        if loader_tells:
            schedules.before_epoch()
        for _ in range(2):
            schedules.before_training()
            schedules.after_validation({"top1": 3.0})
    assert penalty.weight == (0.5**2 if loader_tells else 0.5**5)


def test_images_of_one_channel_are_normalised_as_the_prefetcher_does(arguments):
    task = made(arguments, script_arguments=["--in-chans", "1", "--prefetcher"])
    mean, std = task.penalty.settings.normalization
    assert mean == pytest.approx((sum(IMAGENET_DEFAULT_MEAN) / 3,))
    assert std == pytest.approx((sum(IMAGENET_DEFAULT_STD) / 3,))


def test_a_discrepancy_without_an_accuracy_is_refused():
    schedules = Schedules(LipschitzPenalty(weight=0.1), {"discrepancy": [0.9, 0.01]})
    with pytest.raises(ValueError, match="--lip-discrepancy, but this task measures map, f1"):
        schedules.after_validation({"map": 0.5, "f1": 0.4})


def test_the_discrepancy_principle_hears_the_validation_accuracy(arguments):
    task = made(arguments, "--lip-weight", "0.1", "--lip-discrepancy", "0", "0.05", script_arguments=["--epochs", "2"])
    assert task.penalty.weight == pytest.approx(0.15)  # any accuracy above 0 raises it


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lip-weight-warmup", "0"], "`steps`"),
        (["--lip-weight-gamma", "-1"], "`gamma`"),
        (["--lip-radius", "8/0"], "--lip-radius"),
        (["--lip-radius", "8/x"], "--lip-radius"),
        (["--lip-normalization", "0.5", "0"], "`normalization`"),
    ],
)
def test_mistakes_in_numbers_end_before_the_script_starts(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([SCRIPT, *flags])
    assert message in capsys.readouterr().err
