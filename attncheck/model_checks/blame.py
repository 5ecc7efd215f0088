"""Which module parts first, or is NaN first: runs are read module by module, as executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.model_checks.noise import distance
from attncheck.model_checks.trial import Align, Replay

__all__ = ["THE_MODEL", "first_departure", "first_spoiled"]

CLEAR: Final = 1e-2
"""A module parts when it moved by this share of how far the worst module moved."""

THE_MODEL: Final = "the model itself"
"""Where it happens in no module of the model but in its own code."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a module received and returned."""

    entered: tuple[Tensor, ...]
    returned: Tensor | None


@dataclass(eq=False)
class _Log:
    """Calls of all modules in the order in which they ended."""

    seen: dict[tuple[str, int], _Seen] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def hook(self, name: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
            number = self.counts.get(name, 0)
            self.counts[name] = number + 1
            entered = [t for t in (*args, *kwargs.values()) if _floating(t)]
            out = returned[0] if isinstance(returned, tuple) and returned else returned
            out = next(iter(out.values()), None) if isinstance(out, dict) else out
            kept = out.detach().clone() if isinstance(out, Tensor) and _floating(out) else None
            self.seen[name, number] = _Seen(tuple(t.detach().clone() for t in entered), kept)

        return keep


def first_departure(model: nn.Module, replay: Replay, limit: float) -> str | None:
    """Name the module in which two runs part: what enters it agrees, what it returns does not.

    Args:
        model: The model.
        replay: The two runs, and which parts of a module's output must agree.
        limit: Smallest difference of the model's output that is no noise, relative to its scale.
    """
    with torch.no_grad():
        with _logging(model) as one:
            replay.one()
        if replay.between is not None:
            replay.between()
        with _logging(model) as two:
            replay.two()
    moved = {
        key: _moved(one.seen[key].returned, two.seen[key].returned, replay)
        for key in one.seen
        if key in two.seen
    }
    known = {key: value for key, value in moved.items() if value is not None}
    if not known or max(known.values()) <= 0:
        return None
    enough = min(max(limit, 0.0), CLEAR * max(min(v, 1.0) for v in known.values()))

    def agreed(name: str, number: int) -> bool | None:
        pairs = zip(one.seen[name, number].entered, two.seen[name, number].entered, strict=False)
        gaps = [_moved(a, b, replay) for a, b in pairs]
        told = [gap for gap in gaps if gap is not None]
        return all(gap <= enough for gap in told) if told else None

    for (name, number), far in known.items():
        if far <= enough:
            continue
        return _climbed(name, number, one, agreed)
    return None


def first_spoiled(model: nn.Module, run: Callable[[], Any], align: Align) -> str | None:
    """Name the module in which a run turns NaN or infinite: what enters it is finite.

    Args:
        model: The model.
        run: The run.
        align: Which part of a module's output counts.
    """
    with torch.no_grad(), _logging(model) as log:
        run()

    def clean(name: str, number: int) -> bool | None:
        known = [_spoiled(held, align) for held in log.seen[name, number].entered]
        told = [held for held in known if held is not None]
        return not any(told) if told else None

    for (name, number), seen in log.seen.items():
        if seen.returned is not None and _spoiled(seen.returned, align):
            return _climbed(name, number, log, clean)
    return None


def _climbed(name: str, number: int, log: _Log, clean: Callable[[str, int], bool | None]) -> str:
    """Climb from the first module that is wrong while what entered it was wrong already.

    Args:
        name: The module.
        number: Which of its calls.
        log: The calls of all modules.
        clean: Whether what entered a call was right; None where that can't be told.
    """
    while name:
        right = clean(name, number)
        if right:
            return name
        parent = name.rpartition(".")[0]
        while parent and (parent, number) not in log.seen:
            parent = parent.rpartition(".")[0]
        if right is None and (not parent or parent.rpartition(".")[2].isdigit()):
            return name
        name = parent
    return THE_MODEL


def _spoiled(held: Tensor, align: Align) -> bool | None:
    """Whether the part that counts holds NaN or inf; -inf hides keys, and is meant."""
    part = _aligned(held, align)
    return None if part is None else bool((~(part < torch.inf)).any())


def _moved(one: Tensor | None, two: Tensor | None, replay: Replay) -> float | None:
    """How far two outputs are apart where they must agree, relative to their scale."""
    if one is None or two is None:
        return None
    a, b = _aligned(one, replay.align_one), _aligned(two, replay.align_two)
    if a is None or b is None or a.shape != b.shape or not a.numel():
        return None
    scale = float(a.float().nan_to_num(0, 0, 0).abs().max())
    apart = distance(a.float().flatten(1), b.float().flatten(1))
    gap = float(apart.nan_to_num(0.0, posinf=torch.inf).max())
    return gap / scale if scale else float(gap > 0)


def _aligned(held: Tensor, align: Align) -> Tensor | None:
    try:
        return align(held)
    except (IndexError, RuntimeError):
        return None


@contextmanager
def _logging(model: nn.Module) -> Iterator[_Log]:
    log = _Log()
    named = [(name, module) for name, module in model.named_modules() if name]
    scripted = torch.jit.ScriptModule
    handles = [
        module.register_forward_hook(log.hook(name), with_kwargs=True)
        for name, module in named
        if not isinstance(module, scripted)
    ]
    try:
        yield log
    finally:
        for handle in handles:
            handle.remove()


def _floating(held: Any) -> bool:
    return isinstance(held, Tensor) and held.is_floating_point() and held.ndim > 1
