"""Inspection: what forwards show of a model that its modules do not: randomness, precision, traces, coupled rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchlipreg.geometry.pairs import finite_copy
from torchlipreg.inspection.closeness import TOLERANCE, close, differs
from torchlipreg.inspection.identity import identity, parts_of, rough_identity
from torchlipreg.inspection.operations import NARROW, Observer, Weights, Writes, observing
from torchlipreg.inspection.probes import Gradient, half, of_gradient, of_norms, of_other_rows, value_at
from torchlipreg.inspection.reuse import AGAIN
from torchlipreg.inspection.seen import WRITTEN, Seen, not_finite, random_values
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.internals.randomness import forked, generator_states
from torchlipreg.model.internals.to_host import Later
from torchlipreg.model.parts.modules import compute_dtype

OFTEN = 16  # looks, after which a model is known by its root alone, where its parts are others in each call
COUPLING = 1e-3  # of the largest output: a row that moves by more with the others depends on them (half: 32 times)


class Inspector:
    """Looks at each model once, before its first call, and at whether it is random again in every 64th call.

    One whose parts are others in each call is looked at 16 times, and then in every 64th call.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[Seen, list[weakref.ref[Any]]]] = {}
        self._later = Later()
        self._calls = self._looks = 0

    def known(self, model: Callable[..., Any]) -> Seen | None:
        """Return what was seen of a model; None if it has not been looked at, or without the gradients that are on."""
        seen = self._find(identity(model))
        if seen is None and self._looks > OFTEN + self._calls // AGAIN:  # another in each call: a look is dear
            seen = self._find(rough_identity(model)[0])
        return seen

    def _find(self, key: Any) -> Seen | None:
        seen, parts = self._seen.get(key, (None, []))
        if seen is None or (torch.is_grad_enabled() and not seen.with_gradient):
            return None
        return None if any(part() is None for part in parts) else seen  # another may have got a dead one's id

    def look(
        self,
        model: Callable[..., Any],
        f: FixedFunction,
        x: Tensor,
        *,
        part: FixedFunction | None = None,
        gradient: bool = True,
        follow: bool = True,
    ) -> Seen:
        """Look at a model: four forwards and a backward to its input, whose values are waited for.

        One forward more for ``part``, for BatchNorm in train mode, for a model that leaves something for its next
        forward, and for one whose input carries no gradient to its output. No other depends on values, which differ
        between ranks: a model may communicate in its forward. Where FSDP shards it there is no backward.

        Args:
            model: As the user gave it.
            f: The same as a fixed function.
            x: Data points, raw, shape (N, *), N ≥ 1.
            part: The same with side inputs for the first half of the rows: does the model take a part of a batch?
            gradient: Look at the gradient to the input, too.
            follow: Look whether all norms in train mode can follow a batch.

        Returns:
            What was seen, kept for ``known``.
        """
        f, x, key = f.uncompiled(), finite_copy(x), identity(model)  # which a forward may change
        with f.eagerly(), f.state.meeting(), forked(x.device):
            f.state.watch_traces()
            before, weights = generator_states(x.device), Weights(model)
            observer, writes = Observer(), Writes(f.state.private_tensors())
            with observing(f, observer, writes):
                y = f(x).detach()
            stateful, draws = f.state.left_something(), not torch.equal(before, generator_states(x.device))
            drifts = stateful and (f.state.is_sharded or not torch.equal(y, f(x).detach()))
            f.state.stateful = stateful
            again = f(x).detach()
            seen_all = None if f.state.is_sharded else y  # where FSDP shards, no operation is seen
            error = None if close(y, again) else random_values(observer.drawn, seen_all, again)
            error = error if y.isfinite().all() else not_finite(y)
            whole = part is not None and value_at(part.uncompiled(), x[: half(x)]) is None
            with observing(f, writes):  # at points where the loop's forward has not written the same
                coupled, varies = of_other_rows(f, x, y, 32 * COUPLING if observer.dtype in NARROW else COUPLING)
            slope = of_gradient(f, x, y) if gradient and not f.state.is_sharded else Gradient()
            norms = of_norms(f, x) if follow and f.follows else None
        sure = error is None
        coupled = coupled or f.state.norms.depends_on_batch  # be its effect zero at first, or a batch of one
        seen = Seen(
            dtype=observer.dtype or compute_dtype(model, x),
            stateful=stateful,
            drifts=drifts,
            draws=draws,
            error=error,
            coupled=coupled and sure,
            graph=slope.graph,
            no_path=slope.no_path and sure,
            flat=slope.flat and varies,
            undefined=slope.undefined and sure,
            whole=whole,
            written=writes.lasting or (weights.replaced if sure else None),
            norms=norms,
            reruns=f.state.reruns,
            with_gradient=gradient,
        )
        self._seen = {key: entry for key, entry in self._seen.items() if all(part() is not None for part in entry[1])}
        self._seen[key] = seen, [weakref.ref(part) for part in parts_of(model)]
        rough, root = rough_identity(model)
        if root is None or hasattr(type(root), "__weakref__"):
            self._seen[rough] = seen, [] if root is None else [weakref.ref(root)]
        self._looks += 1
        return seen

    def note(self, model: Callable[..., Any], **found: Any) -> None:
        """Change what was seen of a model, unless a forward has made another of it."""
        for key in (identity(model), rough_identity(model)[0]):
            if key in self._seen:
                seen, parts = self._seen[key]
                self._seen[key] = seen._replace(**found), parts

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": {}}  # by identities, which a copy does not have

    @staticmethod
    def look_at_another_number(f: FixedFunction, x: Tensor) -> None:
        """Call the model with 2N rows: one that closes over inputs of a whole batch fails here.

        It would not where there happen to be N pairs, and they would meet inputs of other points.

        Args:
            f: The model as a fixed function.
            x: Data points, raw, shape (N, *), N ≥ 1.

        Raises:
            ValueError: If the model takes no other number of points than N.
        """
        with f.eagerly(), forked(x.device):
            f(finite_copy(torch.cat([x, x])))

    def due(self) -> bool:
        """Count a call, and say whether to look again in it.

        Returns:
            True in every 64th call.

        Raises:
            ValueError: If an earlier look has found two values at the same points.
        """
        self._calls += 1
        if self._later.take_flag():
            raise ValueError(random_values(None, None, None))
        return self._calls % AGAIN == 0

    def look_again(self, model: Callable[..., Any], f: FixedFunction, x: Tensor) -> str | None:
        """Look again for randomness, and for what a forward leaves for the next.

        Nothing waits for the device, unless a tensor from before the forward is written: what is found to be random is
        raised by a later ``due``.

        Args:
            model: As the user gave it.
            f: The same as a fixed function.
            x: Data points, raw, shape (N, *), N ≥ 1.

        Returns:
            What the user should know, if anything.
        """
        if f.state.is_sharded:
            return None
        with f.eagerly(), f.state.meeting(), forked(x.device):
            f = f.uncompiled().unseeded()  # torch warns of global hooks on its wrapper
            f.state.watch_traces()
            writes, weights = Writes(f.state.private_tensors()), Weights(model)
            with observing(f, writes):
                y = f(x).detach()
            if f.state.left_something():  # it began to: from here on each forward starts from the same
                self.note(model, stateful=True, drifts=True)
                f.state.stateful = True
            again = f(x).detach()
            self._later.send_flag(differs(y, again, TOLERANCE).any())
        written = writes.lasting or weights.replaced
        return None if written is None else WRITTEN.format(written)
