"""`compare_backends`: what the attention backends of one model do differently, layer by layer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.attention.validate import require_cells
from attncheck.capture.extractor import AttentionExtractor
from attncheck.errors import CaptureError
from attncheck.tolerances import tolerance_for

__all__ = ["BackendComparison", "LayerDifference", "compare_backends", "unchanged_backend"]

SET_BY: Final = "_attn_implementation_internal"
"""Where a transformers configuration keeps the backend that it was set to."""


@dataclass(frozen=True)
class LayerDifference:
    """One layer of one backend against the same layer of the reference backend.

    Attributes:
        backend: The backend compared.
        index: Number of the layer in execution order.
        name: Module path.
        call: How often that module had been called before.
        mass_moved: Largest share of a query's attention, over all heads and queries, that lies on
            other keys (total variation, 0 to 1).
        weights: Largest absolute difference of a weight.
        output: Largest absolute difference of what the module returned, relative to its largest
            value. Positions whose query is padding, or sees no key, do not count: backends fill
            those as they like. NaN where the module returned no tensor to compare.
        future: Largest mass that a query puts on later keys, in this backend.
        future_in_reference: The same in the reference backend.
        departs: Whether ``mass_moved`` is more than rounding.
    """

    backend: str
    index: int
    name: str
    call: int
    mass_moved: float
    weights: float
    output: float
    future: float
    future_in_reference: float
    departs: bool


@dataclass(frozen=True)
class BackendComparison:
    """What `compare_backends` found.

    Attributes:
        reference: The backend that the others are compared with.
        backends: The others.
        layers: Every layer of every other backend, in execution order.
        unpaired: ``"backend: module path"`` of attention that ran in one of the two only.

    Example:
        >>> comparison = BackendComparison("eager", ("sdpa",), (), ())
        >>> comparison.agree
        True
    """

    reference: str
    backends: tuple[str, ...]
    layers: tuple[LayerDifference, ...]
    unpaired: tuple[str, ...]

    @property
    def agree(self) -> bool:
        """Whether all backends compute the same attention, up to rounding."""
        return not self.unpaired and not any(layer.departs for layer in self.layers)

    @property
    def first(self) -> LayerDifference | None:
        """First layer that departs: later ones may only carry its difference on."""
        return next((layer for layer in self.layers if layer.departs), None)

    def to_json(self) -> str:
        """Return everything as JSON."""
        verdict = {"agree": self.agree, "first": None if self.first is None else self.first.name}
        return json.dumps({**asdict(self), **verdict}, indent=2)

    def __str__(self) -> str:
        others = ", ".join(self.backends)
        lines = [f"{others} against {self.reference}: the same attention in every layer"]
        if self.first is not None:
            first = self.first
            count = sum(layer.departs for layer in self.layers)
            lines = [
                f"{first.backend} departs from {self.reference} first in layer {first.index}, "
                f"{first.name}; {count} of {len(self.layers)} layers differ"
            ]
        elif self.unpaired:
            lines = [f"{others} against {self.reference}: not the same attention calls"]
        lines += [f"in one only: {name}" for name in self.unpaired]
        wide = max([len(layer.name) for layer in self.layers], default=6)
        lines.append(
            f"  {'backend':8} {'layer':>5} {'module':{wide}} {'mass moved':>10} {'output':>8} "
            f"{'future mass':>11} {'in ' + self.reference:>9}"
        )
        for layer in self.layers:
            lines.append(
                f"{'*' if layer.departs else ' '} {layer.backend:8} {layer.index:5d} "
                f"{layer.name:{wide}} {layer.mass_moved:10.2g} {layer.output:8.1g} "
                f"{layer.future:11.3f} {layer.future_in_reference:9.3f}"
            )
        return "\n".join(lines)


def compare_backends(
    model: nn.Module,
    *inputs: Any,
    backends: Sequence[str] = ("eager", "sdpa"),
    atol: float | None = None,
    **kwargs: Any,
) -> BackendComparison:
    """Run a transformers model in several attention backends and compare every layer.

    Each backend is captured in itself, by `AttentionExtractor`: a mask that only one of them
    drops, as ``DogeForCausalLM`` did under sdpa, shows as mass that moved to future keys. Queries
    that are padding are left out of everything that is compared. The model is left in the backend
    that it was in.

    Args:
        model: A transformers model.
        inputs: For the model.
        backends: Names that ``model.set_attn_implementation`` takes. The first is the reference.
        atol: Largest mass that may move. Default: that of rounding in the model's dtype.
        kwargs: For the model.

    Raises:
        TypeError: The model cannot switch its backend, ``backends`` holds no names, or ``atol`` is
            no number.
        ValueError: Fewer than two backends, one that the model does not take, a negative ``atol``,
            or a layer has no sequences, heads, queries or keys.
        CaptureError: A backend's attention cannot be captured; its name is in the message.

    Example:
        >>> compare_backends(nn.Linear(1, 1), torch.ones(1))
        Traceback (most recent call last):
        TypeError: model: Linear cannot switch its attention backend; ...
    """
    if not hasattr(model, "set_attn_implementation"):
        raise TypeError(
            f"model: {type(model).__name__} cannot switch its attention backend; expected a "
            "transformers model, which has set_attn_implementation"
        )
    reference, *others = _names(backends)
    _require_atol(atol)
    with unchanged_backend(model):
        held = _run(model, reference, inputs, kwargs)
        layers: list[LayerDifference] = []
        unpaired: list[str] = []
        for backend in others:
            found, missing = _compared(held, _run(model, backend, inputs, kwargs), backend, atol)
            layers += found
            unpaired += missing
    return BackendComparison(reference, tuple(others), tuple(layers), tuple(unpaired))


def _names(backends: Any) -> list[str]:
    """Return the names of two or more backends, each once."""
    if isinstance(backends, str) or not isinstance(backends, Iterable):
        raise TypeError(
            f"backends: {backends!r} is {type(backends).__name__}; expected two names or more, as "
            "in ('eager', 'sdpa')"
        )
    names = list(backends)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"backends: {name!r} is {type(name).__name__}; expected names")
    if len(set(names)) < 2:
        raise ValueError(f"backends: {names}; expected two different names at least")
    return list(dict.fromkeys(names))


def _require_atol(atol: Any) -> None:
    if atol is None:
        return
    if isinstance(atol, bool) or not isinstance(atol, Real):
        raise TypeError(f"atol: got {type(atol).__name__}; expected a number >= 0, or None")
    if not 0 <= float(atol) < math.inf:
        raise ValueError(f"atol: got {atol}; expected a finite number >= 0, or None")


@dataclass(eq=False)
class _Run:
    """One backend's layers, and what their modules returned, by path and call."""

    layers: list[LayerAttention] = field(default_factory=list)
    outputs: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def take(self, layer: LayerAttention) -> None:
        require_cells(layer.shape, f"layer {layer.index}, {layer.name}")
        self.layers.append(replace(layer, weights=layer.weights.clone()))

    def keeping(self, name: str) -> Any:
        """Return a forward hook that keeps the output of a module in which attention ran."""

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            calls = sum(layer.name == name for layer in self.layers)
            if calls and isinstance(first, Tensor):
                self.outputs[name, calls - 1] = first.detach()

        return keep


