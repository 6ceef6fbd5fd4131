"""What a Trainer's penalty penalises: one tensor of the batch, and how the model takes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations._calls import Call
from torchlipreg.integrations._token_ids import IDS, call_by_name, of_ids
from torchlipreg.model.parts.modules import compiled_module, unwrap

FLOATING = ("pixel_values", "input_features", "input_values", "inputs_embeds")
NO_INPUT = ("labels", "label", "label_ids", "num_items_in_batch", "return_loss", "shift_labels")


class Penalised(NamedTuple):
    """The arguments of a penalty's call.

    Attributes:
        name: By which the model takes the tensor.
        f: From the tensor to the model's output, with the model inside for the library to find.
        x: The tensor, shape (N, *).
        model_kwargs: What else the model takes.
    """

    name: str
    f: Callable[..., Any]
    x: Tensor
    model_kwargs: dict[str, Any]


def penalised(model: nn.Module, call: Call, name: str | None, labels: list[str], *, eager: bool) -> Penalised:
    """Return what to hand to a penalty for a Trainer's batch.

    Args:
        model: As the Trainer calls it, wrappers included.
        call: Of it, by the task.
        name: Of the tensor to penalise, None to find it.
        labels: Names of the Trainer's labels.
        eager: Step around ``torch.compile``.

    Returns:
        The arguments. Token ids stay, as the model may read them elsewhere, and what it looks up for them is moved.

    Raises:
        TypeError: If the tensor cannot be moved.
        ValueError: If there is none, or more than one, or the model takes no embeddings.
    """
    core = unwrap(model)
    plain = plain_model(core)
    inputs = call.kwargs
    rest = {key: value for key, value in inputs.items() if key not in NO_INPUT and key not in labels}
    if _decodes_labels(plain, inputs):
        rest["labels"] = inputs["labels"]
    name = _find(rest) if name is None else name
    x = _tensor(rest, name)
    demanded = _demanded(type(plain))  # type: ignore[arg-type]
    rest |= {key: inputs[key] for key in labels if key in inputs and key in demanded}
    core = (compiled_module(core) or core) if eager or name == IDS else core  # graphs run no hooks
    if name == IDS:
        return Penalised(*of_ids(core, plain, x, call, rest))
    del rest[name]
    if not x.is_floating_point():
        raise TypeError(
            f"Expected argument `penalty_input` to name a floating tensor, but {name!r} is {x.dtype}. Name another of "
            f"{sorted(rest)}, or embed it and give the model the embeddings."
        )
    return Penalised(name, partial(call_by_name, core, name), x, rest)


def plain_model(model: Any) -> Any:
    """Return the model without the wrappers of data parallelism, the compiler and PEFT."""
    model = unwrap(model)
    model = compiled_module(model) or model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def without_loss(outputs: Any) -> Any:
    """Return what the model would have returned without labels, for the penalty to look at."""
    if isinstance(outputs, Mapping):
        kept = {key: value for key, value in outputs.items() if key != "loss"}
        return kept if type(outputs) is dict else type(outputs)(**kept)
    holds_loss = isinstance(outputs, tuple) and outputs and isinstance(outputs[0], Tensor) and outputs[0].dim() == 0
    return outputs[1:] if holds_loss else outputs


def _find(inputs: dict[str, Any]) -> str:
    named = [name for name in (*FLOATING, IDS) if isinstance(inputs.get(name), Tensor)]
    found = named or [name for name, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
    if len(found) == 1:
        return found[0]
    problem = f"{' and '.join(found)}, and it cannot be guessed which" if found else f"only {_described(inputs)}"
    raise ValueError(
        f"Expected the batches of `train_dataset` to hold one tensor to penalise ({', '.join((*FLOATING, IDS))}, or a "
        f"floating one), but got {problem}. Name it: `penalty_input=...`."
    )


def _described(inputs: dict[str, Any]) -> str:
    tensors = {name: v.dtype if isinstance(v, Tensor) else type(v).__name__ for name, v in inputs.items()}
    return ", ".join(f"{name} ({kind})" for name, kind in tensors.items()) or "labels"


def _tensor(inputs: dict[str, Any], name: str) -> Tensor:
    x = inputs.get(name)
    if not isinstance(x, Tensor):
        raise ValueError(
            f"Expected argument `penalty_input` to name a tensor in the batches of `train_dataset`, but got {name!r}, "
            f"and the batch holds {_described(inputs)}."
        )
    return x


def _decodes_labels(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Say whether a model makes its decoder's input of the labels, and so needs them to run."""
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return encodes and "labels" in inputs and not {"decoder_input_ids", "decoder_inputs_embeds"} & set(inputs)


@lru_cache(maxsize=16)  # asked in each step
def _demanded(kind: type[nn.Module]) -> frozenset[str]:
    """Return what a model's forward takes and has no default for."""
    arguments = inspect.signature(kind.forward).parameters.values()
    return frozenset(argument.name for argument in arguments if argument.default is argument.empty)


def check_shape(penalty: LipschitzPenalty, x: Tensor) -> None:
    """Raise ValueError where a batch has another shape than the pairs that a penalty keeps."""
    pairs = penalty.pairs
    if penalty.settings.persistent and pairs is not None and pairs.x.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"Expected batches of one shape, because the penalty keeps its pairs, but got {tuple(x.shape[1:])} after "
            f'{tuple(pairs.x.shape[1:])}. Pad texts to one length, `padding="max_length"`, or use the method "tv".'
        )
