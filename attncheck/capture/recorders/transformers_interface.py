"""Attention that goes through the registry of transformers, in whatever backend it is set to.

Every modeling file asks ``AttentionInterface`` for its attention function at each forward. What
that returns is wrapped for the length of a capture: query, key, value, mask and all options are
seen after rotary embeddings and cache, and the configuration stays as it is. transformers is never
imported here: if nobody imported it, no model of it runs.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.capture.call import AttentionCall, Sink
from attncheck.capture.quiet import undrawn
from attncheck.capture.recorders.flex import shown_by
from attncheck.capture.recorders.functions import rested
from attncheck.capture.whereabouts import kind_of
from attncheck.tolerances import tolerance_for

__all__ = ["TransformersRecorder"]

INPUTS: Final = ("module", "query", "key", "value", "attention_mask")
"""What transformers passes to an attention function by position, in this order."""

WAYS_TO_ASK: Final = ("get_interface", "__getitem__")
"""Methods of ``AttentionInterface`` that hand out a function."""

SINKS: Final = ("s_aux", "sinks")
"""Under which models pass their sinks: a score of each head, or of each query and head."""

WITHOUT_SINK: Final = (
    "the model returns weights before its sink takes its share: weights / (1 - sink_mass)"
)


class TransformersRecorder:
    """Watches ``AttentionInterface`` of transformers."""

    @contextmanager
    def installed(self, sink: Sink) -> Iterator[None]:
        """Report calls of ``sink``'s model until the context ends."""
        module = sys.modules.get("transformers.modeling_utils")
        interface = getattr(module, "AttentionInterface", None)
        if interface is None:
            yield
            return
        with _patched(interface):
            sinks = _sinks()  # of the thread that captures, whichever thread ends it
            sinks.append(sink)
            try:
                yield
            finally:
                sinks.remove(sink)


class _Listening(threading.local):
    """Captures running in this thread: another thread's model is not theirs."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []


_LISTENING = _Listening()
_PATCHES: dict[type, tuple[int, dict[str, Any]]] = {}
_WRAPPED: dict[tuple[int, Any], Callable[..., Any]] = {}
"""What was handed out for a function and the name that it was asked for by, while patched."""
_LOCK = threading.Lock()


def _sinks() -> list[Sink]:
    return _LISTENING.sinks


@contextmanager
def _patched(interface: type) -> Iterator[None]:
    """Wrap the two ways to ask the registry, once for however many captures there are."""
    with _LOCK:
        users, before = _PATCHES.get(interface, (0, {}))
        if not users:
            before = {name: vars(interface).get(name) for name in WAYS_TO_ASK}
            for name in WAYS_TO_ASK:
                if hasattr(interface, name):
                    setattr(interface, name, _asking(getattr(interface, name)))
        _PATCHES[interface] = users + 1, before
    try:
        yield
    finally:
        with _LOCK:
            users, before = _PATCHES.pop(interface)
            if users > 1:
                _PATCHES[interface] = users - 1, before
            else:
                _restore(interface, before)


def _restore(interface: type, before: Mapping[str, Any]) -> None:
    _WRAPPED.clear()
    for name, original in before.items():
        if original is not None:
            setattr(interface, name, original)
        elif name in vars(interface):
            delattr(interface, name)


def _asking(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def ask(registry: Any, implementation: Any, *default: Any, **options: Any) -> Any:
        function = original(registry, implementation, *default, **options)
        if not callable(function) or hasattr(function, "_attncheck_backend") or not _sinks():
            return function
        known = _WRAPPED.get((id(function), implementation))
        if known is None:
            known = _recorded(function, str(implementation))
            _WRAPPED[id(function), implementation] = known  # which holds it: its id stays taken
        return known

    return ask


def _recorded(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    def attended(
        listening: list[tuple[Sink, str]], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        returned = function(*args, **kwargs)
        for sink, name in listening:
            build = functools.partial(_as_call, function, backend, name, args, kwargs, returned)
            sink.record(name, backend, build)
        return returned

    @functools.wraps(function)
    def attend(*args: Any, **kwargs: Any) -> Any:
        module = args[0] if args else kwargs.get("module")
        listening = [
            (sink, name) for sink in _sinks() if not sink.busy and (name := sink.name_of(module))
        ]
        if not listening:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for sink, _ in listening:
                stack.enter_context(sink.inside())
            return rested(None, attended, listening, args, kwargs)

    attend._attncheck_backend = backend  # type: ignore[attr-defined]
    return attend


def _as_call(
    function: Callable[..., Any],
    backend: str,
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    returned: Any,
) -> AttentionCall:
    options = {**kwargs, **dict(zip(INPUTS, args, strict=False))}
    module, query, key, value = (options[name] for name in INPUTS[:4])
    n_query, n_key = query.shape[2], key.shape[2]
    dropout = float(options.get("dropout") or 0.0)
    sinks = _sink_scores(module, options, backend)
    mask, causal, bias = _hidden(module, options, backend)
    if causal and backend == "sdpa" and n_key > n_query:
        key, value = key[:, :, :n_query], value[:, :, :n_query]
        bias = None if bias is None else bias[..., :n_query]
        n_key = n_query
    decoding = bool(getattr(module, "is_causal", False))
    calm = functools.cache(functools.partial(_without_dropout, function, args, kwargs))
    own = _own_weights(returned, query, n_key, backend)
    if own is not None and dropout and sinks is None:
        with undrawn(query.device):
            own = _own_weights(calm(), query, n_key, backend)
    output = returned[0] if isinstance(returned, tuple) else returned
    return AttentionCall(
        name=name,
        backend=backend,
        kind=kind_of(module, name, n_query, n_key, causal=causal or (decoding and n_query == 1)),
        query=query,
        key=key,
        value=value,
        output=_head_first(output, query),
        weights=own if sinks is None else None,
        mask=None if mask is None else mask[..., :n_key],
        bias=bias,
        causal=causal,
        decoding=decoding,
        scale=_number(options.get("scaling")),
        softcap=_number(options.get("softcap")),
        sinks=sinks,
        dropout=dropout,
        note="" if sinks is None or own is None or _leaves_room(own) else WITHOUT_SINK,
        without_dropout=lambda: _head_first(calm()[0], query),
    )


def _without_dropout(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Ask the function a second time, and leave gradients alone."""
    with torch.no_grad():
        return function(*args, **{**kwargs, "dropout": 0.0})


