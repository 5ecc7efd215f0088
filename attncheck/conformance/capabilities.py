"""What an implementation supports: declared by its author, or probed.

An implementation refuses an input by raising ``NotImplementedError``, ``ValueError`` or
``TypeError``, or torch's own words for it in a ``RuntimeError`` ("not implemented", "No available
kernel"): that input counts as unsupported and the report lists it. A refusal of what the author
declared as supported is a failure, and so is an implementation that refuses everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from attncheck.conformance.case import Case

__all__ = ["Capabilities", "is_refusal"]

TORCH_WORDS = re.compile(
    r"not implemented|not supported|unsupported|does not support|doesn't support"
    r"|No available kernel|on Tensor that requires grad|should not be set when is_causal"
    r"|only supports?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Capabilities:
    """What an attention implementation supports; ``None`` means "find out by asking".

    Args:
        dtypes: Names of supported dtypes, such as ``("float32", "bfloat16")``.
        ranks: Numbers of dimensions of query, key and value.
        gqa: Fewer key-value heads than query heads (``enable_gqa=True``).
        mask: ``"none"``, ``"bool"``, ``"float"`` or ``"both"``.
        causal: ``is_causal=True``.
        rectangular: Different numbers of queries and keys.
        mask_with_causal: A mask together with ``is_causal=True``; torch's documentation forbids it.
        scale: Any ``scale`` but the default.
        value_size: A head size of value that differs from that of query and key.
        dropout: ``dropout_p`` above 0.
        gradients: Gradients of the output.
        strided: Inputs that are not contiguous.
        empty: Axes of size 0.
        max_size: Largest head size.

    Example:
        >>> Capabilities(gqa=False, mask="bool").allows(Case(mask="float"))
        'mask="bool"'
    """

    dtypes: Sequence[str] | None = None
    ranks: Sequence[int] | None = None
    gqa: bool | None = None
    mask: str | None = None
    causal: bool | None = None
    rectangular: bool | None = None
    mask_with_causal: bool | None = None
    scale: bool | None = None
    value_size: bool | None = None
    dropout: bool | None = None
    gradients: bool | None = None
    strided: bool | None = None
    empty: bool | None = None
    max_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse a misspelt value rather than ignore it."""
        if self.mask not in (None, "none", "bool", "float", "both"):
            raise ValueError(f"mask: expected none, bool, float or both, got {self.mask!r}")
        for name, held in (("dtypes", self.dtypes), ("ranks", self.ranks)):
            if held is not None and (isinstance(held, str) or not isinstance(held, Iterable)):
                raise TypeError(f"{name}: expected a list, got {held!r}")
        for dtype in self.dtypes or ():
            if dtype not in ("float64", "float32", "float16", "bfloat16"):
                raise ValueError(f"dtypes: {dtype!r} is no floating dtype's name")

    def and_also(self, other: Capabilities) -> Capabilities:
        """Return these declarations, completed by another's where these say nothing."""
        mine = {name: value for name, value in vars(self).items() if value is not None}
        return Capabilities(**{**vars(other), **mine})

    def allows(self, case: Case) -> str:
        """Return the declaration that excludes a case, or an empty string."""
        needs = {
            "gqa": case.gqa,
            "causal": case.causal,
            "rectangular": case.n_query != case.n_key,
            "mask_with_causal": case.causal and case.mask != "none",
            "scale": case.scale != "default",
            "value_size": case.size != case.value_size,
            "gradients": case.grad,
            "strided": case.layout != "contiguous" or case.mask_layout != "contiguous",
            "empty": 0 in (case.batch, case.kv_heads, case.n_query, case.n_key, case.value_size),
        }
        for name, needed in needs.items():
            if needed and getattr(self, name) is False:
                return f"{name}=False"
        if self.dtypes is not None and case.dtype not in self.dtypes:
            return f"dtypes={tuple(self.dtypes)}"
        if self.ranks is not None and case.rank not in self.ranks:
            return f"ranks={tuple(self.ranks)}"
        if self.max_size is not None and max(case.size, case.value_size) > self.max_size:
            return f"max_size={self.max_size}"
        if self.mask not in (None, "both") and case.mask not in ("none", self.mask):
            return f'mask="{self.mask}"'
        return ""

    def promises(self, case: Case, *, dropout: bool = False) -> str:
        """Return the declaration that a refusal of this case would break, or an empty string.

        A plain case, that uses nothing but what is declared, must not be refused either.

        Args:
            case: What was refused.
            dropout: Whether it was called with dropout.
        """
        if dropout:
            square = replace(case, n_key=case.n_query)
            return "dropout=True" if self.dropout and self._is_plain_but(square, "") else ""
        declared = {
            "gqa": case.gqa,
            "causal": case.causal and case.mask == "none",
            "gradients": case.grad,
        }
        for name, used in declared.items():
            if used and getattr(self, name) is True and self._is_plain_but(case, name):
                return f"{name}=True"
        if self.dtypes is not None and case.dtype in self.dtypes and self._is_plain_but(case, ""):
            return f"dtypes={tuple(self.dtypes)}"
        if self.mask in (case.mask, "both") and self._is_plain_but(case, "mask"):
            return f'mask="{self.mask}"'
        return ""

    @staticmethod
    def _is_plain_but(case: Case, name: str) -> bool:
        uses = {
            "gqa": case.gqa,
            "causal": case.causal,
            "mask": case.mask != "none",
            "gradients": case.grad,
            "other": case.rank != 4
            or case.layout != "contiguous"
            or case.mask_layout != "contiguous"
            or case.scale != "default"
            or case.n_query != case.n_key
            or case.size != case.value_size
            or case.size % 8 != 0,
        }
        return not any(used for use, used in uses.items() if use != name)


def is_refusal(error: BaseException) -> bool:
    """Whether an exception says clearly "this input is not supported".

    Example:
        >>> is_refusal(NotImplementedError("no GQA")), is_refusal(IndexError("tuple index"))
        (True, False)
    """
    if isinstance(error, NotImplementedError | ValueError | TypeError):
        return True
    return isinstance(error, RuntimeError) and bool(TORCH_WORDS.search(str(error)))
