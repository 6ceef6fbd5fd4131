"""Train a text classifier with a Lipschitz penalty in embedding space, in a plain loop under Hugging Face Accelerate.

    accelerate launch examples/accelerate_text.py
    accelerate launch --config_file accelerate.yaml examples/accelerate_text.py        # made by `accelerate config`
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 examples/accelerate_text.py       # two processes without a GPU

Texts are generated lists of words, of which the first decides. ``--resume`` goes on from the last checkpoint under
``--output``.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, BertConfig

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations.accelerate import log_values, prepare_penalty

WORDS, LENGTH, CLASSES = 40, 16, 4


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="of the hub, or a folder; default: a tiny BERT that starts anew")
    add("--epochs", type=int, default=4)
    add("--batch-size", type=int, default=32, help="of each process")
    add("--lr", type=float, default=2e-3)
    add("--accumulate", type=int, default=1, help="batches per optimizer step")
    add("--penalty", choices=["max", "sum", "tv", "ptv"], default="tv")
    add("--weight", type=float, default=0.1)
    add("--radius", type=float, default=0.05, help="in the 2-norm of a text's embeddings")
    add("--output", type=Path, default=Path("out/accelerate_text"))
    add("--resume", action="store_true")
    return parser.parse_args()


def generate(count, seed):
    """Return ids, mask and labels."""
    rng = torch.Generator().manual_seed(seed)
    words = torch.stack([torch.randperm(WORDS - 1, generator=rng)[:LENGTH] + 1 for _ in range(count)])
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (count,), generator=rng)
    mask = torch.arange(LENGTH) < lengths[:, None]
    return TensorDataset(words * mask, mask.long(), words[:, 0] % CLASSES)


def create_model(name):
    if name is not None:
        return AutoModelForSequenceClassification.from_pretrained(name, num_labels=CLASSES)
    config = BertConfig(vocab_size=WORDS, num_labels=CLASSES, hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=4, intermediate_size=64, max_position_embeddings=LENGTH)  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config)


@torch.no_grad()
def accuracy(accelerator, model, loader):
    model.eval()
    hits = [accelerator.gather_for_metrics(model(ids, mask).logits.argmax(1) == y) for ids, mask, y in loader]
    return torch.cat(hits).float().mean().item()


def main():
    args = parse_arguments()
    set_seed(0)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.accumulate,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # else a resumed run shuffles anew
    )
    accelerator.print(f"{accelerator.num_processes} process(es), mixed precision: {accelerator.mixed_precision}")
    model = create_model(args.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    loader = DataLoader(generate(1600, seed=0), args.batch_size, shuffle=True)
    test_loader = DataLoader(generate(400, seed=1), 100)
    model, optimizer, loader, test_loader = accelerator.prepare(model, optimizer, loader, test_loader)
    core = accelerator.unwrap_model(model)

    def from_embeddings(embeddings, mask):
        return core(inputs_embeds=embeddings, attention_mask=mask).logits

    penalty = LipschitzPenalty(args.penalty, args.weight, radius=args.radius, input_norm=2)
    penalty = prepare_penalty(accelerator, penalty)
    start = max((int(f.name.removeprefix("epoch-")) for f in args.output.glob("epoch-*")), default=0)
    if start and not args.resume:
        raise SystemExit(f"{args.output} holds a run: add --resume, or choose another --output")
    if start:
        accelerator.load_state(args.output / f"epoch-{start}")
    for epoch in range(start, args.epochs):
        model.train()
        loader.set_epoch(epoch)
        progress = tqdm(loader, f"epoch {epoch + 1}", disable=not accelerator.is_main_process)
        for step, (ids, mask, y) in enumerate(progress):
            with accelerator.accumulate(model):
                loss = model(ids, mask, labels=y).loss
                embeddings = core.get_input_embeddings()(ids).detach()  # <- ids cannot be moved, these can
                term = penalty(from_embeddings, embeddings, model_kwargs={"mask": mask})
                accelerator.backward(loss + term)
                optimizer.step()
                optimizer.zero_grad()
            if step % 10 == 0:
                progress.set_postfix(log_values(penalty, term))
        correct = accuracy(accelerator, model, test_loader)
        accelerator.print(f"epoch {epoch + 1}: accuracy {correct:.3f}, {log_values(penalty)}")
        accelerator.save_state(args.output / f"epoch-{epoch + 1}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
