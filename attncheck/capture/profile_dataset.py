"""`profile_dataset`: one profile of all the batches of a loader, kept whatever stops the loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.attention.arguments import flag, whole_number
from attncheck.capture.call import Kind
from attncheck.capture.modules import require_module
from attncheck.capture.profile_model import measure_call
from attncheck.distributed import announce_failure, gather_profiles, rank_of
from attncheck.profile import HeadProfile
from attncheck.progress import Progress, counter

__all__ = ["profile_dataset"]

SAVE_EVERY: Final = 60.0
"""Seconds between two writings of what was done so far."""


def profile_dataset(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    inputs: Callable[[Any], Any] | None = None,
    tokens: Callable[[Any], Any] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    also: Collection[str] = (),
    limit: int | None = None,
    progress: bool | None = None,
    save: str | Path | None = None,
    gather: bool = False,
    group: Any = None,
) -> HeadProfile:
    """Call a model on every batch of a loader and add up the profiles of its heads.

    What is held does not grow with the number of batches. Padding is left out as far as the model
    is told of it (``attention_mask`` and the like), so that batches of several lengths add up.

    Whatever stops the loop, Ctrl-C included, leaves what was done so far: the exception goes on and
    carries ``error.profile`` (a `HeadProfile`, or None) and ``error.batches``, their number; with
    ``save`` it is in that file too, which is also written every minute.

    Args:
        model: Any module that `AttentionExtractor` captures.
        loader: Gives batches: a mapping is passed to the model by name, a tuple or list by
            position, a tensor alone. Tensors are moved to the device of the model's first
            parameter.
        inputs: Takes a batch and returns what of it the model gets, in one of these forms.
            Default: all of it.
        tokens: Takes a batch and returns its tokens, ``(batch, key)``, strings or ids, for the
            patterns of tokens. Default: the ``input_ids`` of the call.
        kinds: What layers are where the capture cannot tell, see `profile_model`.
        also: Measures to add that sort every row, ``"gini"``, see `profile_model`.
        limit: Most batches to take. Default: all.
        progress: Show batches and time left on stderr. Default: on rank 0.
        save: JSON file for the profile.
        gather: Put the profiles of all ranks of `torch.distributed` together, see
            `gather_profiles`: each returns the whole, also one whose loader gives nothing, and all
            raise if one fails. Only rank 0 writes ``save``, at the end.
        group: Process group of ``gather``. Default: all ranks.

    Warns:
        UserWarning: Weights were NaN or infinite; see `HeadProfile.not_finite`.

    Raises:
        CaptureError: Attention ran that cannot be captured faithfully, or none did.
        TypeError: ``model`` is no module, ``loader`` cannot be iterated over, a batch is of no such
            form, ``limit`` is no number, ``progress`` no flag, or ``inputs`` or ``tokens`` no
            function.
        ValueError: The loader gave nothing, or batches did not run the same layers; a note on every
            exception names the batch.

    Example:
        >>> encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> batches = [torch.randn(2, n, 8) for n in (9, 12)]
        >>> profile_dataset(encoder, batches, progress=False)
        HeadProfile(1 layer, 2 heads, 42 rows each, float32)
    """
    require_module(model)
    if limit is not None:
        limit = whole_number(limit, "limit", "a number of batches, or None for all", low=1)
    for name, given in (("inputs", inputs), ("tokens", tokens)):
        if given is not None and not callable(given):
            raise TypeError(f"{name}: {given!r}; expected a function of a batch, or None")
    if not isinstance(loader, Iterable):
        raise TypeError(
            f"loader: is {type(loader).__name__}; expected batches to iterate over, "
            "such as a DataLoader or a list of them"
        )
    shown = rank_of(group) == 0 if progress is None else flag(progress, "progress")
    run = _Run(None if save is None or gather else Path(save), shown, _length(loader, limit))
    measure = partial(measure_call, model, kinds=kinds, also=also)
    with run.kept():
        try:
            _stream(run, model, itertools.islice(loader, limit), inputs, tokens, measure)
        except Exception as error:
            if gather:
                announce_failure(f"{type(error).__name__}: {error}", group)
            raise
        whole = gather_profiles(run.profile, group) if gather else run.profile
    if whole is None:
        raise ValueError("loader: gave no batch; is it used up (an iterator runs only once)?")
    if gather and save is not None and rank_of(group) == 0:
        whole.save(save)
    return whole


@dataclass
class _Run:
    """What was done so far, and who hears of it."""

    path: Path | None
    shown: bool
    total: int | None
    profile: HeadProfile | None = None
    batches: int = 0
    progress: Progress = field(default_factory=Progress)
    begin: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def add(self, profile: HeadProfile) -> None:
        """Add one batch."""
        whole = profile if self.profile is None else self.profile.merge(profile)
        self.profile, self.batches = whole, self.batches + 1
        if self.shown:
            seconds = time.monotonic() - self.begin
            self.progress.say(counter(self.batches, self.total, seconds))
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what was done so far, if anybody wants it."""
        if self.path is not None and self.profile is not None:
            self.profile.save(self.path)
        self.saved = time.monotonic()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Save at the end; give whatever comes before it what was done so far."""
        try:
            yield
        except BaseException as error:
            error.profile = self.profile  # type: ignore[attr-defined]
            error.batches = self.batches  # type: ignore[attr-defined]
            where = f" and in {self.path}" if self.path is not None and self.batches else ""
            error.add_note(
                f"stopped after {self.batches} whole batches; their profile is kept as `profile` "
                f"of this exception{where}"
            )
            raise
        finally:
            self.progress.done()
            self.save()


def _stream(
    run: _Run,
    model: nn.Module,
    batches: Iterable[Any],
    inputs: Callable[[Any], Any] | None,
    tokens: Callable[[Any], Any] | None,
    measure: Callable[..., HeadProfile],
) -> None:
    first = next(iter(model.parameters()), None)
    device = None if first is None or first.is_meta else first.device
    for batch in batches:
        try:
            args, kwargs = _arguments(batch if inputs is None else inputs(batch), device)
            named = None if tokens is None else tokens(batch)
            run.add(measure(args, kwargs, named))
        except Exception as error:
            error.add_note(f"in batch {run.batches}, counted from 0: {_described(batch)}")
            raise


def _length(loader: Any, limit: int | None) -> int | None:
    """How many batches there will be, if the loader knows."""
    try:
        known = len(loader)
    except TypeError:
        return limit
    return known if limit is None else min(known, limit)


def _arguments(batch: Any, device: torch.device | None) -> tuple[list[Any], dict[str, Any]]:
    """Turn a batch into positional and named arguments on the model's device."""
    if isinstance(batch, Mapping):
        return [], {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, Tensor):
        return [_moved(batch, device)], {}
    if isinstance(batch, tuple | list):
        return [_moved(value, device) for value in batch], {}
    raise TypeError(
        f"loader: a batch is {type(batch).__name__}; expected a mapping, a tuple or list, or a "
        "tensor. Pass inputs= to pick out what the model takes"
    )


def _moved(value: Any, device: torch.device | None) -> Any:
    """Move tensors, also those inside lists and mappings."""
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _moved(held, device) for name, held in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(held, device) for held in value)
    return value


def _described(batch: Any) -> str:
    """Type and shapes of a batch.

    Example:
        >>> _described({"input_ids": torch.ones(2, 9), "text": ["a", "b"]})
        'dict with input_ids (2, 9), text list'
    """
    if isinstance(batch, Tensor):
        return f"tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        named: Iterable[tuple[Any, Any]] = batch.items()
    elif isinstance(batch, tuple | list):
        named = enumerate(batch)
    else:
        return type(batch).__name__
    parts = [
        f"{name} {tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}"
        for name, v in itertools.islice(named, 8)
    ]
    return f"{type(batch).__name__} with {', '.join(parts)}"
