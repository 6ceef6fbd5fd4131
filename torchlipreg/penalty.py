"""LipschitzPenalty: the one stateful object, which wires the rooms together. Long: half documents its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchlipreg.call.settings import Settings
from torchlipreg.call.state import STATE_VERSION, PenaltyState
from torchlipreg.call.step import Step
from torchlipreg.checks import check_number, check_points, check_rows
from torchlipreg.distributed import world_size
from torchlipreg.geometry.pairs import PairSet
from torchlipreg.model.parallelism import check_parallelism, check_unused_parameters
from torchlipreg.model.reuse import OutputReuse

DEFAULT_RADIUS = 0.1


class LipschitzPenalty:
    """A penalty on the difference quotients of a model over moving pairs of inputs: the FLIP family.

    A call moves the pairs uphill and returns ``weight · reduceᵢ qᵢ^exponent`` with ``q = ‖f(x) − f(x′)‖ / ‖x − x′‖``,
    where f is the model as a fixed function: eval mode, float32, and nothing in the model or its gradients changed.
    Call it once per training step, on every rank::

        penalty = LipschitzPenalty("tv", weight=1e-3, input_norm=math.inf)
        for x, y in loader:
            out = model(x)
            loss = criterion(out, y) + penalty(model, x, out)

    Methods: ``"max"``, the largest quotient over a persistent pair set (report, Algorithm 1, eq. 3); ``"sum"``, its
    mean (section 4.1); ``"tv"``, the mean over pairs that start anew in the ε-ball of each data point (Algorithm 4);
    ``"ptv"``, the same with the moved points projected on the ε-sphere (Algorithm 3, eq. 7).

    Departures from the report: the mean over the batch instead of the sum; quotients squared by default; power steps
    and anchored pairs by default for tv and ptv; pairs on level sets (Property 1) and collapsed pairs drawn anew;
    statistics of train-mode BatchNorm that follow the parameters, see :func:`torchlipreg.model.batchnorm.follow`.
    ``exponent=1, anchored=False, ascent="sgd", momentum=0`` gives Algorithms 3 and 4 as printed.

    Args:
        method: ``"max"``, ``"sum"``, ``"tv"`` or ``"ptv"``.
        weight: λ ≥ 0, a mutable attribute. At 0 a call returns an exact zero and runs no forward.
        num_pairs: max, sum: size of the pair set (of each rank), default 64. tv, ptv: points of each batch that are
            used, default all.
        choose: tv, ptv: which ``num_pairs`` points of a larger batch. A function of ``outputs``, as the model returned
            them, and ``num_pairs``, to int64 row numbers, shape (n,): :func:`torchlipreg.outputs.smallest_margins`, or
            one of your own. Each call then needs ``outputs``. Default: fresh random ones in each call.
        radius: ε ≥ 0 in the input norm and the input's units, a mutable attribute. tv, ptv: default 0.1. max, sum:
            None starts pairs from different data points, a number from a ball around one. Zero, or less than the
            dtype resolves, is the limit ε → 0: the directional derivative, by ``torch.func.jvp``.
        input_norm: 1, 2 or ``math.inf``: ‖x − x′‖. Use the norm of the perturbations to be withstood.
        output_norm: 1, 2 or ``math.inf``: ‖f(x) − f(x′)‖.
        exponent: 1 for the report's formula, 2 for its square.
        ascent: ``"power"`` (default for tv, ptv), ``"sgd"`` (default for max, sum), ``"nesterov"`` or ``"adam"``.
        ascent_steps: Ascent steps per call, ≥ 1.
        step_size: τ > 0. Default 0.01 for sgd and nesterov, 0.03 (input units) for adam; meaningless for power.
        momentum: μ in [0, 1) of sgd.
        anchored: tv, ptv: x stays on the data point, so that the loop's ``outputs`` can serve as f(x).
        bounds: (lo, hi) of the data: pairs stay inside (Assumption 3).
        noise: σ ≥ 0 of Gaussian noise on fresh pairs, in input units (Remark 2); an anchored x gets none.
        interval: Apply the penalty in every k-th call, times k; the calls between return zero.
        output: From the model's return value to the tensor to penalise. Default: a tensor, ``.logits``,
            ``["logits"]``, or the first element. :func:`torchlipreg.outputs.root_probabilities` suits classifiers.
        seed: Of the penalty's own generator, ≥ 0; each rank derives its own from it.

    Raises:
        TypeError, ValueError: If an argument has the wrong type or is out of range; the message names it.

    References:
        R. Bernas, *Lipschitz Regularization for Neural Networks in High Dimension*, 2024: the report.
        L. Bungert et al., *CLIP: Cheap Lipschitz Training of Neural Networks*, arXiv:2103.12531.
    """

    def __init__(
        self,
        method: str = "tv",
        weight: float = 1e-3,
        *,
        num_pairs: int | None = None,
        choose: Callable[[Any, int], Tensor] | None = None,
        radius: float | None = None,
        input_norm: float = 2,
        output_norm: float = 2,
        exponent: int = 2,
        scale: float = 1.0,
        ascent: str | None = None,
        ascent_steps: int = 1,
        step_size: float | None = None,
        momentum: float = 0.9,
        anchored: bool = True,
        bounds: tuple[float, float] | None = None,
        noise: float = 0.0,
        interval: int = 1,
        output: Callable[[Any], Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = Settings(
            method=method,
            num_pairs=num_pairs,
            choose=choose,
            input_norm=input_norm,
            output_norm=output_norm,
            exponent=exponent,
            scale=scale,
            ascent=ascent,
            ascent_steps=ascent_steps,
            step_size=step_size,
            momentum=momentum,
            anchored=anchored,
            bounds=bounds,
            noise=noise,
            interval=interval,
            output=output,
            seed=seed,
        )
        self.weight = weight
        self.radius = DEFAULT_RADIUS if radius is None and not self.settings.persistent else radius
        self._state = PenaltyState()
        self._reuse = OutputReuse()

    def __repr__(self) -> str:
        """Show the mutable attributes and the settings; a function by its name."""
        arguments = {"weight": self.weight, "radius": self.radius, **vars(self.settings)}
        method = arguments.pop("method")
        shown = (f"{name}={getattr(value, '__qualname__', repr(value))}" for name, value in arguments.items())
        return f"LipschitzPenalty({method!r}, {', '.join(shown)})"

    @property
    def weight(self) -> float:
        """λ ≥ 0."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = check_number("weight", value)

    @property
    def radius(self) -> float | None:
        """ε ≥ 0, or None for pairs that start from different data points."""
        return self._radius

    @radius.setter
    def radius(self, value: float | None) -> None:
        if value is None and not self.settings.persistent:
            raise ValueError(f"Expected `radius` to be a number for method {self.settings.method!r}, but got None.")
        self._radius = None if value is None else check_number("radius", value)

    @property
    def pairs(self) -> PairSet | None:
        """The current pairs, ``.x`` and ``.x_prime`` of shape (num_pairs, *); None before the first call."""
        return self._state.pairs

    @property
    def estimate(self) -> Tensor:
        """The largest quotient of the last call over all ranks, 0-dim: a lower bound on the Lipschitz constant.

        Detached; 0 before the first call. Reading it waits for the GPU, and warns once of batches that were not finite.
        """
        self._state.warn_of_nonfinite()
        return self._state.estimate

    @property
    def reuses_outputs(self) -> bool | None:
        """Whether ``outputs`` serve as f(x), found when the model was last looked at; None before."""
        return self._reuse.verdict

    def __call__(
        self, model: Callable[[Tensor], Any], x: Tensor, outputs: Any = None, *, update: bool = True
    ) -> Tensor:
        """Move the pairs and return the penalty at their new place.

        Collective if a process group is initialised: every rank must call it, equally often, also one whose batch is
        empty. The value is the same on every rank, and averaging the gradients over the ranks, as DDP and FSDP do,
        gives those of one process that holds all pairs. Add the penalty to the loss, with one ``backward()`` for the
        sum: data parallelism does not average the gradients of a ``penalty.backward()`` of its own.

        Args:
            model: The model being trained: any callable from (N, *) to an output; not kept. In DDP, FSDP2,
                ``torch.compile`` wrappers as they are.
            x: The batch, floating, shape (N, *). N may change from call to call.
            outputs: ``model(x)`` from the training loop, for ``choose`` to see. They serve as f(x) where they are: no
                Dropout or BatchNorm in train mode, full precision (see :attr:`reuses_outputs`); else it is recomputed.
            update: False evaluates the last call's pairs again and moves nothing (closures, SAM, several terms).
                Nothing moves without gradients either (``no_grad``, ``inference_mode``).

        Returns:
            ``weight · interval · value``, 0-dim, float32 (float64 for a float64 model), with a gradient to the
            parameters only.

        Raises:
            TypeError: If ``x`` is not a floating tensor, the model's output not one, or ``choose``'s not row numbers.
            ValueError: If shapes do not fit, ``choose`` has no ``outputs``, the output carries no gradient, or, checked
                in the first call only, ``x`` is not finite or outside ``bounds``.
            RuntimeError: If the model's parallelism cannot take a penalty, or another rank refused its first batch.
        """
        check_points("x", x, may_be_empty=world_size() > 1)
        check_parallelism(model)
        if self.settings.persistent and self.pairs is not None:
            check_rows("x", x, self.pairs.x.shape[1:])
        moves = update and torch.is_grad_enabled()
        if self.settings.choose is not None and outputs is None and (moves or self.pairs is None):
            raise ValueError(
                "Expected argument `outputs`, model(x), at which the penalty's `choose` looks, but got None."
            )
        if self.weight == 0:
            return torch.zeros((), device=x.device)
        if torch.is_inference_mode_enabled():  # in which older versions' torch.func.jvp is zero
            with torch.inference_mode(False), torch.no_grad():
                return self(model, x, outputs, update=update)
        call = self._state.calls if moves else max(0, self._state.calls - 1)
        if call % self.settings.interval:
            self._state.calls += moves
            return torch.zeros((), device=x.device)
        generator = self._state.generator(x.device, self.settings.seed)
        value = Step(self.settings, self.radius, self._state, self._reuse, generator, moves)(model, x, outputs)
        penalty = self.weight * self.settings.scale**self.settings.exponent * self.settings.interval * value
        if self._state.calls == 1 and outputs is not None:
            check_unused_parameters(model, outputs, penalty)
        if moves and not penalty.requires_grad:
            self._state.warn_once("The penalty carries no gradient: no parameter that `model` uses requires one.")
        return penalty

    def synchronize(self) -> None:
        """Gather the pairs of all ranks, so that the next ``state_dict()`` on any rank holds them all.

        Collective: every rank must call it. The only collective besides the call itself; a no-op on one process. The
        gathered state is dropped by the next call of the penalty.
        """
        self._state.gather()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bit-equal resume needs: tensors, numbers, strings, lists and dicts only.

        Not collective. On several ranks it holds this rank's pairs only, with a warning, unless :meth:`synchronize`
        came just before. The pairs of tv and ptv live for one call and are not saved. ``torch.load`` reads it back
        with ``weights_only=True``.
        """
        return {**self._identity(), "weight": self.weight, "radius": self.radius, **self._state.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, weight and radius included. Tensors move to the model's device in the next call.

        Saved after :meth:`synchronize`, it can be loaded by any number of processes W: by as many as saved it, each
        rank gets its own pairs back; otherwise rank r takes every W-th pair from r on. Saved without, the pairs go to
        the rank that saved them, and the others start anew.

        Args:
            state: From :meth:`state_dict` of a penalty with the same method, norms, ascent and number of pairs.

        Raises:
            ValueError: If ``state`` has another version, or belongs to another kind of penalty. Nothing is changed.
        """
        loaded = PenaltyState.from_dict(state, self._identity())
        weight = check_number("weight", state["weight"])
        self.radius, self.weight, self._state = state["radius"], weight, loaded

    def _identity(self) -> dict[str, Any]:
        names = ("method", "ascent", "input_norm", "output_norm", "num_pairs")
        return {"version": STATE_VERSION, **{name: getattr(self.settings, name) for name in names}}
