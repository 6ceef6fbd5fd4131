"""LipschitzTrainer beside hand-written loops, in float64."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("transformers")
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from torchlipreg import DiscrepancyWeight, ExponentialWeight, LipschitzPenalty, RadiusDecay, WeightWarmup
from torchlipreg.integrations.transformers import LipschitzTrainer, LipschitzTrainerMixin

SAMPLES = 10  # in batches of 4: the last one is short, and so is the last accumulation


class Net(nn.Module):
    """A classifier whose loss is the mean of its batch: Trainer divides it by the accumulated batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, pixel_values, labels=None):
        logits = self.head(torch.tanh(self.hidden(pixel_values)))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class OfItems(Net):
    """One whose loss is divided by the items of all accumulated batches."""

    def forward(self, pixel_values, labels=None, **kwargs):
        logits = self.head(torch.tanh(self.hidden(pixel_values)))
        if labels is None:
            return (logits,)
        items = kwargs.get("num_items_in_batch", len(labels))
        return F.cross_entropy(logits, labels, reduction="sum") / items, logits


class OfTokens(nn.Module):
    """A text classifier that takes token ids or their embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.table, self.head = nn.Embedding(20, 5), nn.Linear(5, 3)
        self.double()

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None):
        z = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        mask = attention_mask.to(z)[..., None]
        logits = self.head(torch.tanh(z * mask).sum(1) / mask.sum(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def images(count=SAMPLES):
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.rand(6, generator=generator, dtype=torch.float64), "labels": i % 3} for i in range(count)
    ]


def texts(count=SAMPLES, length=7):
    generator = torch.Generator().manual_seed(0)
    sizes = [3 + i % 4 for i in range(count)]
    return [
        {
            "input_ids": torch.randint(20, (length,), generator=generator),
            "attention_mask": (torch.arange(length) < size).long(),
            "labels": i % 3,
        }
        for i, size in enumerate(sizes)
    ]


def arguments(folder, kind=TrainingArguments, **options):
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(str(folder), **{**defaults, **options})


class Quiet(TrainerCallback):
    """A callback that counts what is logged."""

    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.lines.append(dict(logs))


def build(method="tv", weight=2.0, **options):
    defaults = {"radius": 0.2} if method in ("tv", "ptv") else {"num_pairs": 5}
    return LipschitzPenalty(method, weight, **{**defaults, **options})


def trainer(folder, model, data, penalty=None, kind=LipschitzTrainer, callbacks=None, **options):
    names = ("compute_loss_func", "eval_dataset", "penalty_input")
    own = {name: options.pop(name) for name in names if name in options}
    kind_of_args = Seq2SeqTrainingArguments if issubclass(kind, Seq2SeqTrainer) else TrainingArguments
    penalty = build() if penalty is None else penalty
    return kind(
        model=model,
        args=arguments(folder, kind_of_args, **options),
        train_dataset=data,
        penalty=penalty,
        callbacks=callbacks,
        **own,
    )


def batches(data, size=4):
    while True:
        for i in range(0, len(data), size):
            part = data[i : i + size]
            yield {key: torch.stack([torch.as_tensor(d[key]) for d in part]) for key in part[0]}


def updates(data, accumulate, steps):
    """The batches of each optimizer step, where an epoch's last step takes what is left."""
    per_epoch, stream = -(-len(data) // 4), batches(data)
    while True:
        for i in range(0, per_epoch, accumulate):
            yield [next(stream) for _ in range(min(accumulate, per_epoch - i))]
            if not (steps := steps - 1):
                return


def by_hand(net, data, penalty, accumulate, loss_of, steps=3, call=None):
    """The same training as a plain loop: means over the accumulated batches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for accumulated in updates(data, accumulate, steps):
        items = sum(len(b["labels"]) for b in accumulated)
        for b in accumulated:
            task = loss_of(net, b, items, len(accumulated))
            (task + call(penalty, net, b) / len(accumulated)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


def of_pixels(penalty, net, b):
    return penalty(lambda x: net(pixel_values=x), b["pixel_values"])


def of_embeddings(penalty, net, b):
    z = net.get_input_embeddings()(b["input_ids"]).detach()
    return penalty(lambda z, attention_mask: net(inputs_embeds=z, attention_mask=attention_mask), z,
                   model_kwargs={"attention_mask": b["attention_mask"]})  # fmt: skip


def logits_of(net, b):
    out = net(**{k: v for k, v in b.items() if k != "labels"})
    return out["logits"] if isinstance(out, dict) else out[0]


def mean_loss(net, b, items, count):
    return F.cross_entropy(logits_of(net, b), b["labels"]) / count


def items_loss(net, b, items, count):
    return F.cross_entropy(logits_of(net, b), b["labels"], reduction="sum") / items


def own_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return F.multi_margin_loss(logits, labels, reduction="sum") / num_items_in_batch


def margin(net, b, items, count):
    return F.multi_margin_loss(logits_of(net, b), b["labels"], reduction="sum") / items


def smoothed_mean(net, b, items, count):
    return F.cross_entropy(logits_of(net, b), b["labels"], label_smoothing=0.1) / count


def smoothed_items(net, b, items, count):
    return F.cross_entropy(logits_of(net, b), b["labels"], label_smoothing=0.1, reduction="sum") / items


CASES = {
    "mean": (Net, mean_loss, {}),
    "items": (OfItems, items_loss, {}),
    "own": (Net, margin, {"compute_loss_func": own_loss}),
    "own of items": (OfItems, margin, {"compute_loss_func": own_loss}),
    "smoothed": (Net, smoothed_mean, {"label_smoothing_factor": 0.1}),
    "smoothed of items": (OfItems, smoothed_items, {"label_smoothing_factor": 0.1}),
}


def assert_same(net, expected, tolerance=1e-12):
    for (name, p), e in zip(net.named_parameters(), expected.parameters(), strict=True):
        assert torch.allclose(p, e, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("method", ["tv", "max"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_training_equals_a_plain_loop(tmp_path, case, accumulate, method):
    kind, loss_of, options = CASES[case]
    net = kind()
    if "label_smoothing_factor" in options:
        net.config = type("Config", (), {"problem_type": None, "use_cache": None, "to_dict": dict})()
    expected = by_hand(kind(), images(), build(method), accumulate, loss_of, call=of_pixels)
    without = by_hand(kind(), images(), build(method, 0.0), accumulate, loss_of, call=of_pixels)
    trainer(tmp_path, net, images(), build(method), gradient_accumulation_steps=accumulate, **options).train()
    # Trainer's label smoother adds up in float32.
    assert_same(net, expected, 1e-6 if "label_smoothing_factor" in options else 1e-12)
    with pytest.raises(AssertionError):
        assert_same(net, without, 1e-3)


def on_halves(wrapper, **batch):
    """What DataParallel makes of a batch on two devices, whose losses it stacks."""
    parts = [wrapper.module(**{k: v[i::2] for k, v in batch.items() if torch.is_tensor(v)}) for i in (0, 1)]
    return {"loss": torch.stack([p["loss"] for p in parts]), "logits": torch.cat([p["logits"] for p in parts])}


def test_data_parallel(tmp_path, monkeypatch):
    """Two GPUs in one process: the penalty is that of the whole batch, the loss the mean of both."""

    def mean_of_halves(net, b, items, count):
        return sum(mean_loss(net, {k: v[i::2] for k, v in b.items()}, items, count) for i in (0, 1)) / 2

    monkeypatch.setattr(nn.DataParallel, "forward", on_halves)
    args = arguments(tmp_path, per_device_train_batch_size=2)
    assert args.device.type == "cpu"  # asking counts the GPUs, which the next line corrects
    args._n_gpu = 2
    t = LipschitzTrainer(model=Net(), args=args, train_dataset=images(12), penalty=build())
    t.train()
    assert isinstance(t.model_wrapped, nn.DataParallel)
    assert_same(t.model, by_hand(Net(), images(12), build(), 1, mean_of_halves, call=of_pixels))


class Line(nn.Module):
    """f(x) = w x, of which every quotient is |w|: the penalty's gradient is 2 λ s² w, however it is accumulated."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))


class LineOfMean(Line):
    def forward(self, pixel_values, labels=None):
        y = self.w * pixel_values
        return {"loss": 0 * y.mean(), "logits": y}


class LineOfItems(Line):
    def forward(self, pixel_values, labels=None, **kwargs):
        return LineOfMean.forward(self, pixel_values)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("kind", [LineOfMean, LineOfItems])
def test_the_penalty_does_not_depend_on_accumulation(tmp_path, kind, accumulate):
    data = [{"pixel_values": d["pixel_values"][:1], "labels": 0} for d in images(16)]
    size = 16 // accumulate
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate, "max_steps": 1}
    net = kind()
    trainer(tmp_path, net, data, build(weight=0.5, radius=0.2, scale=2.0), learning_rate=0.01, **options).train()
    assert abs(net.w.item() - (3 - 0.01 * 2 * 0.5 * 4 * 3)) < 1e-9


