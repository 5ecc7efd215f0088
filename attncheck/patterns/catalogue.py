"""`PATTERNS`: the catalogue. A new pattern is one entry in one of the files imported here."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from attncheck.patterns.columns import BROADCAST, FIRST_TOKEN, UNIFORM
from attncheck.patterns.pattern import Pattern, Verdict
from attncheck.patterns.positional import DIAGONAL, LOCAL, NEXT_TOKEN, OFFSET, PREVIOUS_TOKEN
from attncheck.patterns.tokenwise import BLOCK, DELIMITER, DUPLICATE_TOKEN, INDUCTION
from attncheck.patterns.verdicts import HETEROGENEOUS, MIXED, UNDETERMINED

__all__ = ["PATTERNS", "VERDICTS", "canonical_name"]

_ENTRIES: Final = (
    DIAGONAL,
    PREVIOUS_TOKEN,
    NEXT_TOKEN,
    OFFSET,
    LOCAL,
    FIRST_TOKEN,
    BROADCAST,
    BLOCK,
    UNIFORM,
    DUPLICATE_TOKEN,
    INDUCTION,
    DELIMITER,
)

PATTERNS: Final[Mapping[str, Pattern]] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every pattern by its canonical name."""

VERDICTS: Final[Mapping[str, Verdict]] = MappingProxyType(
    {entry.name: entry for entry in (MIXED, HETEROGENEOUS, UNDETERMINED)}
)
"""Every verdict that is not a pattern, by name."""

_NAMED: Final[tuple[Pattern | Verdict, ...]] = (*_ENTRIES, *VERDICTS.values())

_CANONICAL: Final[dict[str, str]] = {
    name: entry.name for entry in _NAMED for name in (entry.name, *entry.aliases)
}


def canonical_name(name: str) -> str:
    """Return the one name of a pattern or verdict.

    Args:
        name: The canonical name or an alias; case, hyphens and blanks do not matter.

    Raises:
        ValueError: Nothing is called so.

    Example:
        >>> canonical_name("BOS"), canonical_name("vertical"), canonical_name("self")
        ('first_token', 'broadcast', 'diagonal')
    """
    key = name.strip().lower().replace("-", "_").replace(" ", "_") if isinstance(name, str) else ""
    if key not in _CANONICAL:
        near = get_close_matches(key, _CANONICAL, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"pattern: unknown name {name!r}; expected one of {', '.join(PATTERNS)}, or a verdict: "
            f"{', '.join(VERDICTS)}{meant}"
        )
    return _CANONICAL[key]