def _run(model: Any, backend: str, inputs: Any, kwargs: Any) -> _Run:
    """Capture the model in a backend, and what its attention modules return."""
    try:
        model.set_attn_implementation(backend)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"backends: {type(model).__name__} takes no {backend!r}: {error}"
        ) from None
    if model.config._attn_implementation != backend:
        raise ValueError(
            f"backends: {type(model).__name__} stays in {model.config._attn_implementation!r} when "
            f"it is set to {backend!r}; it was written for that backend alone"
        )
    run = _Run()
    names = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(run.keeping(name)) for name, module in names]
    random_state = torch.random.get_rng_state()
    try:
        AttentionExtractor(model, device=None, on_layer=run.take).watch(*inputs, **kwargs)
    except CaptureError as error:
        raise CaptureError(f"in backend {backend!r}: {error}") from error
    finally:
        torch.random.set_rng_state(random_state)
        for handle in handles:
            handle.remove()
    return run


def _compared(
    reference: _Run, other: _Run, backend: str, atol: float | None
) -> tuple[list[LayerDifference], list[str]]:
    expected = {(layer.name, layer.call): layer for layer in reference.layers}
    found: list[LayerDifference] = []
    unpaired: list[str] = []
    for layer in other.layers:
        key = (layer.name, layer.call)
        wanted = expected.pop(key, None)
        if wanted is None or wanted.weights.shape != layer.weights.shape:
            unpaired.append(f"{backend}: {layer.name}")
            continue
        outputs = reference.outputs.get(key), other.outputs.get(key)
        found.append(_difference(wanted, layer, outputs, backend, atol))
    return found, unpaired + [f"the reference, not {backend}: {name}" for name, _ in expected]


def _difference(
    wanted: LayerAttention,
    layer: LayerAttention,
    outputs: tuple[Tensor | None, Tensor | None],
    backend: str,
    atol: float | None,
) -> LayerDifference:
    dtype = torch.promote_types(layer.weights.dtype, torch.float32)
    # Rows that carry no attention in either backend may hold anything.
    valid = wanted.valid_rows() & layer.valid_rows()
    one, two = (each.weights.to(dtype).nan_to_num(0) * valid[..., None] for each in (wanted, layer))
    error = (one - two).abs()
    moved = float(error.sum(-1).max()) / 2
    allowed = tolerance_for(wanted.weights.dtype, layer.weights.dtype).row_variation
    return LayerDifference(
        backend=backend,
        index=layer.index,
        name=layer.name,
        call=layer.call,
        mass_moved=moved,
        weights=float(error.max()),
        output=_relative(*outputs, valid.any(1)),
        future=_future(two, layer),
        future_in_reference=_future(one, wanted),
        departs=moved > (allowed if atol is None else atol),
    )


def _relative(expected: Tensor | None, found: Tensor | None, valid: Tensor) -> float:
    """Compare what a module returned, at positions ``(batch, query)`` of which a head tells."""
    if expected is None or found is None or expected.shape != found.shape:
        return float("nan")
    if expected.shape[:2] == valid.shape:
        expected, found = expected[valid], found[valid]
    if not expected.numel():
        return float("nan")
    largest = float(expected.nan_to_num(0).abs().max())
    return float((expected - found).nan_to_num(0).abs().max()) / max(largest, 1e-30)


def _future(weights: Tensor, layer: LayerAttention) -> float:
    """Largest mass of a row on keys behind its own position."""
    if layer.kind == "cross" or layer.n_query > layer.n_key:
        return 0.0
    return float(weights.triu(1 + layer.n_key - layer.n_query).sum(-1).max())


@contextmanager
def unchanged_backend(model: nn.Module) -> Iterator[None]:
    """Put back the backend of every configuration that belongs to the model."""
    configs = {id(config): config for config in _configs(model)}
    before = {key: getattr(config, SET_BY, None) for key, config in configs.items()}
    try:
        yield
    finally:
        for key, config in configs.items():
            setattr(config, SET_BY, before[key])


def _configs(model: nn.Module) -> Iterator[Any]:
    """Yield the configurations of all modules, and those inside them."""
    waiting = [getattr(module, "config", None) for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if config is None or not hasattr(config, SET_BY):
            continue
        yield config
        waiting += [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