def test_a_loss_that_is_said_to_be_a_mean(tmp_path):
    class Mean(OfItems):
        def forward(self, pixel_values, labels=None, **kwargs):
            return super().forward(pixel_values, labels)

    class Saying(LipschitzTrainer):
        loss_is_scaled_for_ga = False

    net = Mean()
    expected = by_hand(Mean(), images(), build(), 2, mean_loss, call=of_pixels)
    trainer(tmp_path, net, images(), kind=Saying, gradient_accumulation_steps=2).train()
    assert_same(net, expected)


@pytest.mark.parametrize("method", ["tv", "sum"])
def test_token_ids_are_penalised_in_embedding_space(tmp_path, method, caplog):
    caplog.set_level("INFO", logger="torchlipreg")
    net = OfTokens()
    expected = by_hand(OfTokens(), texts(), build(method), 2, mean_loss, call=of_embeddings)
    trainer(tmp_path, net, texts(), build(method), gradient_accumulation_steps=2).train()
    assert_same(net, expected)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("torchlipreg")]
    assert said == ["The penalty moves inputs_embeds of token ids: radius and norms are those of embeddings."]


def test_inputs_embeds_and_a_named_input(tmp_path):
    class Named(Net):
        def forward(self, spectrum, noise, labels=None):
            return super().forward(spectrum + noise, labels)

    noise = torch.full((6,), 0.1, dtype=torch.float64)
    data = [{"spectrum": d["pixel_values"], "noise": noise, "labels": d["labels"]} for d in images()]
    with pytest.raises(ValueError, match=r"spectrum and noise.*guessed.*`penalty_input"):
        trainer(tmp_path, Named(), data).train()
    net = Named()
    trainer(tmp_path, net, data, penalty_input="spectrum").train()
    expected = by_hand(
        Named(), data, build(), 1, mean_loss,
        call=lambda p, net, b: p(lambda x, noise: net(x, noise), b["spectrum"], model_kwargs={"noise": b["noise"]}),
    )  # fmt: skip
    assert_same(net, expected)


def test_evaluation_adds_nothing_and_moves_nothing(tmp_path):
    net, penalty = Net(), build("max")
    t = trainer(tmp_path, net, images(), penalty, eval_dataset=images(6), per_device_eval_batch_size=6)
    t.train()
    before, calls = penalty.pairs.x_prime.clone(), penalty.state_dict()["calls"]
    found = t.evaluate(), t.predict(images(6)).metrics
    t.args.prediction_loss_only = True
    found = *found, t.evaluate()
    b = next(batches(images(6), 6))
    loss = F.cross_entropy(logits_of(net, b), b["labels"]).item()
    assert [m.get("eval_loss", m.get("test_loss")) for m in found] == pytest.approx([loss] * 3)
    assert torch.equal(penalty.pairs.x_prime, before)
    assert penalty.state_dict()["calls"] == calls
    net.eval()
    assert t.compute_loss(net, dict(b)).item() == pytest.approx(loss)


