"""`ModelSubject`: a whole model under test, and how to call it, mask it and read its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from attncheck.checks.text import clip_start
from attncheck.checks.window import require_window
from attncheck.model_checks.outputs import OutputChoice, OutputReader

__all__ = ["Kind", "ModelSubject", "Step", "Stream", "SubjectOptions"]

Kind = Literal["decoder", "encoder", "encoder-decoder", "vision", "set", "unknown"]
"""What a model promises: a decoder sees no future, a set has no order."""

Step = Callable[[nn.Module, Tensor, Any], tuple[Any, Any]]
"""``step(model, chunk, cache) -> (output, cache)``, the first cache is None.

The output is the judged tensor, or all that the model returns."""

PADDING_NAMES: Final = ("attention_mask", "key_padding_mask", "padding_mask")
SHORT: Final = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class SubjectOptions(TypedDict, total=False):
    """What a `ModelSubject` cannot find out by itself; all of it is optional.

    Attributes:
        tokens: Argument that carries the sequence: token ids ``(batch, position)`` or vectors
            ``(batch, position, feature)``. Default: the first tensor that looks like one.
        mask: Argument that says which positions are real, ``(batch, position)``; None: there is
            none. Default: ``attention_mask`` or what ends in ``padding_mask``.
        mask_hides: True in the mask marks padding, as in ``torch.nn``. Default: where the name
            ends in ``padding_mask``; elsewhere 1 marks real positions.
        output: Which part of what the model returns: a key, an index, or a function from it to a
            tensor ``(batch, position, ...)``. Default: the first fitting tensor.
        kind: ``"decoder"``, ``"encoder"``, ``"encoder-decoder"``, ``"vision"`` or ``"set"``.
            Default: the configuration's; without one, whether the model is a decoder is inferred
            from its attention for ``no-future-leakage`` alone.
        pad_id: Token id at padded positions. Default: the configuration's, or 0.
        window: Keys that a query of every layer may see, itself included; None: no window.
        segments: Argument that tells packed documents apart: segment ids, or ``"position_ids"``
            that start again at 0.
        step: How to continue from a cache, see `Step`.
        backends: Names of the backends to compare, the reference first.
        name: What messages call the model.
    """

    tokens: str
    mask: str | None
    mask_hides: bool
    output: OutputChoice
    kind: Kind
    pad_id: int
    window: int | None
    segments: str | None
    step: Step | None
    backends: Sequence[str] | None
    name: str


@dataclass(frozen=True)
class Stream:
    """One sequence that goes into a model.

    Attributes:
        name: Argument that carries it.
        mask: Argument that says which of its positions are real, or None.
        mask_hides: Whether True in that mask marks padding.
        positions: Argument for position numbers, or None.
    """

    name: str
    mask: str | None = None
    mask_hides: bool = False
    positions: str | None = None

    def mask_of(self, real: Tensor) -> Tensor:
        """Return the mask argument for bool ``(batch, position)`` of real positions."""
        return ~real if self.mask_hides else real.long()


@dataclass(frozen=True, eq=False)
class ModelSubject:
    """A model and everything a check needs to know about it.

    Hugging Face models need no options, and small inputs are made for them where none are given.

    Args:
        model: Any module.
        inputs: A tensor, a tuple of arguments, or a mapping of arguments by name.
        options: What cannot be found out, see `SubjectOptions`.

    Attributes:
        model: The module.
        inputs: Arguments by name; at least two sequences.
        kind: What it promises.
        stream: The sequence that its output follows.
        source: The other sequence of an encoder-decoder, or None.
        reader: Reads the judged tensor out of the output.
        pad_id: Token id at padded positions.
        special_ids: Token ids that are never replaced.
        window: Keys that a query of every layer may see.
        segments: Argument that tells packed documents apart.
        step: How to continue from a cache.
        backends: Names of the backends to compare.
        name: What messages call the model.
        huggingface: Whether it is a model of transformers.
        measured: What was measured on it already, such as its noise floor.

    Raises:
        TypeError: ``model`` is no module, or ``window`` no integer.
        ValueError: Inputs are missing, or hold no sequence; a kind that there is not; ``window``
            below 1.

    Example:
        >>> encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> subject = ModelSubject.of(encoder, torch.randn(1, 5, 8), kind="encoder")
        >>> subject.stream.name, subject.stream.mask, subject.batch, subject.length
        ('src', 'src_key_padding_mask', 2, 5)
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    kind: Kind
    stream: Stream
    reader: OutputReader
    source: Stream | None = None
    pad_id: int = 0
    special_ids: frozenset[int] = frozenset()
    window: int | None = None
    segments: str | None = None
    step: Step | None = None
    backends: tuple[str, ...] | None = None
    name: str = "model"
    huggingface: bool = False
    measured: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, model: Any, inputs: Any = None, **options: Any) -> ModelSubject:
        """Describe a model; a subject comes back as it is, with options replaced.

        Args:
            model: A module or a subject.
            inputs: For the model; Hugging Face models can do without.
            options: See `SubjectOptions`.
        """
        from attncheck.model_checks.describe import describe

        if isinstance(model, ModelSubject):
            if inputs is None and not options:
                return model
            kept: dict[str, Any] = {"kind": model.kind, "tokens": model.stream.name}
            kept |= {"mask": model.stream.mask, "mask_hides": model.stream.mask_hides}
            kept |= {"output": model.reader.choice, "pad_id": model.pad_id, "name": model.name}
            kept |= {"window": model.window, "segments": model.segments, "step": model.step}
            kept |= {"backends": model.backends}
            given = model.inputs if inputs is None else inputs
            return describe(model.model, given, {**kept, **options})
        return describe(model, inputs, options)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: {self.kind!r}; expected one of {', '.join(get_args(Kind))}")
        if self.window is not None:
            object.__setattr__(self, "window", require_window(self.window))

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return int(self.inputs[self.stream.name].shape[0])

    @property
    def length(self) -> int:
        """Number of positions of the stream that the output follows."""
        return int(self.inputs[self.stream.name].shape[1])

    @property
    def is_sequence(self) -> bool:
        """Whether the stream has positions that can be replaced and padded."""
        return self.sequential(self.stream)

    @property
    def causal(self) -> bool:
        """Whether the model promises to see no future."""
        return self.kind in ("decoder", "encoder-decoder")

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the model's parameters, or of its inputs where it has none."""
        held = [*self.model.parameters(), *self.inputs.values()]
        floating = [t for t in held if isinstance(t, Tensor) and t.is_floating_point()]
        return floating[0].dtype if floating else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        held: Tensor = self.inputs[self.stream.name]
        return held.device

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of the model's forward."""
        return inspect.signature(getattr(self.model, "_orig_mod", self.model).forward).parameters

    def sequential(self, stream: Stream) -> bool:
        """Whether a stream is token ids ``(batch, position)`` or vectors for each position."""
        held = self.inputs[stream.name]
        return held.ndim == 2 + held.is_floating_point() and self.kind != "vision"

    def accepts(self, name: str) -> bool:
        """Whether forward takes an argument by this name."""
        if name in self.parameters:
            return True
        rest = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.parameters.values())
        return self.huggingface and rest

    def having(self, **changes: Any) -> ModelSubject:
        """Return the subject with other inputs: named ones replaced, None removes one."""
        inputs = {**self.inputs, **changes}
        return replace(self, inputs={k: v for k, v in inputs.items() if v is not None})

    def describe(self) -> str:
        """Say dtype, shape of the stream, kind and backend in one line."""
        held = self.inputs[self.stream.name]
        shape = ",".join(str(size) for size in held.shape)
        dtype = str(self.dtype).removeprefix("torch.")
        backend = getattr(getattr(self.model, "config", None), "_attn_implementation", None)
        words = [f"{SHORT.get(dtype, dtype)}, {clip_start(self.stream.name, 24)}[{shape}]"]
        words += [self.kind] if self.kind != "unknown" else []
        words += [str(backend)] if backend else []
        return ", ".join(words)
