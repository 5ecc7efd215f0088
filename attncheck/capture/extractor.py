"""`AttentionExtractor`: the attention of a model, captured where the model computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.attention.maps import Tokens
from attncheck.attention.tokens import as_tokens
from attncheck.capture.coverage import Coverage
from attncheck.capture.recorders import RECORDERS
from attncheck.capture.select import HeadChoice, LayerChoice, LayerSelection, checked_heads
from attncheck.capture.session import Session, Settings, module_names
from attncheck.capture.shared import evaluating, uncompiled
from attncheck.errors import CaptureError

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
        device: Where to keep the weights. ``None`` leaves them on the model's device.
        dtype: Convert kept weights. Default: weights that the model makes are kept as they are,
            weights rebuilt for a kernel that shows none are float32 at least.
        strict: Raise `CaptureError` if attention ran that was not captured, or whose ``weights @
            value`` is not what the layer returned. ``False``: warn, and say so in the layer's
            ``status``. Capturing nothing at all raises in any case.
        on_layer: Receives each `LayerAttention` as soon as it is captured; nothing is kept then.

    Raises:
        TypeError: ``model`` is no module, ``layers`` holds neither numbers nor names, or ``heads``
            no numbers.
        ValueError: A name in ``layers`` fits no module.

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
        device: torch.device | str | None = "cpu",
        dtype: torch.dtype | None = None,
        strict: bool = True,
        on_layer: Callable[[LayerAttention], object] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: is {type(model).__name__}; expected a torch.nn.Module")
        self.model = model
        self.strict = strict
        self._heads = checked_heads(heads)
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        self._on_layer = on_layer
        self._selection = self._select(layers)
        self._layers: list[LayerAttention] = []
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
        if self._session is None:
            raise CaptureError(
                "nothing captured yet: use `with AttentionExtractor(model) as extractor: "
                "model(...)`, then extractor.maps, or extractor.get_attention(...)"
            )
        if self._open:
            self._judge()
        if self._on_layer is not None:
            raise CaptureError("maps: layers went to on_layer, none was kept")
        if not self._layers:
            raise CaptureError("maps: the capture failed, see its error")
        try:
            tokens = as_tokens(self.tokens, self._layers)
        except ValueError:
            tokens = None
        return AttentionMaps(self._layers, tokens=tokens)

    @property
    def attention_weights(self) -> list[Tensor]:
        """The weights in `maps` as a plain list; empty before anything was captured."""
        return list(self.maps) if self._layers else []

    @property
    def tokens(self) -> Tokens | None:
        """Token ids of the captured call, where it had ``input_ids`` and was the only one."""
        return None if self._coverage is None else self._coverage.tokens()

    def __enter__(self) -> AttentionExtractor:
        if self._open:
            raise RuntimeError("this AttentionExtractor is already capturing; make a second one")
        self._layers = []
        keep = self._layers.append if self._on_layer is None else self._on_layer
        settings = Settings(
            self._selection, self._heads, self._device, self._dtype, keeps=self._on_layer is None
        )
        self._session = Session(self.model, settings, keep)
        self._coverage = Coverage(self.model, self._session)
        with ExitStack() as stack:
            stack.enter_context(uncompiled())
            stack.enter_context(self._coverage.watching())
            for recorder in RECORDERS:
                stack.enter_context(recorder.installed(self._session))
            self._stack = stack.pop_all()
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        if error is None:
            self._judge()

    def get_attention(self, *args: Any, **kwargs: Any) -> AttentionMaps:
        """Call the model in eval mode without gradients and return its attention.

        Args:
            args: For the model.
            kwargs: For the model.

        Raises:
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
        with evaluating(self.model):
            if not self._open:
                with self:
                    return self.model(*args, **kwargs)
            self._stop()
            self.__enter__()
            output = self.model(*args, **kwargs)
        self._judge()
        return output

    def register_hooks(self, layer_names: Iterable[str] | None = None) -> None:
        """Start capturing until `clear_hooks`, as the ``with`` statement does.

        Args:
            layer_names: Module paths to keep; None: as the extractor was made.
        """
        if layer_names is not None:
            self._selection = self._select(list(layer_names))
        self.__enter__()

    def clear_hooks(self) -> None:
        """Stop capturing and forget what was captured."""
        self._stop()
        self._session = self._coverage = None
        self._layers = []

    def _stop(self) -> None:
        self._open = False
        self._stack.close()

    def _select(self, layers: LayerChoice) -> LayerSelection:
        return LayerSelection(layers, list(module_names(self.model).values()))

    def _judge(self) -> None:
        assert self._session is not None
        assert self._coverage is not None
        self._session.flush()
        self._coverage.judge()
        self._session.finish(strict=self.strict)
