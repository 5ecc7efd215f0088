"""`Tokenizer`: of a Hugging Face model, loaded when first asked; most commands can do without."""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from attncheck.capture import auto_classes, knows_words
from attncheck.cli.problem import CommandError, described

__all__ = ["Tokenizer"]

PARTS: Final = ("token", "vocab", "piece", "merges")
"""One of these is in the name of every file that a tokenizer writes."""

MISSING: Final = "has no tokenizer"


class Tokenizer:
    """The tokenizer that belongs to a model, or the reason why there is none.

    Args:
        name: Of the model, on the hub or a folder.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def found(self) -> bool:
        """Whether there is one that can be loaded."""
        return self._loaded[0] is not None

    def require(self) -> None:
        """Refuse a text before a model is loaded, where it is sure that nobody can read it.

        Where the model itself may be missing, loading it tells more.

        Raises:
            CommandError: The model has no tokenizer; says what to pass instead.
            ImportError: transformers is not installed.
        """
        tokenizer, reason = self._loaded
        folder = Path(self.name)
        sure = (folder / "config.json").is_file() if folder.is_dir() else reason == MISSING
        if tokenizer is None and sure:
            raise self._refused(reason)

    @property
    def longest(self) -> int | None:
        """How many tokens it makes at most, where it says so."""
        limit = getattr(self._loaded[0], "model_max_length", None)
        return int(limit) if limit and limit > 0 else None

    def ids(self, text: str) -> Tensor:
        """Return the ids of a text, ``(1, token)``.

        Raises:
            CommandError: There is no tokenizer; says what to pass instead.
        """
        tokenizer, reason = self._loaded
        if tokenizer is None:
            raise self._refused(reason)
        ids: Tensor = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"].long()
        return ids

    def strings(self, ids: list[int]) -> list[str | int]:
        """Return what ids stand for; the ids themselves where nobody knows."""
        tokenizer = self._loaded[0]
        return [*ids] if tokenizer is None else [*map(str, tokenizer.convert_ids_to_tokens(ids))]

    def _refused(self, reason: str) -> CommandError:
        return CommandError(f"{self.name}: {reason}; pass --tokens with ids such as '1 2 3'")

    @cached_property
    def _loaded(self) -> tuple[Any, str]:
        """The tokenizer, or None and what is wrong."""
        _, tokenizer_class = auto_classes()
        if _has_no_files(Path(self.name)):  # of which transformers makes an empty one for some
            return None, MISSING
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tokenizer = tokenizer_class.from_pretrained(self.name)
        except Exception as error:
            return None, f"its tokenizer cannot be loaded ({described(error)})"
        return (tokenizer, "") if knows_words(tokenizer) else (None, MISSING)


def _has_no_files(folder: Path) -> bool:
    """Whether a folder holds nothing that a tokenizer could have written."""
    if not folder.is_dir():
        return False
    return not any(part in path.name for path in folder.iterdir() for part in PARTS)
