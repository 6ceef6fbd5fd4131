"""What the official example scripts do, in a small form, with the Trainer replaced and nothing else."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations.transformers import LipschitzTrainer

WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(18))]


@dataclass
class ScriptArguments:
    task: str = field(default="image")
    max_train_samples: int | None = field(default=None)


def image_task():
    torch.manual_seed(0)
    rows = [{"image": torch.rand(1, 16, 16) + i % 3, "label": i % 3} for i in range(22)]

    def collate(examples):
        pixels = torch.stack([e["image"] for e in examples])
        return {"pixel_values": pixels, "labels": torch.tensor([e["label"] for e in examples])}

    config = ResNetConfig(num_channels=1, num_labels=3, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1],
                          layer_type="basic")  # fmt: skip
    return ResNetForImageClassification(config), rows, collate, None


def text_task():
    generator = torch.Generator().manual_seed(0)
    backend = Tokenizer(models.WordLevel(dict(zip(WORDS, range(len(WORDS)), strict=True)), unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    rows = []
    for i in range(22):
        ids = torch.randint(2, 20, (3 + i % 5,), generator=generator)
        rows.append({**tokenizer(" ".join(WORDS[j] for j in ids)), "label": int(ids.sum()) % 3})
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                        max_position_embeddings=16, num_labels=3)  # fmt: skip
    return BertForSequenceClassification(config), rows, DataCollatorWithPadding(tokenizer), tokenizer


def main(trainer_class, *line):
    """As run_image_classification.py and run_glue.py go."""
    script, args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses(list(line))
    set_seed(args.seed)
    model, rows, collate, tokenizer = {"image": image_task, "text": text_task}[script.task]()
    train = rows[: script.max_train_samples]
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=train if args.do_train else None,
        eval_dataset=rows[::2] if args.do_eval else None,
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())},
        processing_class=tokenizer,
        data_collator=collate,
    )
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if args.do_eval:
        trainer.save_metrics("eval", trainer.evaluate())
    return trainer


def penalised(method="tv", weight=1.0):
    radius = {"radius": 0.1} if method == "tv" else {"num_pairs": 4}
    return functools.partial(LipschitzTrainer, penalty=LipschitzPenalty(method, weight, **radius))


def line(folder, task, *more):
    return [
        *("--task", task, "--output_dir", str(folder), "--do_train", "--do_eval", "--num_train_epochs", "3"),
        *("--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "8", "--learning_rate", "1e-2"),
        *("--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end", "True"),
        *("--metric_for_best_model", "accuracy", "--logging_steps", "2", "--report_to", "none", "--use_cpu", "True"),
        *("--dataloader_pin_memory", "False", "--disable_tqdm", "True", "--remove_unused_columns", "False"),
        *(("--train_sampling_strategy", "group_by_length") if task == "text" else ()),
        *more,
    ]


def found(folder):
    metrics = json.loads((folder / "eval_results.json").read_text())
    return {name: value for name, value in metrics.items() if "second" not in name and "time" not in name}


def weights(trainer):
    return trainer.model.state_dict()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("task", ["image", "text"])
def test_weight_zero_is_the_plain_run(tmp_path, task):
    plain = main(Trainer, *line(tmp_path / "plain", task))
    zero = main(penalised(weight=0.0), *line(tmp_path / "zero", task))
    assert same(weights(zero), weights(plain))
    assert found(tmp_path / "zero") == found(tmp_path / "plain")
    assert zero.state.best_metric == plain.state.best_metric
    # Without drop_last a last batch of two counts.
    ours = main(penalised(), *line(tmp_path / "ours", task))
    assert ours.state.global_step == plain.state.global_step == 18
    assert not same(weights(ours), weights(plain))


@pytest.mark.parametrize(("task", "method"), [("image", "max"), pytest.param("text", "tv", marks=pytest.mark.slow)])
def test_a_resumed_script_ends_as_the_uninterrupted(tmp_path, task, method):
    whole = main(penalised(method), *line(tmp_path / "whole", task))
    saved = tmp_path / "whole" / "checkpoint-6"
    resumed = main(penalised(method), *line(tmp_path / "parts", task, "--resume_from_checkpoint", str(saved)))
    assert same(weights(resumed), weights(whole))
    ours, theirs = found(tmp_path / "parts"), found(tmp_path / "whole")
    assert ours["eval_accuracy"] == theirs["eval_accuracy"]
    assert ours["eval_loss"] == theirs["eval_loss"]


def test_evaluation_alone_needs_no_training(tmp_path):
    arguments = [a for a in line(tmp_path, "image") if a != "--do_train"]
    t = main(penalised(), *arguments)
    assert t.penalty.pairs is None
    assert "eval_accuracy" in found(tmp_path)
