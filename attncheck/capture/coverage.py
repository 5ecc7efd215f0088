"""The count gate: what should have been captured, against what was.

Nothing captured is always an error. Beyond that, modules that look like attention by class are
watched, and one of them raises the alarm only with evidence: it ran, and it computed a softmax of
query and key that was never seen to multiply values, or nothing was captured in it though it was in
another instance of its class. So linear attention, convolutions with "attention" in their name,
routers and pooling layers do not.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from attncheck.capture.recorders.kernels import scripts_called
from attncheck.capture.recorders.scripts import scripts_attention
from attncheck.capture.session import ELSEWHERE, ONE_THREAD, Session
from attncheck.capture.shared import called
from attncheck.capture.whereabouts import is_running
from attncheck.errors import CaptureError

__all__ = ["Coverage"]


SCRIPTED: Final = "is TorchScript that computes attention, where no Python code can be watched"
SCRIPTED_CALL: Final = (
    "calls a TorchScript function that computes attention, which cannot be watched"
)
UNUSED: Final = "its softmax over query and key was not seen to multiply values key by key"
ELSEWHERE_IN_PART: Final = (
    "modules in it ran in another thread than the one that captures, and no attention was seen in "
    "it, unlike in others of its class or as its name says"
)
UNFINISHED: Final = "its call did not finish: an exception ended it half-way, or it still runs"
WHOLE: Final = "Call the model again, or pass strict=False to get the layers before that"
SWITCH: Final = (
    "Attention over part of the matrix only, in chunks or sparse blocks, is not supported: switch "
    "the model to full attention, or pass strict=False to keep the other layers"
)


class Coverage:
    """Watches which modules run in a capture.

    Args:
        model: The captured model.
        session: Its capture.
    """

    def __init__(self, model: nn.Module, session: Session) -> None:
        self._root = getattr(model, "_orig_mod", model)
        self._session = session
        self._names = session.names
        self._ran: set[int] = set()
        self._model_calls = self._returned = 0
        self._watched = [
            module for module in session.modules.modules if _named_attention(type(module).__name__)
        ]
        self._thread = threading.get_ident()
        self._elsewhere: dict[int, nn.Module] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note calls of the model and of modules that look like attention."""
        modules = [self._root, *self._watched]
        calls = called(modules, self._on_call, self._root, self._on_return)
        with calls, scripts_called(self._on_script):
            yield

    def judge(self, *, interrupted: bool = False) -> None:
        """Note modules that ran and were missed, and a call of the model that did not finish.

        Args:
            interrupted: An exception ended the capture.

        Raises:
            CaptureError: Nothing was captured.
        """
        if self._model_calls > self._returned or (interrupted and not self._model_calls):
            self._session.unreadable(self._names[id(self._root)], UNFINISHED, WHOLE)
        for name in self._scripted():
            self._session.unreadable(name, SCRIPTED, "Pass the module that it was made from")
        self._judge_threads()
        self._session.judge_parts()
        if not self._session.captured:
            raise CaptureError(self._nothing())
        captured = self._session.captured
        classes = {type(m) for m in self._watched if self._is(m, captured)}
        unused, left = self._session.unused_softmaxes.values(), self._session.left_unused()
        for module in self._watched:
            name = self._names[id(module)]
            if id(module) not in self._ran:
                continue
            if name in left and name in captured:  # what nothing takes is thrown away
                self._session.unreadable(
                    name, f"of several attentions in it, one: {UNUSED}", SWITCH
                )
            if name in captured or any(_related(name, found) for found in captured):
                continue
            if any(_within(found, name) for found in unused):
                self._session.unreadable(name, UNUSED, SWITCH)
            elif type(module) in classes:
                cause = f"no attention was seen in it, unlike in other {type(module).__name__}"
                self._session.unreadable(name, cause, SWITCH)

    def _is(self, module: nn.Module, names: Collection[str]) -> bool:
        return self._names[id(module)] in names

    def _judge_threads(self) -> None:
        """Note attention that the model ran in a thread of its own."""
        if not self._elsewhere:
            return
        captured = self._session.captured
        classes = {type(m) for m in self._session.modules.modules if self._is(m, captured)}
        for key, module in self._elsewhere.items():
            attends = _named_attention(type(module).__name__) or type(module) in classes
            if attends and key not in self._ran and module is not self._root:
                self._session.unreadable(self._names[key], ELSEWHERE, ONE_THREAD)
        for owner in self._owners_elsewhere():
            name = self._names[id(owner)]
            attends = _named_attention(type(owner).__name__) or type(owner) in classes
            told = [failure.name for failure in self._session.failures]
            if attends and not any(_related(name, found) for found in (*captured, *told)):
                self._session.unreadable(name, ELSEWHERE_IN_PART, ONE_THREAD)

    def _owners_elsewhere(self) -> list[nn.Module]:
        """List modules that did not run in another thread, but had parts of them run there."""
        names = {self._names[key] for key in self._elsewhere}
        return [
            module
            for module in self._session.modules.modules
            if id(module) not in self._elsewhere
            and any(_within(name, self._names[id(module)]) for name in names)
        ]

    def _on_call(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if threading.get_ident() != self._thread:
            # Another thread's own call of the model is its affair.
            if id(module) in self._names and not is_running(self._root):
                self._elsewhere[id(module)] = module
            return
        self._ran.add(id(module))
        if module is self._root:
            self._on_model(args, kwargs)

    def _on_script(self, function: Any) -> None:
        if threading.get_ident() != self._thread or self._session.busy:
            return
        place = self._session.here()
        if place is None or isinstance(place[0], torch.jit.ScriptModule):
            return  # told as a module
        if scripts_attention(function):
            self._session.unreadable(place[1], SCRIPTED_CALL, "Call it without torch.jit.script")

    def _on_return(self) -> None:
        if threading.get_ident() == self._thread:
            self._returned += 1

    def _on_model(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._session.new_model_call()
        self._model_calls += 1
        self._session.sequences.begin(self._root, args, kwargs)

    def _scripted(self) -> list[str]:
        """Names of TorchScript modules that compute attention, the outermost of each."""
        found: list[str] = []
        for module in self._session.modules.modules:
            if not isinstance(module, torch.jit.ScriptModule):
                continue
            name = self._names[id(module)]
            if not any(_within(name, outer) for outer in found) and scripts_attention(module):
                found.append(name)
        return found

    def _nothing(self) -> str:
        if self._session.failures:
            seen = "\n".join(f"  {failure}" for failure in self._session.failures[:6])
            return f"captured no attention; what there is could not be read:\n{seen}"
        if not self._model_calls and not self._ran:
            return (
                "captured no attention: the model was not called while capturing. Call it inside "
                "`with AttentionExtractor(model):`, in the same thread"
            )
        return (
            f"captured no attention in {type(self._root).__name__}: it called neither "
            "scaled_dot_product_attention, nn.MultiheadAttention nor transformers' attention "
            f"interface, and no softmax of query and key multiplied values. {self._likely()}"
        )

    def _likely(self) -> str:
        unused = sorted(set(self._session.unused_softmaxes.values()))
        if unused:
            return f"In {', '.join(unused[:4])}, {UNUSED.removeprefix('its ')}. {SWITCH}"
        names = [self._names[id(module)] for module in self._watched]
        if self._elsewhere and not self._ran - {id(self._root)}:
            return f"{self._names[next(iter(self._elsewhere))]}: {ELSEWHERE}. {ONE_THREAD}"
        if not names:
            return "The model has no attention, or computes it in a compiled or custom kernel"
        return (
            f"Modules that look like attention: {', '.join(names[:4])}. Switch them to a kernel "
            "that torch can see, such as scaled_dot_product_attention"
        )


@functools.lru_cache(maxsize=4096)
def _named_attention(class_name: str) -> bool:
    name = class_name.lower()
    return "attention" in name or "attn" in name


def _related(name: str, other: str) -> bool:
    return _within(name, other) or _within(other, name)


def _within(name: str, ancestor: str) -> bool:
    return name == ancestor or name.startswith(f"{ancestor}.")
