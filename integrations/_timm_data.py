"""What a script does with its images: the mean and standard deviation to normalise with; when an epoch begins."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import timm.data

from torchlipreg.notice import warn_first_rank


class DataConfig:
    """Overhears mean and standard deviation: from ``resolve_data_config``, and from the loader of the training set.

    Both normalise alike, with the prefetcher or without, and a script calls one before it builds its task.

    Attributes:
        when_an_epoch_begins: Called whenever a script begins to go through the training set.
    """

    def __init__(self) -> None:
        self.when_an_epoch_begins: list[Callable[[], None]] = []
        self._found: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._used: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen, for whoever imports the two functions inside the context."""
        data = cast(Any, timm.data)
        resolve, create = data.resolve_data_config, data.create_loader
        data.resolve_data_config, data.create_loader = self._resolving(resolve), self._creating(create)
        try:
            yield
        finally:
            data.resolve_data_config, data.create_loader = resolve, create

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return ``normalization`` for the penalty, as far as it is known and the user has not given it."""
        if "normalization" in given:
            return {}
        if self._found is None:
            warn_first_rank(
                "The script did not tell how it normalises images, before it built its task: the penalty takes them as "
                "raw. Give --lip-normalization MEAN STD (0 1 for raw images)."
            )
            return {}
        self._used = self._found
        return {"normalization": self._found}

    def _resolving(self, resolve: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        @functools.wraps(resolve)
        def heard(*args: Any, **kwargs: Any) -> dict[str, Any]:
            config = resolve(*args, **kwargs)
            self._hear(config["mean"], config["std"])
            return config

        return heard

    def _creating(self, create: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(create)
        def heard(*args: Any, **kwargs: Any) -> Any:
            loader = create(*args, **kwargs)
            if kwargs.get("is_training"):
                size = kwargs.get("input_size", args[1] if len(args) > 1 else None)
                default = {"mean": timm.data.IMAGENET_DEFAULT_MEAN, "std": timm.data.IMAGENET_DEFAULT_STD}
                self._hear(*(_of_channels(kwargs.get(name, default[name]), size) for name in default))
                self._follow(loader)
            return loader

        return heard

    def _follow(self, loader: Any) -> None:
        """Let a loader tell when somebody begins to go through it."""
        kind = type(loader)

        def __iter__(this: Any) -> Iterator[Any]:
            for tell in self.when_an_epoch_begins:
                tell()
            return cast(Iterator[Any], kind.__iter__(this))

        def __reduce_ex__(this: Any, protocol: Any) -> tuple[Any, ...]:
            return _plain, (kind, this.__dict__)

        own = {"__iter__": __iter__, "__reduce_ex__": __reduce_ex__, "__module__": kind.__module__}
        loader.__class__ = type(kind.__name__, (kind,), own)

    def _hear(self, mean: Any, std: Any) -> None:
        self._found = tuple(map(float, mean)), tuple(map(float, std))
        if self._used is not None and self._used != self._found:
            warn_first_rank(
                f"The training images are normalised with mean and std {self._found}, but the penalty was made for "
                f"{self._used}. Give --lip-normalization."
            )
            self._used = self._found


def _plain(kind: type, attributes: dict[str, Any]) -> Any:
    """Return a loader that tells nobody: a copy, or what comes out of a pickle."""
    loader: Any = object.__new__(kind)
    loader.__dict__.update(attributes)
    return loader


def _of_channels(values: Sequence[float], size: Any) -> list[float]:
    """Return a number for each channel: their mean where there are others, which is what timm's prefetcher takes.

    Args:
        values: Of some channels.
        size: Of images: (channels, height, width), or without channels.
    """
    channels = size[0] if isinstance(size, (tuple, list)) and len(size) == 3 else len(values)
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels
