"""One running capture: takes calls from recorders, keeps what is wanted, says what is wrong."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import get_ident
from typing import TYPE_CHECKING, Final

from torch import nn

from attncheck.attention import LayerAttention
from attncheck.attention.light import threads_for
from attncheck.capture.call import AttentionCall, Waiting
from attncheck.capture.keeping import Keeper, Settings
from attncheck.capture.modules import ModuleTable
from attncheck.capture.numbered import Numbered, as_read
from attncheck.capture.plain import UnreadableError, as_plain
from attncheck.capture.quiet import in_backward, quiet
from attncheck.capture.sequences import Sequences
from attncheck.capture.sharded import local_call
from attncheck.capture.whereabouts import innermost
from attncheck.errors import CaptureError

if TYPE_CHECKING:
    from attncheck.capture.recorders.shapes import Layout

__all__ = ["ELSEWHERE", "ONE_THREAD", "Failure", "Session"]


@dataclass(frozen=True)
class Failure:
    """Attention that ran and was not captured, or not faithfully."""

    name: str
    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}. {self.way_out}"


UNSETTLED: Final = 4
"""How many calls may wait to be settled, or behind one, with all that they hold."""


class Session:
    """A `Sink` that turns calls into `LayerAttention` and hands each to ``on_layer`` at once.

    Args:
        model: Whose attention is captured; modules of other models are ignored.
        settings: What to keep.
        on_layer: Receives each layer in execution order.
        modules: Of the model, where they are listed already.
        cut: Makes less of a call, before anything is computed of it; it gets the number of calls
            that the module made before.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        on_layer: Callable[[LayerAttention], object],
        modules: ModuleTable | None = None,
        cut: Callable[[AttentionCall, int], AttentionCall] | None = None,
    ) -> None:
        self.failures: list[Failure] = []
        self.ran: list[str] = []
        """Name of every attention call of the longest model call so far, wanted or not."""
        self.captured: set[str] = set()
        """Names of modules whose attention was seen and understood, wanted or not."""
        self.unused_softmaxes: dict[int, str] = {}
        """Modules that computed a softmax of query and key never seen to multiply values."""
        self._left: set[int] = set()
        self.sequences = Sequences()
        """Whose tokens layers read."""
        self.modules = ModuleTable.of(model) if modules is None else modules
        self._parts: dict[int, str] = {}
        """Modules that raised the scores of some keys, and where that led is not known yet."""
        self.missed: dict[int, tuple[str, bool]] = {}
        """Modules in which such a softmax did multiply values, and was not recorded; and whether
        that is because it ran over the queries."""
        self.records = 0
        """How many calls of attention were reported so far."""
        self.model_calls = 0
        """How often the model was called."""
        self.names = self.modules.names
        """Path of every module, by its id."""
        self._peers = {name: peers for peers in self.modules.peers.values() for name in peers}
        """Paths of the modules of its class, by the path of each module."""
        self._settings = settings
        self._keeper = Keeper(settings)
        self._on_layer, self._cut = on_layer, cut
        self._inside: set[int] = set()
        """Numbers of threads in which a recorder is inside a call that it reports itself."""
        self._started: dict[int, tuple[nn.Module, str]] = {}
        """Modules that started a thread which runs now, by its number."""
        self._order: list[str] = []
        self._calls: Counter[str] = Counter()
        self._unsettled: dict[int, Numbered] = {}
        """Calls that wait until batch and heads are told apart, and those behind them."""
        self._pending: list[Numbered] = []
        self._problem: Exception | None = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Keep other recorders silent in this thread for the length of one call."""
        thread, outermost = get_ident(), not self.busy
        self._inside.add(thread)
        try:
            yield
        finally:
            if outermost:
                self._inside.remove(thread)

    @property
    def busy(self) -> bool:
        """Whether a recorder is inside a call of this thread that it reports itself."""
        return bool(self._inside) and get_ident() in self._inside

    def name_of(self, module: object) -> str | None:
        """Module path, or None for a module of another model."""
        return self.names.get(id(module))

    def here(self) -> tuple[nn.Module, str] | None:
        """Innermost running module of the model, with its path."""
        return innermost(self.names) or (self._started.get(get_ident()) if self._started else None)

    @contextmanager
    def elsewhere(self, place: tuple[nn.Module, str]) -> Iterator[None]:
        """Take what runs in this thread for what a module does that started it."""
        self._started[get_ident()] = place
        try:
            yield
        finally:
            del self._started[get_ident()]

    def new_model_call(self) -> None:
        """Start numbering layers from 0 again."""
        self.model_calls += 1
        self.flush()
        self._order = []

    def record(self, name: str, backend: str, build: Callable[[], AttentionCall]) -> Waiting | None:
        """Number a call and keep it if it is wanted; never raises into the running model."""
        if in_backward() or self._problem is not None:
            return None
        if self._started and get_ident() in self._started:
            self.unreadable(name, ELSEWHERE, ONE_THREAD)
            return None
        self.records += 1
        index = len(self._order)
        self._order.append(name)
        if len(self._order) > len(self.ran):
            self.ran = list(self._order)
        self.captured.add(name)
        self.sequences.note(name)
        repeat = self._calls[name]
        self._calls[name] += 1
        layers = self._settings.layers
        if not layers.relative and not layers.wants(index, name):
            return None
        try:
            to_come = self._expected(name, index)
            numbered = Numbered(as_plain(local_call(build())), index, repeat, to_come)
        except UnreadableError as error:
            self.unreadable(name, str(error), error.way_out)
            return None
        except Exception as error:
            self.unreadable(name, f"its {backend} call could not be read ({error})", REPORT)
            return None
        layout = numbered.call.layout
        if layout is None and not self._unsettled:
            self._take(numbered)
            return None
        self._unsettled[self.records] = numbered.secured()
        self._take_settled()
        return None if layout is None else Waiting(self.records, layout, numbered.call.axes)

    def settle(self, number: int, layout: Layout | None) -> None:
        """Tell batch and heads of a call apart, and keep it with those that wait behind it."""
        numbered = self._unsettled.get(number)
        if numbered is None or numbered.call.layout is None:
            return
        self._read(numbered, layout)
        self._take_settled()

    def expect(self, number: int, layout: Layout) -> None:
        """Tell batch and heads of a call apart, unless something settles it yet."""
        numbered = self._unsettled.get(number)
        if numbered is not None:
            numbered.expected = layout

    def _read(self, numbered: Numbered, layout: Layout | None) -> None:
        """Read a call that waits in a layout; None: it stays as it was read."""
        call = numbered.call
        assert call.again is not None
        if layout is not None:
            try:
                numbered.call = as_plain(local_call(call.again(layout)))
            except Exception as error:
                self.unreadable(call.name, f"its heads could not be told ({error})", REPORT)
        numbered.call = replace(numbered.call, layout=None)

    def _take_settled(self, most: int = UNSETTLED) -> None:
        """Take calls in their order, until one waits; only a few may wait, or stand behind it."""
        while self._unsettled:
            number, numbered = next(iter(self._unsettled.items()))
            if numbered.call.layout is not None:
                if len(self._unsettled) <= most:
                    return
                if numbered.expected is None:
                    numbered.call = as_read(numbered.call)
                else:
                    self._read(numbered, numbered.expected)
            del self._unsettled[number]
            if numbered.changed():
                self.unreadable(numbered.call.name, CHANGED, IN_PLACE)
            else:
                self._take(numbered)

    def _take(self, numbered: Numbered) -> None:
        layers = self._settings.layers
        if self._cut is not None:
            try:
                numbered.call = self._cut(numbered.call, numbered.repeat)
            except Exception as error:
                self.unreadable(numbered.call.name, f"it could not be cut ({error})", REPORT)
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

    def softmax_left(self, number: int) -> None:
        """Remember that something was made of what a softmax gave: it was not thrown away."""
        self._left.add(number)

    def left_unused(self) -> set[str]:
        """Modules with a softmax of which something was made, and which multiplied no values."""
        return {name for number, name in self.unused_softmaxes.items() if number in self._left}

    def softmax_used(self, number: int) -> None:
        """Forget a softmax that turned out to be recorded attention."""
        self.unused_softmaxes.pop(number, None)
        self.missed.pop(number, None)

    def values_met(self, number: int, *, over_queries: bool = False) -> None:
        """Remember that what became of a softmax multiplied another activation."""
        place = self.here()
        if place is not None and not in_backward():
            self.missed[number] = place[1], over_queries

    def part_seen(self, number: int) -> None:
        """Remember raised scores of some keys that multiplied values, and where."""
        place = self.here()
        if place is not None and not in_backward():
            self._parts[number] = place[1]

    def parts_used(self, numbers: Iterable[int]) -> None:
        """Forget parts that made recorded attention, or something else."""
        for number in numbers:
            self._parts.pop(number, None)

    def judge_parts(self) -> None:
        """Note modules in which a softmax was missed, or parts of one never became weights."""
        for name, over_queries in dict.fromkeys(self.missed.values()):
            self.unreadable(name, *((OVER_QUERIES, OVER_KEYS) if over_queries else (MISSED, WHOLE)))
        for name, count in Counter(self._parts.values()).items():
            if count > 1:
                self.unreadable(name, ONLINE, ONCE)

    def unreadable(self, name: str, what: str, way_out: str) -> None:
        """Note attention that ran but cannot be captured."""
        failure = Failure(name, what, way_out)
        if failure not in self.failures and not in_backward():
            self.failures.append(failure)

    def flush(self) -> None:
        """Keep what waited to be settled, or for the number of layers to be known."""
        self._take_settled(0)
        waiting, self._pending = self._pending, []
        for numbered in waiting:
            name = numbered.call.name
            if self._settings.layers.wants(numbered.index, name, len(self._order)):
                self._keep(numbered)
        self._keeper.finish()

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

    def _keep(self, numbered: Numbered) -> None:
        call, device_type = numbered.call, numbered.call.output.device.type
        try:
            with quiet(device_type), threads_for(call.shape, device_type):
                layer, unfaithful = self._keeper.layer(
                    call, numbered.index, numbered.repeat, numbered.to_come
                )
        except (ValueError, CaptureError) as error:
            self._problem = error
            return
        except Exception as error:
            self.unreadable(call.name, f"its {call.backend} call failed ({error})", REPORT)
            return
        if unfaithful is not None:
            self.unreadable(call.name, unfaithful, REPORT)
        if not self._settings.keeps:
            self._keeper.finish()
        try:
            self._on_layer(layer)
        except Exception as error:
            self._problem = error

    def _expected(self, name: str, index: int) -> int:
        """How many wanted layers are still to come in this call: modules of the same class."""
        layers, peers = self._settings.layers, self._peers[name]
        if layers.everything and len(peers) == 1:
            return 0
        ran = set(self._order)
        others = [other for other in peers if other not in ran]
        if layers.everything:
            return len(others)
        if layers.tail is not None:
            return min(len(others), layers.tail - 1)
        return sum(layers.wants(index + 1 + i, other) for i, other in enumerate(others))


CHANGED: Final = "its weights or its mask were overwritten before batch and heads were told apart"
IN_PLACE: Final = (
    "Declare num_heads and keep (batch, head, length, size), or do not overwrite them; "
    "strict=False keeps the other layers"
)
MISSED = (
    "a softmax over query and key was computed in it and multiplied values, in a way that gives no "
    "weights over keys"
)
WHOLE = (
    "Call scaled_dot_product_attention, or multiply the whole weights with the values at once; "
    "strict=False keeps the other layers"
)
OVER_QUERIES = (
    "its softmax over query and key ran over the queries: what multiplied the values are no rows "
    "that sum to 1 over the keys"
)
OVER_KEYS = (
    "Normalise over the axis of the keys, the last one of query @ key.mT; where keys are meant to "
    "be shared out among queries, pass strict=False to keep the other layers"
)
ONLINE = (
    "its softmax is computed a few keys at a time, and the parts were not seen to become weights "
    "that sum to 1"
)
ONCE = (
    "Add the parts up and divide by their sum once, call scaled_dot_product_attention, or pass "
    "strict=False to keep the other layers"
)
ELSEWHERE: Final = "its attention ran in another thread than the one that captures"
ONE_THREAD: Final = "Run the model in one thread, or capture its part there with an extractor"
REPORT = (
    "The model computes something beside softmax(query @ key) @ value here; run it in another "
    "backend (model.set_attn_implementation('eager') in transformers), or leave the layer out with "
    "layers="
)
