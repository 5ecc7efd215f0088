"""`AttentionExtractor`: the attention of a model, captured where the model computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.attention.maps import Tokens
from attncheck.attention.tokens import as_tokens
from attncheck.capture.arguments import as_meant
from attncheck.capture.coverage import Coverage
from attncheck.capture.keeping import (
    Settings,
    Store,
    checked_device,
    checked_dtype,
    checked_store,
)
from attncheck.capture.memory import SHARE, checked_limit
from attncheck.capture.modules import ModuleTable, module_names, require_module
from attncheck.capture.profiler import Evaluator, Profiler
from attncheck.capture.recorders import RECORDERS
from attncheck.capture.select import HeadChoice, LayerChoice, LayerSelection, checked
from attncheck.capture.session import Session
from attncheck.capture.shared import evaluating, uncompiled
from attncheck.errors import CaptureError
from attncheck.evaluate import profile_layer
from attncheck.profile import HeadProfile

__all__ = ["AttentionExtractor"]


class AttentionExtractor:
    """Captures attention weights of any PyTorch model, in the backend that the model runs.

    Works as a context manager around calls of the model, through `get_attention`, or with
    `register_hooks`. The model's weights, mode, configuration, hooks and random state are left as
    they were, also after an exception. Its output under capture is bitwise what it was, with one
    exception: ``nn.MultiheadAttention`` and ``nn.TransformerEncoder`` leave their fused inference
    path, which differs in the last bits and returns zeros at padded positions. A compiled model
    runs eagerly while it is watched. Gradient checkpointing is captured once, not again in the
    backward pass.

    Args:
        model: Any module that computes ``softmax(query @ key) @ value`` somewhere: through
            transformers' attention interface, ``scaled_dot_product_attention``,
            ``nn.MultiheadAttention``, or by itself.
        layers: Which layers to keep: indices in execution order (negative counts from the end),
            a slice or range, module paths (a path selects all below it), patterns such as
            ``"encoder.*"``, or a list of those. Default: all.
        heads: Head numbers to keep in each layer. Default: all.
        queries: Query numbers to keep in each layer, such as ``-1`` for the last token or
            ``slice(0, 8)``. Only their weights are made. Default: all.
        store: ``"weights"``. ``"qk"``: what they are made from, see `QueryKey`, linear in the
            length; weights are made anew whenever nobody holds them. ``"profile"``: each layer is
            measured and dropped, see `profile`. Layers whose weights the model makes itself from
            what nobody sees hold those under ``"qk"``, and their ``note`` says so.
        device: Where to keep them; from CUDA to the CPU they are copied in the background. ``None``
            leaves them on the model's device.
        dtype: Convert kept weights. Default: weights that the model makes are kept as they are,
            weights rebuilt for a kernel that shows none are float32 at least.
        memory_limit: What may be held: a share of the free memory (a float up to 1), bytes (an
            int), or None for any. A capture that would need more is refused at its first layer.
        strict: Raise `CaptureError` if attention ran that was not captured, or whose ``weights @
            value`` is not what the layer returned. ``False``: warn, and say so in the layer's
            ``status``. Capturing nothing at all raises in any case.
        on_layer: Receives each `LayerAttention` as soon as it is captured; nothing is kept then.
        evaluator: Measures a layer for ``store="profile"``, see `profile_model`.

    Raises:
        TypeError: ``model`` is no module, ``layers`` holds neither numbers nor names, or ``heads``
            or ``queries`` no numbers, or ``on_layer`` or ``evaluator`` is no function.
        ValueError: A name in ``layers`` fits no module; ``device`` does not exist; ``dtype`` is
            none of float64, float32, float16 and bfloat16; ``store`` or ``memory_limit`` is none.

    Example:
        >>> from torch import nn
        >>> encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> with AttentionExtractor(encoder) as extractor:
        ...     output = encoder(torch.ones(1, 5, 8))
        >>> extractor.maps
        AttentionMaps(1 layer, 2 heads, float32)
        >>> extractor.maps.names
        ('self_attn',)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: LayerChoice = None,
        *,
        heads: HeadChoice = None,
        queries: HeadChoice = None,
        store: Store = "weights",
        device: torch.device | str | None = "cpu",
        dtype: torch.dtype | None = None,
        memory_limit: float | None = SHARE,
        strict: bool = True,
        on_layer: Callable[[LayerAttention], object] | None = None,
        evaluator: Evaluator = profile_layer,
    ) -> None:
        require_module(model)
        self.model = model
        self.strict = strict
        self._store = checked_store(store)
        if on_layer is not None and not callable(on_layer):
            raise TypeError(f"on_layer: {on_layer!r}; expected a function of a layer, or None")
        self._on_layer = on_layer
        self._evaluator = evaluator
        measured = store == "profile"
        self._settings = Settings(
            self._select(layers),
            heads=checked(heads, "heads"),
            queries=checked(queries, "queries"),
            device=None if measured else checked_device(device),
            dtype=checked_dtype(dtype),
            store=self._store,
            memory_limit=checked_limit(memory_limit),
            keeps=not measured and on_layer is None,
            scratch=not measured or queries is not None,
        )
        self._layers: list[LayerAttention] = []
        self._profiler = Profiler(evaluator)
        self._interrupted = False
        self._session: Session | None = None
        self._coverage: Coverage | None = None
        self._stack = ExitStack()
        self._open = False

    @property
    def maps(self) -> AttentionMaps:
        """What was captured since the context was entered.

        Raises:
            CaptureError: Nothing was captured, or ``strict`` and not all of it faithfully.
        """
        self._require_whole()
        if self._on_layer is not None:
            raise CaptureError("maps: layers went to on_layer, none was kept")
        if self._store == "profile":
            raise CaptureError("maps: store='profile' keeps none, see extractor.profile")
        if not self._layers:
            raise CaptureError("maps: the capture failed, see its error")
        own = [layer for layer in self._layers if layer.kind != "cross"]
        read = {self.tokens_of(layer) for layer in own} or {self.tokens}
        try:
            tokens = as_tokens(read.pop(), self._layers) if len(read) == 1 else None
        except ValueError:
            tokens = None
        return AttentionMaps(self._layers, tokens=tokens)

    @property
    def profile(self) -> HeadProfile:
        """The measures of all captured heads, where ``store="profile"``.

        Raises:
            CaptureError: Nothing was captured, or ``strict`` and not all of it faithfully.
        """
        self._require_whole()
        if self._store != "profile" or self._on_layer is not None:
            raise CaptureError(
                f"profile: store={self._store!r} measures nothing; use profile_attention("
                "extractor.maps), or store='profile' without on_layer"
            )
        return self._profiler.profile()

    @property
    def attention_weights(self) -> list[Tensor]:
        """The weights in `maps` as a plain list; empty before anything was captured."""
        return list(self.maps) if self._layers else []

    @property
    def tokens(self) -> Tokens | None:
        """Token ids of the captured call, where it had ``input_ids`` and was the only one."""
        return None if self._session is None else self._session.sequences.tokens()

    def tokens_of(self, layer: LayerAttention) -> Tokens | None:
        """Token ids that a layer of self-attention reads; None: none, as in a vision tower.

        Args:
            layer: One of the captured layers.
        """
        return None if self._session is None else self._session.sequences.tokens(layer.name)

    def __enter__(self) -> AttentionExtractor:
        self._start(ModuleTable.of(self.model))
        return self

    def _start(self, modules: ModuleTable) -> None:
        if self._open:
            raise RuntimeError("this AttentionExtractor is already capturing; make a second one")
        self._layers = []
        self._profiler = Profiler(self._evaluator)
        self._interrupted = False
        settings = replace(self._settings, compiled=tuple(_compiled(modules)))
        self._session = Session(self.model, settings, self._on_layer or self._keep, modules)
        self._coverage = Coverage(self.model, self._session)
        with ExitStack() as stack:
            stack.enter_context(uncompiled())
            stack.enter_context(self._coverage.watching())
            for recorder in RECORDERS:
                stack.enter_context(recorder.installed(self._session))
            self._stack = stack.pop_all()
        self._open = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        self._interrupted = error is not None
        if error is None:
            self._judge()

    def get_attention(self, *args: Any, **kwargs: Any) -> AttentionMaps:
        """Call the model in eval mode without gradients and return its attention.

        Args:
            args: For the model; ``(input_ids, attention_mask)`` also for models that take a cache
                in the second place.
            kwargs: For the model.

        Raises:
            TypeError: The inputs are one mapping; pass ``**inputs``.
            CaptureError: No attention was captured, or ``strict`` and not all of it faithfully.
        """
        self.watch(*args, **kwargs)
        return self.maps

    def watch(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model as `get_attention` does, and return what the model returns.

        While hooks are registered, or inside ``with``, a fresh record is started and capturing
        goes on afterwards.

        Args:
            args: For the model.
            kwargs: For the model.

        Raises:
            CaptureError: No attention was captured, or ``strict`` and not all of it faithfully.
        """
        args, kwargs = as_meant(self.model, args, kwargs)
        modules = ModuleTable.of(self.model)
        with evaluating(self.model, modules), ExitStack() as stack:
            going_on = self._open
            self._stop()
            self._start(modules)
            if not going_on:
                stack.push(self)
            output = self.model(*args, **kwargs)
        if going_on:
            self._judge()
        return output

    def register_hooks(self, layer_names: Iterable[str] | None = None) -> None:
        """Start capturing until `clear_hooks`, as the ``with`` statement does.

        Args:
            layer_names: Module paths to keep, or one; None: as the extractor was made.

        Raises:
            TypeError: They are no names.
            ValueError: A name fits no module.
        """
        if isinstance(layer_names, str):
            layer_names = [layer_names]
        if layer_names is not None:
            if not isinstance(layer_names, Iterable):
                raise TypeError(f"layer_names: {layer_names!r}; expected module paths, or None")
            self._settings = replace(self._settings, layers=self._select(list(layer_names)))
        self.__enter__()

    def clear_hooks(self) -> None:
        """Stop capturing and forget what was captured."""
        self._stop()
        self._session = self._coverage = None
        self._layers = []

    def _keep(self, layer: LayerAttention) -> None:
        if self._store == "profile":
            self._profiler.take(layer, self.tokens_of(layer))
        else:
            self._layers.append(layer)

    def _require_whole(self) -> None:
        """Raise unless there was a capture, and it was whole or may be less."""
        if self._session is None:
            raise CaptureError(
                "nothing captured yet: use `with AttentionExtractor(model) as extractor: "
                "model(...)`, then extractor.maps, or extractor.get_attention(...)"
            )
        if self._open or self._interrupted:
            self._judge()

    def _stop(self) -> None:
        self._open = False
        self._stack.close()

    def _select(self, layers: LayerChoice) -> LayerSelection:
        names = [] if layers is None else list(module_names(self.model).values())
        return LayerSelection(layers, names)

    def _judge(self) -> None:
        assert self._session is not None
        assert self._coverage is not None
        try:
            self._session.flush()
            self._coverage.judge(interrupted=self._interrupted)
            self._session.finish(strict=self.strict)
        except Exception:
            self._layers = []  # what a failed capture left is not to be taken for a whole one
            raise


def _compiled(modules: ModuleTable) -> Iterator[str]:
    """Yield the paths of modules that `torch.compile` wrapped or compiled in place."""
    for module in modules.modules:
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            yield "" if module is modules.modules[0] else f"{modules.names[id(module)]}."
