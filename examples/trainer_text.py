"""Train a text classifier with a Lipschitz penalty in embedding space through transformers' Trainer.

    python examples/trainer_text.py                                                    # generated reviews
    python examples/trainer_text.py --data FOLDER --model_name_or_path bert-base-uncased --max_length 128
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 examples/trainer_text.py          # two processes without a GPU

FOLDER holds train.tsv and val.tsv, a line for each text: its label's number, a tab, the text. Arguments are those of
transformers' TrainingArguments and the few below. A run that was killed goes on from the last checkpoint.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations.transformers import LipschitzTrainer

NOUNS = "plot cast music ending pace dialogue story hero villain camera".split()
GOOD, BAD = "brilliant warm gripping honest clever".split(), "dull cold clumsy tired empty".split()
WORDS = ["[PAD]", "the", "was", "is", "not", "and", "but", *NOUNS, *GOOD, *BAD]


@dataclass
class ScriptArguments:
    data: str | None = field(default=None, metadata={"help": "folder with train.tsv and val.tsv; else generated"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "else a tiny BERT that starts anew"})
    max_length: int = 16
    penalty: str = field(default="tv", metadata={"help": "none, max, sum, tv or ptv"})
    weight: float = 0.1
    radius: float = field(default=0.05, metadata={"help": "in the 2-norm of a text's embeddings"})


def generate(count, seed):
    """Return (label, text) of reviews that like two of their three subjects, or do not: "not dull" is praise."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        likes = [rng.random() < 0.5 for _ in range(3)]
        clauses = []
        for like in likes:
            negated = rng.random() < 0.3
            words = ["the", rng.choice(NOUNS), rng.choice(["was", "is"]), *(["not"] if negated else [])]
            clauses.append(" ".join([*words, rng.choice(GOOD if like != negated else BAD)]))
        rows.append((int(sum(likes) >= 2), f" {rng.choice(['and', 'but'])} ".join(clauses)))
    return rows


def read(path):
    return [(int(label), text) for label, text in (line.split("\t", 1) for line in path.read_text().splitlines())]


def by_words(texts, length):
    """The simplest tokenizer: the number of each word, padded to one length, as persistent pairs need it."""
    rows = [[WORDS.index(word) for word in text.split()][:length] for text in texts]
    return {
        "input_ids": [row + [0] * (length - len(row)) for row in rows],
        "attention_mask": [[1] * len(row) + [0] * (length - len(row)) for row in rows],
    }


def encode(rows, args):
    labels, texts = zip(*rows, strict=True)
    if args.model_name_or_path is None:
        columns = by_words(texts, args.max_length)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
        columns = tokenizer(list(texts), padding="max_length", truncation=True, max_length=args.max_length)
    rows = zip(*columns.values(), labels, strict=True)
    return [dict(zip([*columns, "labels"], row, strict=True)) for row in rows]


def create_model(args, classes):
    if args.model_name_or_path is not None:
        return AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path, num_labels=classes)
    config = BertConfig(
        vocab_size=len(WORDS), num_labels=classes, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=args.max_length,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config)


def main():
    parser = HfArgumentParser((ScriptArguments, TrainingArguments), description=__doc__)
    parser.set_defaults(
        output_dir="out/trainer_text", num_train_epochs=4, per_device_train_batch_size=32, learning_rate=2e-3,
        logging_steps=10, eval_strategy="epoch", save_strategy="epoch", report_to="none",
    )  # fmt: skip
    args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    train = generate(1600, seed=0) if args.data is None else read(Path(args.data, "train.tsv"))
    val = generate(400, seed=1) if args.data is None else read(Path(args.data, "val.tsv"))

    method, weight = ("tv", 0.0) if args.penalty == "none" else (args.penalty, args.weight)
    penalty = LipschitzPenalty(method, weight, radius=args.radius, input_norm=2)
    trainer = LipschitzTrainer(
        model=create_model(args, classes=1 + max(label for label, _ in train)),
        args=training_args,
        train_dataset=encode(train, args),
        eval_dataset=encode(val, args),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
        penalty=penalty,  # <- the added argument: it moves the embeddings of the tokens
    )
    last = get_last_checkpoint(training_args.output_dir) if Path(training_args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint or last)
    trainer.save_model()
    trainer.log_metrics("eval", {**trainer.evaluate(), "lipschitz": penalty.estimate.item()})


if __name__ == "__main__":
    main()