def test_compute_loss_returns_the_outputs_of_the_task(tmp_path):
    net = Net()
    t = trainer(tmp_path, net, images())
    b = next(batches(images()))
    loss, outputs = t.compute_loss(net.train(), dict(b), return_outputs=True)
    expected = mean_loss(net, b, 4, 1) + of_pixels(build(), net, b)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.equal(outputs["logits"], logits_of(net, b))
    assert t.penalty.reuses_outputs


@pytest.mark.parametrize("kind", [Net, OfItems])
def test_logs(tmp_path, kind):
    seen, penalty = Quiet(), build()
    t = trainer(tmp_path, kind(), images(32), penalty, callbacks=[seen], max_steps=6, logging_steps=3,
                gradient_accumulation_steps=2, eval_dataset=images(6), eval_strategy="steps", eval_steps=2)  # fmt: skip
    terms = []
    plain = type(penalty).__call__

    def noted(self, *args, **kwargs):
        terms.append((term := plain(self, *args, **kwargs)).item())
        return term

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LipschitzPenalty, "__call__", noted)
        t.train()
    steps = [line for line in seen.lines if "loss" in line]
    assert len(steps) == 2
    assert steps[0]["penalty"] == pytest.approx(sum(terms[:6]) / 6)
    assert steps[1]["penalty"] == pytest.approx(sum(terms[6:]) / 6)
    assert steps[1]["lipschitz"] == penalty.estimate.item()
    assert steps[1]["penalty_share"] == penalty.share
    assert all(type(v) in (int, float) for line in steps for v in line.values())
    assert all("penalty" not in line for line in seen.lines if "loss" not in line)
    assert [line["penalty"] for line in t.state.log_history if "loss" in line] == [line["penalty"] for line in steps]


def dropping_bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def test_weight_zero_trains_as_the_trainer_does_and_the_penalty_draws_no_number(tmp_path):
    plain, zero, penalised = dropping_bert(), dropping_bert(), dropping_bert()
    args = arguments(tmp_path)
    Trainer(model=plain, args=args, train_dataset=texts()).train()
    after = torch.get_rng_state()
    trainer(tmp_path, zero, texts(), build(weight=0.0)).train()
    assert_same(zero, plain, 0.0)
    trainer(tmp_path, penalised, texts(), build()).train()
    assert torch.equal(torch.get_rng_state(), after)
    with pytest.raises(AssertionError):
        assert_same(penalised, plain, 1e-6)


