"""One running capture: takes calls from recorders, keeps what is wanted, says what is wrong."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.capture.call import AttentionCall
from attncheck.capture.fidelity import unfaithful
from attncheck.capture.plain import UnreadableError, as_plain
from attncheck.capture.quiet import in_backward, quiet
from attncheck.capture.rebuild import per_head, rebuild_weights
from attncheck.capture.select import HeadChoice, LayerSelection, select_heads
from attncheck.capture.visibility import Visibility, VisibilityReader
from attncheck.capture.whereabouts import innermost
from attncheck.errors import CaptureError

__all__ = ["Failure", "Session", "Settings", "module_names"]


@dataclass(frozen=True)
class Settings:
    """What to keep of each layer.

    Attributes:
        layers: Which layers.
        heads: Which heads of each.
        device: Where kept tensors go; None leaves them where they were computed.
        dtype: Of kept weights; None: as computed, float32 at least where rebuilt.
        keeps: Layers outlive the call, so that weights which the model made itself are copied.
    """

    layers: LayerSelection
    heads: HeadChoice
    device: torch.device | None
    dtype: torch.dtype | None
    keeps: bool = True


@dataclass(frozen=True)
class Failure:
    """Attention that ran and was not captured, or not faithfully."""

    name: str
    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}. {self.way_out}"


@dataclass(frozen=True, eq=False)
class _Numbered:
    call: AttentionCall
    index: int
    repeat: int


class Session:
    """A `Sink` that turns calls into `LayerAttention` and hands each to ``on_layer`` at once.

    Args:
        model: Whose attention is captured; modules of other models are ignored.
        settings: What to keep.
        on_layer: Receives each layer in execution order.
    """

    def __init__(
        self, model: nn.Module, settings: Settings, on_layer: Callable[[LayerAttention], object]
    ) -> None:
        self.failures: list[Failure] = []
        self.ran: list[str] = []
        """Name of every attention call of the longest model call so far, wanted or not."""
        self.captured: set[str] = set()
        """Names of modules whose attention was seen and understood, wanted or not."""
        self.unused_softmaxes: dict[int, str] = {}
        """Modules that computed a softmax of query and key never seen to multiply values."""
        self._names = module_names(model)
        self._settings = settings
        self._on_layer = on_layer
        self._reader = VisibilityReader()
        self._depth = 0
        self._order: list[str] = []
        self._calls: Counter[str] = Counter()
        self._pending: list[_Numbered] = []
        self._problem: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether a recorder is inside a call that it reports itself."""
        return self._depth > 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Keep other recorders silent for the length of one call."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def name_of(self, module: object) -> str | None:
        """Module path, or None for a module of another model."""
        return self._names.get(id(module))

    def here(self) -> tuple[nn.Module, str] | None:
        """Innermost running module of the model, with its path."""
        return innermost(self._names)

    def new_model_call(self) -> None:
        """Start numbering layers from 0 again."""
        self.flush()
        self._order = []

    def record(self, name: str, backend: str, build: Callable[[], AttentionCall]) -> None:
        """Number a call and keep it if it is wanted; never raises into the running model."""
        if in_backward() or self._problem is not None:
            return
        index = len(self._order)
        self._order.append(name)
        if len(self._order) > len(self.ran):
            self.ran = list(self._order)
        self.captured.add(name)
        repeat = self._calls[name]
        self._calls[name] += 1
        layers = self._settings.layers
        if not layers.relative and not layers.wants(index, name):
            return
        try:
            numbered = _Numbered(as_plain(build()), index, repeat)
        except UnreadableError as error:
            self.unreadable(name, str(error), error.way_out)
            return
        except Exception as error:
            self.unreadable(name, f"its {backend} call could not be read ({error})", REPORT)
            return
        if layers.relative:
            self._pending.append(numbered)
            if layers.tail is not None:
                self._pending = self._pending[-layers.tail :]
        else:
            self._keep(numbered)

    def softmax_seen(self, number: int) -> None:
        """Remember a softmax over a product of activations, and where it ran."""
        place = self.here()
        if place is not None and not in_backward():
            self.unused_softmaxes[number] = place[1]

    def softmax_used(self, number: int) -> None:
        """Forget a softmax that turned out to be recorded attention."""
        self.unused_softmaxes.pop(number, None)

    def unreadable(self, name: str, what: str, way_out: str) -> None:
        """Note attention that ran but cannot be captured."""
        failure = Failure(name, what, way_out)
        if failure not in self.failures and not in_backward():
            self.failures.append(failure)

    def flush(self) -> None:
        """Keep what waited for the number of layers to be known."""
        waiting, self._pending = self._pending, []
        for numbered in waiting:
            name = numbered.call.name
            if self._settings.layers.wants(numbered.index, name, len(self._order)):
                self._keep(numbered)

    def finish(self, *, strict: bool) -> None:
        """Judge the capture.

        Raises:
            ValueError: A layer or head that was asked for does not exist.
            CaptureError: ``strict``, and something ran that was not captured faithfully.
        """
        self.flush()
        if self._problem is not None:
            raise self._problem
        if self.ran:
            self._settings.layers.require_met(self.ran)
        if not self.failures:
            return
        shown = [f"  {failure}" for failure in self.failures[:6]]
        hidden = len(self.failures) - len(shown)
        text = "\n".join(
            [
                f"captured {len(self.captured)} attention modules, but not all of it or not "
                "faithfully:",
                *shown,
                *([f"  and {hidden} more"] if hidden else []),
            ]
        )
        if strict:
            raise CaptureError(f"{text}\nstrict=False keeps the rest, with a warning")
        warnings.warn(text, stacklevel=4)

    def _keep(self, numbered: _Numbered) -> None:
        call = numbered.call
        try:
            with quiet(call.output.device.type):
                layer = self._layer(numbered)
        except ValueError as error:
            self._problem = error
            return
        except Exception as error:
            self.unreadable(call.name, f"its {call.backend} call failed ({error})", REPORT)
            return
        try:
            self._on_layer(layer)
        except Exception as error:
            self._problem = error

    def _layer(self, numbered: _Numbered) -> LayerAttention:
        call = numbered.call
        heads = select_heads(self._settings.heads, call.shape[1], call.output.device)
        if call.weights is None:
            weights, sink_mass = rebuild_weights(call, heads)
        else:
            weights = per_head(call.weights, heads)
            sink_mass = _rest(weights) if call.sink_is_rest else None
        seen = self._reader.read(
            call.mask, *call.shape[2:], top_left=call.causal, decoding=call.decoding
        )
        seen = _of_heads(seen, heads)
        status = unfaithful(call, weights, heads, seen.rows())
        if status is not None:
            self.unreadable(call.name, status, REPORT)
        device = weights.device if self._settings.device is None else self._settings.device
        kept = weights.to(device=device, dtype=self._settings.dtype or weights.dtype)
        shared = call.weights is not None and kept.data_ptr() == call.weights.data_ptr()
        if shared and self._settings.keeps:
            kept = kept.clone()
        return LayerAttention(
            kept.detach(),
            name=call.name,
            index=numbered.index,
            kind=call.kind,
            backend=call.backend,
            n_key_value_heads=call.n_key_value_heads,
            mask=None if seen.mask is None else seen.mask.to(device),
            causal=seen.causal,
            heads=tuple(heads.tolist()),
            sink_mass=None if sink_mass is None else sink_mass.to(device),
            call=numbered.repeat,
            status="exact" if status is None else f"unfaithful: {status}",
            model_dtype=str(call.output.dtype).removeprefix("torch."),
            model_device=str(call.output.device),
        )


REPORT = (
    "The model computes something beside softmax(query @ key) @ value here; run it in another "
    "backend (model.set_attn_implementation('eager') in transformers), or leave the layer out with "
    "layers="
)


def module_names(model: nn.Module) -> dict[int, str]:
    """Path of every module by id; a model that is one module goes by its class name."""
    names = {}
    for name, module in model.named_modules():
        plain = ".".join(part for part in name.split(".") if part != "_orig_mod")
        names[id(module)] = plain or type(getattr(module, "_orig_mod", module)).__name__
    return names


def _rest(weights: Tensor) -> Tensor:
    return (1 - weights.sum(-1, dtype=torch.float64)).clamp_(min=0).to(weights.dtype)


def _of_heads(seen: Visibility, heads: Tensor) -> Visibility:
    if seen.mask is None:
        return seen
    return Visibility(per_head(seen.mask, heads), seen.causal)
