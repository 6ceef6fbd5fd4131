"""LipschitzPenalty: the one stateful object, which wires the rooms together. Long: half documents its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlipreg.call.advice import advice
from torchlipreg.call.backwards import Backwards
from torchlipreg.call.climbing import set_radius
from torchlipreg.call.later_batches import LaterBatches
from torchlipreg.call.looks import Looks
from torchlipreg.call.saved import STATE_VERSION, from_dict, gather, to_dict
from torchlipreg.call.settings import Ascent, Exponent, Method, Settings, Stochastic
from torchlipreg.call.state import PenaltyState
from torchlipreg.call.step import Step
from torchlipreg.call.watch import Watch
from torchlipreg.checks import Normalization, check_flag, check_mapping, check_number, suggest_names
from torchlipreg.distributed import world_size
from torchlipreg.geometry.pairs import PairSet
from torchlipreg.inspection.inspector import Inspector
from torchlipreg.inspection.reuse import OutputReuse
from torchlipreg.model.internals.graph import check_no_backward, check_no_transform
from torchlipreg.model.parts.parallelism import check_parallelism, check_unused_parameters
from torchlipreg.tensor_checks import check_points, check_rows


class Loaded(NamedTuple):
    """What a state has brought.

    Attributes:
        weight: λ.
    """

    weight: float


class LipschitzPenalty:
    """A penalty on the difference quotients of a model over moving pairs of inputs.

    A call moves the pairs uphill and returns ``weight · reduceᵢ (scale · qᵢ)^exponent``, with the quotient
    ``q = ‖f(x) − f(x′)‖ / ‖x − x′‖``, where f is the model as a fixed function: eval mode, float32, and nothing in the
    model or its gradients changed. Call it once per training step, on every rank::

        penalty = LipschitzPenalty("tv", weight=0.05, radius=8 / 255)
        for x, y in loader:
            out = model(x)
            loss = criterion(out, y) + penalty(model, x, out)

    ``scale · q`` is how far the output moves over the distance ``scale``, in output units (for logits: nats), whatever
    the input's units, its number of coordinates or the norm: so one weight suits many data sets.

    Methods: ``"max"``, the largest quotient over a persistent pair set (report, Algorithm 1, eq. 3); ``"sum"``, its
    mean (section 4.1); ``"tv"``, the mean over pairs that start anew in the ε-ball of each data point (Algorithm 4);
    ``"ptv"``, the same with the moved points projected on the ε-sphere (Algorithm 3, eq. 7).

    Departures from the report: movements instead of bare quotients; the mean over the batch instead of the sum;
    quotients squared by default; power steps and anchored pairs by default for tv and ptv; pairs on level sets
    (Property 1) and collapsed pairs drawn anew; statistics of train-mode BatchNorm that follow the parameters, see
    :func:`torchlipreg.model.norms.batchnorm.fold`. The report's own formula is ``scale=1, exponent=1, input_norm=2``,
    and its Algorithms 3 and 4, but for the mean, ``anchored=False, ascent="sgd", momentum=0`` besides.

    Args:
        method: ``"max"``, ``"sum"``, ``"tv"`` or ``"ptv"``.
        weight: λ ≥ 0 of movements, a mutable attribute. At 0 a call returns an exact zero and runs no forward. The
            report's λ is ``weight · scale^exponent``.
        radius: ε ≥ 0 in the input norm and in raw units, a mutable attribute. tv, ptv: default 8/255, the budget of
            the field for images in [0, 1]. max, sum: None starts pairs from different data points, a number from a
            ball around one. Zero, or less than the dtype resolves, is the limit ε → 0: the directional derivative, by
            ``torch.func.jvp``.
        input_norm: 1, 2 or ``math.inf``: ‖x − x′‖. Use the norm of the perturbations to be withstood.
        output_norm: 1, 2 or ``math.inf``: ‖f(x) − f(x′)‖.
        exponent: 1 for the report's formula, 2 for its square.
        scale: s > 0, the distance over which movements are counted, in raw units. Default: ``radius`` where that is a
            positive number, 1 for radius 0; with pairs of different data points .16 for max and .25 for sum.
        normalization: (mean, std) that the loop has applied to x, numbers or one of each per channel (axis 1). radius,
            bounds, noise, scale, norms and the estimate are then those of the raw inputs ``std · x + mean``, as in
            8/255 of a pixel in [0, 1], and so are step sizes.
        num_pairs: ≥ 1. max, sum: size of the pair set (of each rank), default 64. tv, ptv: points of each batch that
            are used, default all.
        choose: tv, ptv: which ``num_pairs`` points of a larger batch. A function of ``outputs``, as the model returned
            them, and ``num_pairs``, to int64 row numbers, shape (n,): :func:`torchlipreg.outputs.smallest_margins`, or
            one of your own. Each call then needs ``outputs``. Default: fresh random ones in each call.
        ascent: ``"power"`` (default for tv, ptv), ``"sgd"`` (default for max, sum), ``"nesterov"`` or ``"adam"``.
        ascent_steps: Ascent steps per call, ≥ 1.
        step_size: τ > 0. Default 0.01 for sgd and nesterov, 0.03 (raw units) for adam; meaningless for power.
        momentum: μ in [0, 1) of sgd.
        anchored: tv, ptv: x stays on the data point, so that the loop's ``outputs`` can serve as f(x).
        one_sided: tv, ptv, anchored: f(x) is a target that carries no gradient, as in virtual adversarial training
            (Miyato et al., arXiv:1704.03976): for batches without labels, whose outputs should move as little as
            their neighbours' are pulled towards them. Two-sided, both ends are pulled together.
        bounds: (lo, hi) of the data in raw units: pairs stay inside (Assumption 3).
        noise: σ ≥ 0 of Gaussian noise on fresh pairs, in raw units (Remark 2); an anchored x gets none.
        interval: k ≥ 1: apply the penalty in every k-th call, times k; the calls between return zero. Where a step
            has several calls, as for two views, or steps take turns, as those of two models, make a penalty for each:
            an even k falls on the same one always.
        output: From the model's return value to the tensor to penalise. Default: a tensor, ``.logits``,
            ``["logits"]``, or the first element. :func:`torchlipreg.outputs.root_probabilities` suits classifiers,
            :func:`torchlipreg.outputs.per_position` dense outputs.
        stochastic: What to do with a model that is random although Dropout and the like are off: ``"refuse"`` it, or
            draw the ``"same"`` random numbers of torch at both points of a pair, others in each call.
        seed: Of the penalty's own generator, ≥ 0; each rank derives its own from it.

    Raises:
        TypeError, ValueError: If an argument has the wrong type or is out of range; the message names it.

    References:
        R. Bernas, *Lipschitz Regularization for Neural Networks in High Dimension*, 2024: the report.
        L. Bungert et al., *CLIP: Cheap Lipschitz Training of Neural Networks*, arXiv:2103.12531.
    """

    __slots__ = (
        "__weakref__",
        "_backwards",
        "_batches",
        "_inspector",
        "_last_load",
        "_reuse",
        "_settings",
        "_state",
        "_value",
        "_watch",
        "_weight",
    )  # a misspelt attribute is refused

    @suggest_names
    def __init__(
        self,
        method: Method = "tv",
        weight: float = 0.05,
        *,
        radius: float | None = None,
        input_norm: float = math.inf,
        output_norm: float = 2,
        exponent: Exponent = 2,
        scale: float | None = None,
        normalization: Normalization | None = None,
        num_pairs: int | None = None,
        choose: Callable[[Any, int], Tensor] | None = None,
        ascent: Ascent | None = None,
        ascent_steps: int = 1,
        step_size: float | None = None,
        momentum: float = 0.9,
        anchored: bool = True,
        one_sided: bool = False,
        bounds: tuple[float, float] | None = None,
        noise: float = 0.0,
        interval: int = 1,
        output: Callable[[Any], Any] | None = None,
        stochastic: Stochastic = "refuse",
        seed: int = 0,
    ) -> None:
        self._settings = Settings(
            method=method,
            radius=radius,
            input_norm=input_norm,
            output_norm=output_norm,
            exponent=exponent,
            scale=scale,
            normalization=normalization,
            num_pairs=num_pairs,
            choose=choose,
            ascent=ascent,
            ascent_steps=ascent_steps,
            step_size=step_size,
            momentum=momentum,
            anchored=anchored,
            one_sided=one_sided,
            bounds=bounds,
            noise=noise,
            interval=interval,
            output=output,
            stochastic=stochastic,
            seed=seed,
        )
        self.weight = weight
        self._state = PenaltyState(radius=self._settings.radius)
        self._reuse = OutputReuse()
        self._inspector = Inspector()
        self._watch, self._batches, self._backwards = Watch(), LaterBatches(), Backwards(self._settings.interval)
        self._value: Tensor | None = None
        self._last_load: Loaded | None = None

    def __repr__(self) -> str:
        """Show the mutable attributes and the settings; a function by its name."""
        arguments = {"weight": self.weight, **self.settings.arguments(), "radius": self.radius}
        method = arguments.pop("method")
        shown = (f"{name}={getattr(value, '__qualname__', repr(value))}" for name, value in arguments.items())
        return f"LipschitzPenalty({method!r}, {', '.join(shown)})"

    @property
    def settings(self) -> Settings:
        """Everything that never changes."""
        return self._settings

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
        return self._state.radius

    @radius.setter
    def radius(self, value: float | None) -> None:
        set_radius(self._state, self.settings, self.settings.check_radius(value))

    @property
    def pairs(self) -> PairSet | None:
        """The current pairs in the loop's units, ``.x`` and ``.x_prime`` of shape (num_pairs, *); None at first."""
        last, units = self._state.last, self.settings.units
        if last is None:
            return None
        return last.pairs if units is None else last.pairs.map(units.normalized)

    @property
    def estimate(self) -> Tensor:
        """The largest quotient of the last call over all ranks, 0-dim: a lower bound on the Lipschitz constant.

        Detached; 0 before the first call.
        """
        return self._state.estimate

    @property
    def value(self) -> Tensor | None:
        """What the last call returned that ran the model, 0-dim, detached; None at first."""
        return self._value

    @property
    def was_added(self) -> bool:
        """Whether a backward has ever come through what a call returned."""
        return self._backwards.any

    @property
    def last_load(self) -> Loaded | None:
        """What was loaded last, another object for each state: so a schedule knows a loaded weight from a set one."""
        return self._last_load

    @property
    def share(self) -> float | None:
        """‖∇ penalty‖ / ‖∇ task loss‖ when it was last looked at; None before the first look.

        A stand-in, see :class:`torchlipreg.call.watch.Watch`; :func:`torchlipreg.gradient_ratio` measures it exactly.
        It needs the ``backward()`` of a loss that holds the penalty. Under FSDP nobody looks.
        """
        self._watch.collect()
        return self._watch.share

    @property
    def reuses_outputs(self) -> bool | None:
        """Whether ``outputs`` serve as f(x), found when the model was last looked at; None before."""
        return self._reuse.verdict

    def __call__(
        self,
        model: Callable[..., Any],
        x: Tensor,
        outputs: Any = None,
        *,
        update: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
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
                Nothing moves without gradients either (``no_grad``, ``inference_mode``): it is the last call's pairs
                then, too, whatever ``x`` is. Measure other data by :func:`torchlipreg.lipschitz_lower_bound`.
            model_kwargs: What else the model takes by name: attention masks, conditions, class labels. Tensors whose
                first axis is N are rows of the batch: they come along where only some rows are used, stay with
                persistent pairs, and are held like x: what made them gets no gradient. Everything else is handed on as
                it is.

        Returns:
            ``weight · interval · reduceᵢ (scale · qᵢ)^exponent``, 0-dim, float32 (float64 for a float64 model), with a
            gradient to the parameters only. A float32 zero without a gradient where nothing is computed.

        Raises:
            TypeError: If ``x`` is not a dense floating tensor, the model's output not one, ``choose``'s not row
                numbers, ``update`` not True or False, or ``model_kwargs`` no dict.
            ValueError: If shapes do not fit, ``choose`` has no ``outputs``, the output carries no gradient, or, checked
                in the first call only, ``x`` is not finite or outside ``bounds``; if the model is random, looked at in
                its first call and in every 64th.
            RuntimeError: If the model's parallelism cannot take a penalty, another rank refused its first batch, or the
                call is inside of a ``torch.func`` transform, or moves pairs in a backward.
        """
        if torch.compiler.is_compiling():  # a whole training step: tracing what a call does to flags would go wrong
            eager: Callable[..., Tensor] = torch.compiler.disable(self)  # type: ignore[no-untyped-call]
            return eager(model, x, outputs, update=update, model_kwargs=model_kwargs)
        self._check_call(model, x, update, model_kwargs)
        if self.weight == 0:
            return torch.zeros((), dtype=torch.float32, device=x.device)
        if torch.is_inference_mode_enabled():  # in which older versions' torch.func.jvp is zero
            with torch.inference_mode(False), torch.no_grad():
                return self(model, x, outputs, update=update, model_kwargs=model_kwargs)
        moves = update and torch.is_grad_enabled()
        if moves:
            check_no_backward()
        self._check_outputs(outputs, moves)
        call = self._state.calls if moves else max(0, self._state.calls - 1)  # the last one's random numbers again
        if call % self.settings.interval:
            self._state.calls += moves
            if moves:
                self._backwards.skip(model)
            return torch.zeros((), dtype=torch.float32, device=x.device)
        generator = self._state.generator(x.device, self.settings.seed, call)
        looks = Looks(self.settings, self._state, self._inspector, self._watch, self._batches)
        step = Step(self.settings, self._state, self._reuse, looks, generator, moves)
        outcome = step(model, x, outputs, model_kwargs)
        factor, interval = self.weight * self.settings.movement, self.settings.interval
        penalty = factor * interval * outcome.value
        self._watch.follow(penalty, factor, interval, again=not moves)
        self._backwards.follow(penalty, self._state, model, moves=moves)
        self._report(penalty, model, outputs, moves)
        if outcome.remember is not None:
            outcome.remember()
        self._state.estimate = outcome.estimate
        return penalty

    def _check_call(self, model: Callable[..., Any], x: Tensor, update: Any, model_kwargs: Any) -> None:
        check_no_transform()
        check_points("x", x, may_be_empty=world_size() > 1)
        check_flag("update", update)
        check_mapping("model_kwargs", model_kwargs)
        check_parallelism(model)
        if self.settings.persistent and self._state.last is not None:
            check_rows("x", x, self._state.last.pairs.x.shape[1:])

    def _check_outputs(self, outputs: Any, moves: bool) -> None:
        if self.settings.choose is not None and outputs is None and (moves or self._state.last is None):
            raise ValueError(
                "Expected argument `outputs`, model(x), at which the penalty's `choose` looks, but got None."
            )

    def _report(self, penalty: Tensor, model: Callable[..., Any], outputs: Any, moves: bool) -> None:
        """Note what this call returns, and warn if something about it is amiss."""
        self._value = penalty.detach()
        if self._state.calls == 0 and outputs is not None:
            check_unused_parameters(model, outputs, penalty)
        verdict, share = self._watch.verdict(), self._watch.share
        if verdict is not None and share is not None and verdict not in self._state.warned:
            self._state.warn_once(advice(verdict, share, self.weight), key=verdict)
        if self._reuse.caution is not None:
            self._state.warn_once(self._reuse.caution, key="graph")
        for about, caution in self._backwards.cautions().items():
            self._state.warn_once(caution, key=about)
        if moves and not penalty.requires_grad:
            self._state.warn_once("The penalty carries no gradient: no parameter that `model` uses requires one.")

    def warn_of_data(self) -> None:
        """Warn if a batch held NaN or infinity since the last time of asking; waits for the GPU, so not in each step.

        ``state_dict()`` asks, and so do the integrations when they log.
        """
        self._state.warn_of_nonfinite()

    def synchronize(self) -> None:
        """Gather the pairs of all ranks, so that the next ``state_dict()`` on any rank holds them all.

        Collective: every rank must call it. The only collective besides the call itself; a no-op on one process, and
        for tv and ptv, which keep no pairs. The gathered state is dropped by the next call of the penalty.
        """
        if self.settings.persistent:
            gather(self._state)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bit-equal resume needs: tensors, numbers, strings, lists and dicts only.

        Not collective. On several ranks it holds this rank's pairs only, with a warning, unless :meth:`synchronize`
        came just before. The pairs of tv and ptv live for one call and are not saved. ``torch.load`` reads it back
        with ``weights_only=True``.
        """
        self.warn_of_data()
        return {**self._identity(), "weight": self.weight, **to_dict(self._state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, weight and radius included. Tensors move to the model's device in the next call.

        Saved after :meth:`synchronize`, it can be loaded by any number of processes W: by as many as saved it, each
        rank gets its own pairs back; otherwise rank r takes every W-th pair from r on. Saved without, the pairs go to
        the rank that saved them, and the others start anew.

        Args:
            state: From :meth:`state_dict` of a penalty with the same method, norms, ascent, number of pairs and
                normalization. The other arguments are not compared: construct the penalty as it was.

        Raises:
            TypeError: If ``state`` is no dict, or holds something of another type than it should.
            ValueError: If ``state`` has another version, or belongs to another kind of penalty. Nothing is changed.
        """
        loaded = from_dict(state, self._identity())
        weight, loaded.radius = check_number("weight", state["weight"]), self.settings.check_radius(loaded.radius)
        loaded.warned = self._state.warned  # a run that goes back, as to its best model, need not be told again
        self.weight, self._state = weight, loaded
        self._last_load = Loaded(weight)
        self._backwards.start_anew()
        self._watch.start_anew()

    def _identity(self) -> dict[str, Any]:
        names = ("method", "ascent", "input_norm", "output_norm", "num_pairs", "normalization")
        return {"version": STATE_VERSION, **{name: getattr(self.settings, name) for name in names}}