TEXT_MODELS = {
    "Bert": {},
    "Roberta": {},
    "Esm": {"mask_token_id": 2, "token_dropout": True, "position_embedding_type": "absolute"},
    "Llama": {},
    "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "OPT": {"ffn_dim": 16, "word_embed_proj_dim": 16},
}


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_model_that_reads_its_ids_elsewhere_is_the_same_function(tmp_path, name, padding):
    """Which token is pooled, which places count, how dropout of tokens is scaled: by the ids, not the embeddings."""
    torch.manual_seed(0)
    small = {"vocab_size": 60, "pad_token_id": 1, "num_labels": 3, "hidden_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    config = getattr(transformers, f"{name}Config")(**small | TEXT_MODELS[name])
    net = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    ids, lengths = torch.randint(5, 50, (4, 8)), torch.tensor([8, 6, 5, 3])
    mask = torch.ones_like(ids) if padding == "none" else (torch.arange(8) < lengths[:, None]).long()
    mask = mask.flip(1) if padding == "left" else mask
    batch = {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask, "labels": torch.zeros(4).long()}
    t = trainer(tmp_path, net, [{"input_ids": ids[0]}], build(radius=0.05, input_norm=2))
    t._in_step = True
    loss, out = t.compute_loss(net, dict(batch), return_outputs=True)
    table = net.get_input_embeddings()

    def f(z, **rows):
        hook = table.register_forward_hook(lambda module, args, found: z)
        try:
            return net(**rows).logits
        finally:
            hook.remove()

    z = table(batch.pop("input_ids")).detach().requires_grad_()
    rows = {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}
    expected = build(radius=0.05, input_norm=2)(f, z, model_kwargs=rows)
    torch.testing.assert_close(loss - out.loss, expected, rtol=1e-3, atol=1e-6)
    parameters = [p for p in net.parameters() if p.requires_grad]
    got, wanted = (
        torch.cat([g.flatten() for g in torch.autograd.grad(v, parameters, materialize_grads=True, allow_unused=True)])
        for v in (loss - out.loss, expected)
    )
    assert (got - wanted).norm() <= 1e-3 * wanted.norm()


class Prepares(Trainer):
    """Normalises what the batch holds, by position, and keeps a column for itself."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(None, inputs["pixel_values"] / 8, labels=inputs["labels"])
        loss = out["loss"] * inputs["importance"].mean()
        return (loss, out) if return_outputs else loss


class PreparesPenalised(LipschitzTrainerMixin, Prepares):
    pass


class ByPosition(Net):
    def forward(self, unused=None, pixel_values=None, labels=None, **kwargs):
        assert "importance" not in kwargs
        return super().forward(pixel_values=pixel_values, labels=labels)


def test_what_the_model_was_called_with_is_penalised(tmp_path):
    data = [{**row, "importance": 1.0} for row in images()]
    penalty, net = build(), ByPosition()
    t = trainer(tmp_path, net, data, penalty, kind=PreparesPenalised, max_steps=1, learning_rate=0.0,
                remove_unused_columns=False)  # fmt: skip
    t.train()
    x = next(batches(images()))["pixel_values"] / 8
    torch.testing.assert_close(penalty.value.cpu(), build()(lambda z: Net.forward(net, pixel_values=z), x).detach())


def term_of(tmp_path, net, batch, penalty, **options):
    """The penalty that a Trainer adds to the loss of a batch."""
    t = trainer(tmp_path, net, [{"input_ids": batch["input_ids"][0]}], penalty, **options)
    t._in_step = True
    loss, out = t.compute_loss(net, dict(batch), return_outputs=True)
    return loss - (out["loss"] if isinstance(out, dict) else out.loss)


@pytest.mark.parametrize("tokens", [4, 8])  # of four texts
def test_a_model_that_turns_its_ids_round(tmp_path, tokens):
    torch.manual_seed(0)
    small = {"vocab_size": 60, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    config = transformers.XLNetConfig(**small, num_labels=3, pad_token_id=1)
    net = transformers.XLNetForSequenceClassification(config).eval()
    batch = {"input_ids": torch.randint(5, 50, (4, tokens)), "labels": torch.tensor([0, 1, 2, 0])}
    options = {"radius": 0.5, "input_norm": 2}
    z = net.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    expected = build(**options)(lambda z: net(inputs_embeds=z).logits, z)
    torch.testing.assert_close(term_of(tmp_path, net, batch, build(**options)), expected, rtol=1e-3, atol=1e-6)


def test_several_texts_in_each_row(tmp_path):
    config = dropping_bert().config
    net = transformers.BertForMultipleChoice(config).eval()
    ids = torch.randint(5, 20, (4, 3, 6))
    batch = {"input_ids": ids, "labels": torch.tensor([0, 1, 2, 0])}
    z = net.get_input_embeddings()(ids).detach().requires_grad_()
    expected = build(input_norm=2)(lambda z: net(inputs_embeds=z).logits, z)
    torch.testing.assert_close(term_of(tmp_path, net, batch, build(input_norm=2)), expected, rtol=1e-3, atol=1e-6)


def test_checkpoints_in_the_limit(tmp_path):
    """transformers' hook that lets embeddings require a gradient is none for torch.func."""
    net = dropping_bert().eval()
    net.enable_input_require_grads()
    ids = torch.randint(5, 20, (4, 6))
    batch = {"input_ids": ids, "labels": torch.tensor([0, 1, 2, 0])}
    expected = build(radius=0.0)(lambda z: net(inputs_embeds=z).logits, net.get_input_embeddings()(ids).detach())
    torch.testing.assert_close(term_of(tmp_path, net, batch, build(radius=0.0)), expected, rtol=1e-3, atol=1e-6)


def test_a_hook_that_prepares_the_input_is_applied_once(tmp_path):
    net, seen = Net(), []
    net.register_forward_pre_hook(
        lambda m, args, kw: (args, {**kw, "pixel_values": kw["pixel_values"] / 8}), with_kwargs=True
    )
    net.hidden.register_forward_pre_hook(lambda m, args: seen.append(args[0].abs().max().item()))
    trainer(tmp_path, net, images(), build(), max_steps=1, learning_rate=0.0).train()
    assert max(seen) < 1.5 * seen[0]
    assert min(seen) > seen[0] / 1.5


class Twice(Trainer):
    """Two calls, of which the first one's outputs are returned."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(**inputs)
        aside = model(pixel_values=inputs["pixel_values"][:2] + 1, labels=inputs["labels"][:2])
        return (out["loss"] + aside["loss"], out) if return_outputs else out["loss"] + aside["loss"]


class TwicePenalised(LipschitzTrainerMixin, Twice):
    pass


def test_of_two_calls_that_counts_whose_outputs_are_returned(tmp_path):
    penalty, net = build(), Net()
    trainer(tmp_path, net, images(), penalty, kind=TwicePenalised, max_steps=1, learning_rate=0.0).train()
    x = next(batches(images()))["pixel_values"]
    expected = build()(lambda z: net(pixel_values=z), x).detach()
    torch.testing.assert_close(penalty.value, expected)


class WithoutLabels(Net):
    """Returns a tuple, with None for the loss where there are no labels."""

    def forward(self, pixel_values, labels=None):
        out = super().forward(pixel_values, labels)
        return out.get("loss"), out["logits"]


def test_an_output_picked_of_a_tuple(tmp_path):
    penalty, net = build(output=lambda returned: returned[1]), WithoutLabels()
    trainer(tmp_path, net, images(), penalty, max_steps=1, learning_rate=0.0).train()
    x = next(batches(images()))["pixel_values"]
    expected = build()(lambda z: net(z)[1], x).detach()
    torch.testing.assert_close(penalty.value, expected)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_hooks_on_the_embeddings_are_called_as_often_as_without(tmp_path, weight):
    def count(kind, **options):
        net, calls = OfTokens(), []
        net.table.register_forward_hook(lambda module, args, found: calls.append(len(args[0])))
        kind(model=net, args=arguments(tmp_path), train_dataset=texts(), **options).train()
        return calls

    assert count(LipschitzTrainer, penalty=build(weight=weight)) == count(Trainer)


def test_a_transformers_model_sees_what_it_sees_as_ids(tmp_path):
    """BERT in float64 without dropout: the gradient of the penalty alone, beside that of a plain call."""
    net = dropping_bert().double().eval()
    t = trainer(tmp_path, net, texts())
    b = next(batches(texts()))
    b["token_type_ids"] = torch.ones_like(b["input_ids"])
    z = net.get_input_embeddings()(b["input_ids"]).detach()
    rows = {"attention_mask": b["attention_mask"], "token_type_ids": b["token_type_ids"]}
    value = build()(lambda z, **rows: net(inputs_embeds=z, **rows).logits, z, model_kwargs=rows)
    expected = torch.autograd.grad(value, list(net.parameters()), allow_unused=True, materialize_grads=True)
    net.train()
    for m in net.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    loss, outputs = t.compute_loss(net, dict(b), return_outputs=True)
    penalty = loss - outputs.loss
    assert penalty.item() == pytest.approx(value.item(), rel=1e-12)
    got = torch.autograd.grad(penalty, list(net.parameters()), allow_unused=True, materialize_grads=True)
    for (name, _), g, e in zip(net.named_parameters(), got, expected, strict=True):
        assert torch.allclose(g, e, rtol=1e-9, atol=1e-13), name


def vit():
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_channels=1, num_labels=3, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return ViTForImageClassification(config), {"pixel_values": torch.rand(4, 1, 8, 8), "labels": torch.arange(4) % 3}


def wav2vec2():
    config = Wav2Vec2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=[4, 4],
        conv_stride=[4, 4], conv_kernel=[8, 4], num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=4, num_labels=3, mask_time_prob=0.0,
    )  # fmt: skip
    mask = torch.arange(400).expand(4, -1) < torch.tensor([400, 300, 200, 400])[:, None]
    batch = {"input_values": torch.randn(4, 400), "attention_mask": mask.long(), "labels": torch.arange(4) % 3}
    return Wav2Vec2ForSequenceClassification(config), batch


def whisper():
    config = WhisperConfig(
        vocab_size=20, num_mel_bins=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, max_source_positions=10,
        max_target_positions=10, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
        begin_suppress_tokens=None,
    )  # fmt: skip
    batch = {"input_features": torch.randn(4, 4, 20), "labels": torch.randint(20, (4, 5))}
    return WhisperForConditionalGeneration(config), batch


@pytest.mark.parametrize("make", [vit, wav2vec2, whisper])
def test_pictures_and_sounds(tmp_path, make):
    torch.manual_seed(0)
    net, b = make()
    net.double()
    b = {key: v.double() if v.is_floating_point() else v for key, v in b.items()}
    name, rows = next(iter(b)), {key: v for key, v in b.items() if key == "attention_mask"}
    if net.config.is_encoder_decoder:
        rows["decoder_input_ids"] = shift_tokens_right(b["labels"], 0, 3)
    expected = build()(lambda x, **rows: net(**{name: x}, **rows).logits, b[name], model_kwargs=rows)
    t = trainer(tmp_path, net, [])
    loss, outputs = t.compute_loss(net.train(), dict(b), return_outputs=True)
    assert (loss - outputs.loss).item() == pytest.approx(expected.item(), rel=1e-9)


def test_noise_on_embeddings_is_the_tasks_alone(tmp_path):
    after = []
    for kind, options in ((Trainer, {}), (LipschitzTrainer, {"penalty": build()})):
        args = arguments(tmp_path, neftune_noise_alpha=5.0)
        kind(model=dropping_bert(), args=args, train_dataset=texts(), **options).train()
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


def collate_shortest(rows):
    length = max(int(r["attention_mask"].sum()) for r in rows)
    return {
        "input_ids": torch.stack([r["input_ids"][:length] for r in rows]),
        "attention_mask": torch.stack([r["attention_mask"][:length] for r in rows]),
        "labels": torch.tensor([r["labels"] for r in rows]),
    }


def test_texts_of_different_lengths(tmp_path):
    t = trainer(tmp_path, dropping_bert(), texts(), train_sampling_strategy="group_by_length", max_steps=4)
    t.data_collator = collate_shortest
    t.train()
    assert t.state.log_history[-2]["penalty"] > 0
    t = trainer(tmp_path, dropping_bert(), texts(), build("max"), per_device_train_batch_size=2, max_steps=4)
    t.data_collator = collate_shortest
    with pytest.raises(ValueError, match='padding="max_length"'):
        t.train()


@pytest.mark.skipif(
    not hasattr(TrainingArguments, "activation_checkpointing"), reason="this transformers has no such argument"
)
def test_activation_checkpointing_changes_no_number(tmp_path):
    plain, saving = dropping_bert().double(), dropping_bert().double()
    for net, on in ((plain, False), (saving, True)):
        trainer(tmp_path, net, texts(), activation_checkpointing=on).train()
    assert_same(saving, plain)


def test_bf16_autocast(tmp_path):
    net = dropping_bert()
    penalty, exact, start = build(), build(), copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, net, texts(), penalty, bf16=True, max_steps=1).train()
    of_embeddings(exact, start, next(batches(texts())))
    assert penalty.estimate.item() == pytest.approx(exact.estimate.item(), rel=1e-4)
    assert net.classifier.weight.dtype == torch.float32


def test_a_subclass_of_another_trainer(tmp_path):
    class My(LipschitzTrainerMixin, Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0,
                      dropout_rate=0.0)  # fmt: skip
    net = T5ForConditionalGeneration(config).double()
    data = [{**d, "labels": d["input_ids"][:4]} for d in texts()]
    t = trainer(tmp_path, net, data, kind=My, eval_dataset=data)
    t.train()
    assert "penalty" in t.state.log_history[0]
    b = next(batches(data))
    expected = build()(
        lambda z, **rows: net(inputs_embeds=z, **rows).logits,
        net.get_input_embeddings()(b["input_ids"]).detach(),
        model_kwargs={
            "attention_mask": b["attention_mask"],
            "decoder_input_ids": net.prepare_decoder_input_ids_from_labels(labels=b["labels"]),
        },
    )
    other = trainer(tmp_path, net.train(), data, kind=My)
    loss = other.compute_loss(net, dict(b))
    with torch.no_grad():
        task = other.compute_loss(net, dict(b))
    assert (loss - task).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_adapters(tmp_path, task):
    peft = pytest.importorskip("peft")
    base = dropping_bert()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = peft.get_peft_model(base, peft.LoraConfig(task_type=task, r=2, target_modules=["query", "value"]))
    net.double()
    before = {n: p.clone() for n, p in net.named_parameters()}
    t = trainer(tmp_path, net, texts())
    b = next(batches(texts()))
    expected = of_embeddings(build(), net, b)
    loss, outputs = t.compute_loss(net.train(), dict(b), return_outputs=True)
    assert (loss - outputs.loss).item() == pytest.approx(expected.item(), rel=1e-9)
    t.train()
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in net.named_parameters() if p.requires_grad}


@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize("radius", [0.2, 0.0])
def test_torch_compile(tmp_path, radius):
    net = Net()
    expected = by_hand(Net(), images(), build(radius=radius), 1, mean_loss, call=of_pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(
            tmp_path, net, images(), build(radius=radius), torch_compile=True, torch_compile_backend="eager"
        ).train()
    assert_same(net, expected, 1e-9)


def saving(folder, method="max", steps=6, **options):
    options = {"save_strategy": "steps", "save_steps": 2, "train_sampling_strategy": "random", **options}
    net = dropping_bert()
    return net, trainer(folder, net, texts(12), build(method), max_steps=steps, optim="adamw_torch", **options)


@pytest.mark.parametrize("method", ["max", "tv"])
def test_resumed_equals_uninterrupted(tmp_path, method):
    whole, t = saving(tmp_path, method)
    t.train()
    resumed, t = saving(tmp_path / "other", method)
    t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed, whole, 0.0)

    (tmp_path / "checkpoint-2" / "lipschitz_penalty_0.bin").unlink()
    without, t = saving(tmp_path / "third", method)
    with pytest.warns(UserWarning, match="no penalty in .*checkpoint-2: its pairs start anew"):
        t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(AssertionError):
        assert_same(without, whole, 0.0)


def accuracy_of(p):
    return {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())}


class Noted(DiscrepancyWeight):
    """One that keeps what it was told."""

    def step(self, accuracy):
        self.told = (*getattr(self, "told", ()), accuracy)
        super().step(accuracy)


def scheduled(folder, kind=LipschitzTrainer, net=None, accuracy="accuracy", **options):
    """12 images in batches of 4: three steps an epoch, three epochs, with all kinds of schedules."""
    penalty = build(radius=0.3)
    schedules = [
        RadiusDecay(penalty, 0.5), WeightWarmup(penalty, 5), ExponentialWeight(penalty, 0.8), Noted(penalty, 0.5, 0.1)
    ]  # fmt: skip
    defaults = {"num_train_epochs": 3, "max_steps": -1, "eval_strategy": "epoch", "save_strategy": "epoch"}
    args = arguments(folder, **{**defaults, "train_sampling_strategy": "random", "optim": "adamw_torch", **options})
    return kind(
        model=net or Net(), args=args, train_dataset=images(12), eval_dataset=images(5), compute_metrics=accuracy_of,
        penalty=penalty, schedules=schedules, accuracy=accuracy,
    )  # fmt: skip


def test_schedules_step_as_a_loop_steps_them(tmp_path):
    t = scheduled(tmp_path, accuracy="eval_accuracy")
    seen, step = [], t.training_step

    def noted(*args):
        seen.append((t.penalty.weight, t.penalty.radius))
        return step(*args)

    t.training_step = noted
    t.train()
    told = [line["eval_accuracy"] for line in t.state.log_history if "eval_accuracy" in line]
    assert t._stepped.schedules[3].told == tuple(told)
    assert len(told) == 3

    by_hand, expected = build(radius=0.3), []
    radius, warmup, falling, discrepancy = (
        RadiusDecay(by_hand, 0.5), WeightWarmup(by_hand, 5), ExponentialWeight(by_hand, 0.8),
        DiscrepancyWeight(by_hand, 0.5, 0.1),
    )  # fmt: skip
    for accuracy in told:
        for _ in range(3):
            expected.append((by_hand.weight, by_hand.radius))
            warmup.step()
        radius.step()
        falling.step()
        discrepancy.step(accuracy)
    assert seen == expected
    assert (t.penalty.weight, t.penalty.radius) == (by_hand.weight, by_hand.radius)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_the_log_says_what_the_last_step_took(tmp_path, strategy):
    """As it was, weight and radius were those that schedules had set for the next one."""
    penalty, used = build(radius=0.3), []
    t = LipschitzTrainer(
        model=Net(),
        args=arguments(tmp_path, num_train_epochs=3, max_steps=-1, logging_strategy=strategy),
        train_dataset=images(12),
        penalty=penalty,
        schedules=[RadiusDecay(penalty, 0.5), WeightWarmup(penalty, 9)],
    )
    penalised = t._penalty_at

    def noted(*args):
        used.append((penalty.weight, penalty.radius))
        return penalised(*args)

    t._penalty_at = noted
    t.train()
    lines = [line for line in t.state.log_history if "loss" in line]
    assert len(lines) == {"steps": 9, "epoch": 3}[strategy]
    for line in lines:
        assert (line["lipschitz_weight"], line["lipschitz_radius"]) == used[line["step"] - 1]


def test_a_model_that_cannot_run_without_labels_gets_them(tmp_path):
    class Demanding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, pixel_values, labels):
            return self.net(pixel_values=pixel_values, labels=labels)

    weights = []
    for model in (Net(), Demanding()):
        torch.manual_seed(0)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        t = LipschitzTrainer(
            model=model, args=arguments(tmp_path, max_steps=3), train_dataset=images(12), penalty=build(radius=1.0)
        )
        t.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_passes_over_a_stream_count_as_epochs_when_resumed(tmp_path):
    """Trainer counts them from 0 again, and the first is empty: as it was, three more of them changed nothing."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(images(12))

    def run(folder, resume=None, **saving):
        penalty, radii = build(radius=1.0), []
        saving = saving or {"save_strategy": "steps", "save_steps": 8}
        t = LipschitzTrainer(
            model=Net(),
            args=arguments(folder, max_steps=12, **saving),
            train_dataset=Stream(),
            penalty=penalty,
            schedules=[RadiusDecay(penalty, 0.5)],
            callbacks=[Noting(radii, penalty)],
        )
        t.train(resume_from_checkpoint=resume)
        return radii

    class Noting(TrainerCallback):
        def __init__(self, radii, penalty):
            self.radii, self.penalty = radii, penalty

        def on_step_begin(self, *args, **kwargs):
            self.radii.append(self.penalty.radius)

    assert run(tmp_path) == [1.0] * 3 + [0.5] * 3 + [0.25] * 3 + [0.125] * 3
    with pytest.warns(UserWarning, match=r"do not count the pass that the checkpoint was saved in.*\"epoch\""):
        resumed = run(tmp_path / "other", str(tmp_path / "checkpoint-8"))
    assert resumed == [0.25] * 3 + [0.125]  # Trainer begins the stream anew
    whole = tmp_path / "whole"
    run(whole, save_strategy="epoch")
    resumed = run(tmp_path / "another", str(whole / "checkpoint-6"), save_strategy="epoch")
    assert resumed == [0.25] * 3 + [0.125] * 3


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("epoch", {}),
        ("within", {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}),
        # The Trainer saves before the end of the epoch, which the resumed run never sees.
        ("last step", {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}),
    ],
)
def test_schedules_resume_bit_by_bit(tmp_path, strategy, options):
    whole = scheduled(tmp_path, **options)
    whole.train()
    saved = tmp_path / ("checkpoint-4" if strategy == "within" else "checkpoint-3")
    resumed = scheduled(tmp_path / "other", **options)
    resumed.train(resume_from_checkpoint=str(saved))
    assert_same(resumed.model, whole.model, 0.0)
    assert (resumed.penalty.weight, resumed.penalty.radius) == (whole.penalty.weight, whole.penalty.radius)
    assert resumed._stepped.state_dict() == whole._stepped.state_dict()

    (saved / "lipschitz_schedules.bin").unlink()
    without = scheduled(tmp_path / "third", **options)
    with pytest.warns(UserWarning, match="no schedules in .*checkpoint-[34]: they start anew"):
        without.train(resume_from_checkpoint=str(saved))
    with pytest.raises(AssertionError):
        assert_same(without.model, whole.model, 0.0)