def _hidden(
    module: nn.Module, options: Mapping[str, Any], backend: str
) -> tuple[Tensor | None, bool, Tensor | None]:
    """Return mask, top-left causality and bias, by the rules of the backend."""
    mask, bias = options.get("attention_mask"), options.get("position_bias")
    if mask is not None and hasattr(mask, "mask_mod"):
        mask = shown_by(mask.mask_mod, options["query"], options["key"])
    if mask is not None and not isinstance(mask, Tensor):
        raise TypeError(f"its mask is a {type(mask).__name__}")
    if backend == "eager" or "flex" in backend:
        return mask, False, bias
    n_query = options["query"].shape[2]
    flag = options.get("is_causal")
    flag = getattr(module, "is_causal", True) if flag is None else flag
    causal = bool(flag) and mask is None and n_query > 1
    return mask, causal, bias


def _own_weights(returned: Any, query: Tensor, n_key: int, backend: str) -> Tensor | None:
    """Return the weights that the function returned itself, as eager ones do."""
    if not isinstance(returned, tuple) or len(returned) < 2 or "flex" in backend:
        return None
    weights = returned[1]
    if not isinstance(weights, Tensor) or weights.ndim != 4:
        return None
    return weights if weights.shape[1:] == (query.shape[1], query.shape[2], n_key) else None


def _sink_scores(module: nn.Module, options: Mapping[str, Any], backend: str) -> Tensor | None:
    """Return learned sinks where the backend reads them; sdpa ignores them."""
    if backend == "sdpa":
        return None
    given = [options[name] for name in SINKS if name in options]
    found = given[0] if given else getattr(module, "sinks", None)
    return found if isinstance(found, Tensor) else None


def _leaves_room(weights: Tensor) -> bool:
    """Whether rows sum to less than 1: what a model returns then has given the sink its share."""
    with torch.no_grad():
        rest = 1 - weights[:, :, -1].sum(-1, dtype=torch.float64)
    return bool(rest.nan_to_num(1).amax() > 2 * tolerance_for(weights.dtype).row_sum)


def _head_first(output: Tensor, query: Tensor) -> Tensor:
    """Turn ``(batch, query, head, size)``, or heads run together, into head-first."""
    heads, n_query = query.shape[1:3]
    size = output.numel() // (output.shape[0] * n_query * heads)
    return output.reshape(-1, n_query, heads, size).transpose(1, 2)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
