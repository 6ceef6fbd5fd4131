"""The README: its blocks run, its table is the published one, what it names exists, and it stays short."""

import re
from pathlib import Path

import pages
import pytest
import torch

from examples.experiments.cifar.experiment import SCALES
from examples.experiments.common.pages import contents_of, filled, marked
from examples.experiments.common.results import PUBLISHED, read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = pages.blocks(README)


@pytest.fixture(scope="module")
def process_group():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def namespace(tmp_path_factory, process_group):
    """What a user's script has, with the frameworks' own objects."""
    accelerate = pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    lightning = pytest.importorskip("lightning")
    folder = tmp_path_factory.mktemp("readme")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    image = {"pixel_values": torch.rand(3, 8, 8), "labels": 1}
    # Before the accelerator, whose state they would reset.
    args = transformers.TrainingArguments(str(folder), max_steps=1, use_cpu=True, report_to="none")
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    return pages.what_a_script_has(folder) | {
        "vit": transformers.ViTForImageClassification(config),
        "args": args,
        "accelerator": accelerate.Accelerator(cpu=True),
        "dataset": [image] * 8,
        "Trainer": lambda **options: lightning.Trainer(**options, **quiet),
    }


@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::UserWarning:lightning")
def test_block_runs(namespace, number):
    exec(compile(BLOCKS[number][0], f"README block {number}", "exec"), namespace)


def test_ten_seconds_shows_a_smoother_model(namespace):
    code, shown = next(block for block in BLOCKS if "load_digits" in block[0])
    found = [float(line.split()[-1]) for line in pages.run(code, dict(namespace), "ten seconds").splitlines()]
    assert found == pytest.approx([float(line.split()[-1]) for line in shown.splitlines()], rel=0.3)
    assert found[1] < 0.7 * found[0]


def test_the_table_is_the_published_one():
    experiment = SCALES["cores"]
    contents = contents_of(experiment, read(PUBLISHED, f"{experiment.name}_robustness"))
    places = {match[1] for match in marked(experiment.name).findall(README)}
    assert places == {"conv_brief", "made"}
    message = "run `python -m examples.experiments.cifar --page README.md`"
    assert filled(README, experiment.name, contents) == README, message


def test_make_targets_exist():
    targets = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)`", README))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert len(links) > 15
    assert missing == []


def test_it_can_be_read_at_one_sitting():
    assert len(README.splitlines()) <= 200