def test_a_warmup_that_starts_anew_ends_at_the_weight(tmp_path):
    """As it was, the checkpoint's weight was taken for a tenth of it."""

    def make(**schedules):
        args = arguments(tmp_path, num_train_epochs=2, max_steps=-1, save_strategy="epoch")
        return LipschitzTrainer(model=Net(), args=args, train_dataset=images(12), penalty=penalty, **schedules)

    penalty = build(weight=0.3)
    make().train()
    penalty = build(weight=0.2)
    resumed = make(schedules=[WeightWarmup(penalty, 2)])
    with pytest.warns(UserWarning, match="they start anew"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert penalty.weight == 0.2


def test_an_evaluation_that_a_resumed_run_leaves_out_is_told(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3}  # evaluated after each epoch, saved before
    scheduled(tmp_path, **options).train()
    resumed = scheduled(tmp_path, **options)
    with pytest.warns(UserWarning, match="does not evaluate the epoch .* goes on without its accuracy") as told:
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(told) == 1
    assert len(resumed._stepped.schedules[3].told) == 2


def test_a_run_that_stops_within_an_epoch_goes_on_with_its_schedules(tmp_path):
    """The epoch that ``max_steps`` breaks off has not ended."""
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    whole = scheduled(tmp_path / "whole", max_steps=8, **options)
    whole.train()
    first = scheduled(tmp_path / "parts", max_steps=4, **options)
    first.train()
    assert first.penalty.radius == 0.3 * 0.5
    second = scheduled(tmp_path / "parts", max_steps=8, **options)
    second.train(resume_from_checkpoint=True)
    assert_same(second.model, whole.model, 0.0)
    assert second._stepped.state_dict() == whole._stepped.state_dict()


def test_an_evaluation_before_or_after_training_steps_nothing(tmp_path):
    t = scheduled(tmp_path, eval_on_start=True)
    t.evaluate()
    t.train()
    weight = t.penalty.weight
    t.evaluate()
    t.predict(images(5))
    assert t.penalty.weight == weight
    assert len(t._stepped.schedules[3].told) == 3


def test_schedules_that_cannot_be_stepped(tmp_path):
    with pytest.raises(ValueError, match=r"`accuracy`.*'top1', and there are eval_loss.*eval_accuracy"):
        scheduled(tmp_path, accuracy="top1").train()
    with pytest.raises(ValueError, match="`accuracy` to be the name"):
        scheduled(tmp_path, accuracy=None)
    with pytest.raises(ValueError, match="eval_strategy"):  # else it would never be stepped
        scheduled(tmp_path, eval_strategy="no")
    with pytest.raises(ValueError, match=r"`schedules`.*another penalty's"):
        LipschitzTrainer(model=Net(), args=arguments(tmp_path), penalty=build(), schedules=RadiusDecay(build()))


def test_a_model_made_anew_gets_a_penalty_that_starts_anew(tmp_path):
    """As a hyperparameter search trains: trials do not see each other's pairs and schedules, but the user's weight."""
    penalty = build("max", radius=0.2)
    args, schedules = arguments(tmp_path, max_steps=5), [RadiusDecay(penalty, 0.5)]
    t = LipschitzTrainer(
        model_init=Net, args=args, train_dataset=images(), penalty=penalty, schedules=schedules
    )  # fmt: skip
    t.train()
    first = t.model
    t.train()
    assert_same(t.model, first, 0.0)
    assert penalty.radius == 0.1
    penalty.weight = 3.0
    t.train()
    assert penalty.weight == 3.0
    with pytest.raises(AssertionError):
        assert_same(t.model, first, 1e-6)


@pytest.mark.parametrize("schedule", [lambda p: WeightWarmup(p, 2), lambda p: ExponentialWeight(p, 0.5)])
def test_a_weight_that_a_schedule_takes_back_is_told(tmp_path, schedule):
    penalty = build()
    schedules = [schedule(penalty)]
    t = LipschitzTrainer(
        model_init=Net, args=arguments(tmp_path), train_dataset=images(), penalty=penalty, schedules=schedules
    )
    for _ in range(2):  # a warning would be an error
        t.train()
    penalty.weight = 5.0
    with pytest.warns(UserWarning, match="was set to 5, but its schedules start again"):
        t.train()


def test_rotation_and_the_best_model(tmp_path):
    options = {"save_total_limit": 1, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    _, t = saving(tmp_path, eval_dataset=texts(4), **options)
    t.train()
    kept = sorted(tmp_path.glob("checkpoint-*"))
    assert len(kept) == 1
    assert (kept[0] / "lipschitz_penalty_0.bin").exists()
    best = json.loads((kept[0] / "trainer_state.json").read_text())["best_model_checkpoint"]
    assert best == str(kept[0])
    assert t.evaluate()["eval_loss"] == pytest.approx(t.state.best_metric, rel=1e-6)


def test_the_state_of_another_kind_is_named(tmp_path):
    saving(tmp_path, steps=2)[1].train()
    _, other = saving(tmp_path, "tv")
    with pytest.raises(ValueError, match=r"method='tv', but got 'max'.*lipschitz_penalty_0\.bin: without it"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_model_alone_is_saved_without_the_penalty(tmp_path):
    _, t = saving(tmp_path, steps=2, save_only_model=True)
    t.train()
    assert not list((tmp_path / "checkpoint-2").glob("lipschitz*"))


def test_a_loss_that_leaves_the_penalty_out(tmp_path):
    class Forgetful(LipschitzTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            out = model(**inputs)
            return (out["loss"], out) if return_outputs else out["loss"]

    with pytest.raises(RuntimeError, match=r"`compute_loss` of Forgetful has to call super\(\)"):
        trainer(tmp_path, Net(), images(), kind=Forgetful).train()


def test_a_loss_of_ones_own_that_never_returns_outputs(tmp_path):
    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs)["loss"]

    class Penalised(LipschitzTrainerMixin, Own):
        pass

    net = Net()
    expected = by_hand(Net(), images(), build(), 1, mean_loss, call=of_pixels)
    trainer(tmp_path, net, images(), build(), kind=Penalised).train()
    assert_same(net, expected)


class LooksUpElsewhere(OfTokens):
    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None):
        z = torch.nn.functional.embedding(input_ids, self.table.weight)
        return super().forward(None, attention_mask, z, labels=labels)


class NoTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = OfTokens()

    def forward(self, input_ids, attention_mask, labels=None):
        return self.inner(input_ids, attention_mask, labels=labels)


class Scaled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids), 1.0


class OfScaled(OfTokens):
    def __init__(self):
        super().__init__()
        self.table = Scaled(20, 5).double()

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None):
        return super().forward(None, attention_mask, self.table(input_ids)[0], labels=labels)


class NoModule(OfTokens):
    def get_input_embeddings(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "data", "name", "error", "message"),
    [
        (LooksUpElsewhere, texts(), None, ValueError, "`model` to look its token ids up"),
        (NoTable, texts(), None, ValueError, "a method `get_input_embeddings`.*NoTable lacks it"),
        (OfScaled, texts(), None, ValueError, "a table of embeddings that returns a tensor.*OfScaled returns a tuple"),
        (NoModule, texts(), None, ValueError, "a method `get_input_embeddings`.*NoModule lacks it"),
        (Net, images(), "pixels", ValueError, r"`penalty_input`.*'pixels'.*pixel_values \(torch.float64\)"),
        (OfTokens, texts(), "attention_mask", TypeError, "`penalty_input`.*'attention_mask' is torch.int64"),
    ],
)
def test_batches_that_cannot_be_penalised(tmp_path, kind, data, name, error, message):
    with pytest.raises(error, match=message):
        trainer(tmp_path, kind(), data, penalty_input=name).train()


def test_a_dataset_without_a_tensor(tmp_path):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, counts, labels=None):
            return {"loss": (self.w * counts.float()).mean(), "logits": self.w * counts}

    data = [{"counts": torch.arange(3), "labels": 0} for _ in range(4)]
    with pytest.raises(ValueError, match=r"`train_dataset` to hold one tensor.*only counts \(torch.int64\)"):
        trainer(tmp_path, Counts(), data).train()


def test_bad_arguments(tmp_path):
    with pytest.raises(TypeError, match="`penalty` to be a LipschitzPenalty, but got float"):
        trainer(tmp_path, Net(), images(), 0.1)
    with pytest.raises(TypeError, match="`penalty_input` to be a name, but got int"):
        trainer(tmp_path, Net(), images(), penalty_input=3)
    with pytest.raises(TypeError, match="'penalty'"):
        LipschitzTrainer(model=Net(), args=arguments(tmp_path), train_dataset=images())


def test_deepspeed_is_refused(tmp_path):
    def with_deepspeed(self):
        Trainer.create_accelerator_and_postprocess(self)
        self.is_deepspeed_enabled = True

    class Speedy(LipschitzTrainer):
        create_accelerator_and_postprocess = with_deepspeed

    with pytest.raises(ValueError, match="`args` to train without DeepSpeed"):
        trainer(tmp_path, Net(), images(), kind=Speedy)
