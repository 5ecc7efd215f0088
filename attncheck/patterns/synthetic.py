"""`create_synthetic_attention`: a valid attention matrix of any pattern of the catalogue."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Generator, Tensor

from attncheck.attention.arguments import whole_number
from attncheck.attention.placement import device_of, floating_dtype
from attncheck.patterns.catalogue import PATTERNS, VERDICTS, canonical_name
from attncheck.patterns.grid import Grid, encode_tokens, is_delimiter, tokens_with_repeats
from attncheck.patterns.noise import NOISES
from attncheck.patterns.pattern import STRENGTH, Option, Pattern, normalise
from attncheck.patterns.verdicts import mixture

__all__ = ["create_synthetic_attention"]


def create_synthetic_attention(
    seq_len: int,
    pattern: str = "diagonal",
    noise_level: float = 0.05,
    *,
    causal: bool = False,
    batch: int | None = None,
    heads: int | None = None,
    tokens: Any = None,
    delimiters: Any = None,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    noise: Literal["uniform", "dirichlet", "logit"] = "uniform",
    **pattern_options: Any,
) -> Tensor:
    """Build attention weights that follow a pattern.

    Rows are never negative and sum to 1 within the tolerance of the dtype. A row whose keys do
    not exist (row 0 of ``previous_token``, a token that never occurred before) is spread evenly
    over the keys it sees. All randomness comes from a generator of its own, on the CPU: a seed
    gives the same weights on every device, and torch's global state is left alone.

    Args:
        seq_len: Number of queries and of keys, at least 1.
        pattern: A name of `PATTERNS` or an alias, or ``"mixed"`` or ``"heterogeneous"``.
        noise_level: For ``uniform`` and ``dirichlet`` noise the share of the mass that is noise,
            0 to 1, whatever the length; for ``logit`` noise the standard deviation of the logits.
        causal: Queries see no later key.
        batch: Size of the batch dimension; None: there is none.
        heads: Size of the head dimension; None: there is none (1 if there is a batch).
        tokens: For ``duplicate_token``, ``induction``, ``delimiter``: strings or ids, ``(key,)``
            or ``(batch, key)``. Default: `tokens_with_repeats(seq_len)
            <attncheck.patterns.tokens_with_repeats>`; for ``delimiter`` every fourth token is one.
        delimiters: For ``delimiter``: which tokens are. Default: punctuation and separators.
        seed: Seeds the noise; None: seeded from the operating system.
        dtype: Default: ``torch.get_default_dtype()``. Weights are computed in float64.
        device: Default: torch's default device.
        noise: Kind of noise, see `attncheck.patterns.NOISES`.
        **pattern_options: ``strength``, the share of the mass on the pattern before noise (the
            rest is even), and the options of the pattern: ``offset``; ``width``, ``decay`` of
            ``local``; ``column`` of ``broadcast``; ``segments`` or ``cuts`` of ``block``;
            ``patterns``, ``weights`` of ``mixed``; ``keys`` of ``heterogeneous``.

    Returns:
        ``(query, key)``, ``(heads, query, key)`` or ``(batch, heads, query, key)``.

    Raises:
        TypeError: A number that is none, or ``dtype`` is no dtype.
        ValueError: An unknown name or option, a value outside its range, ``next_token`` with
            ``causal=True``, a ``dtype`` without fractions, or a ``device`` that is not there.

    Example:
        >>> weights = create_synthetic_attention(4, "previous_token", 0, causal=True)
        >>> weights.tolist()[2]
        [0.0, 1.0, 0.0, 0.0]
        >>> create_synthetic_attention(6, "bos", heads=3, batch=2, seed=1).shape
        torch.Size([2, 3, 6, 6])
    """
    name = canonical_name(pattern)
    seq_len = whole_number(seq_len, "seq_len", low=1)
    batch = None if batch is None else whole_number(batch, "batch", low=1)
    heads = None if heads is None else whole_number(heads, "heads", low=1)
    _check_noise(noise_level, noise)
    dtype, device = floating_dtype(dtype), device_of(device)
    options = _options(name, pattern_options)
    strength = options.pop("strength")
    grid = _grid(name, seq_len, causal, tokens, delimiters, batch)
    generator = _generator(seed)
    shape = (batch or 1, heads or 1, seq_len, seq_len)
    weights = _target(name, grid, shape, generator, options).expand(shape)
    weights = strength * weights + (1 - strength) * normalise(weights * 0, grid.visible)
    if noise_level > 0:
        weights = NOISES[noise](weights, grid.visible, noise_level, generator)
    weights = weights.to(dtype).to(device)
    if batch is None:
        weights = weights[0] if heads is not None else weights[0, 0]
    return weights.clone() if noise_level == 0 else weights


def _generator(seed: int | None) -> Generator:
    generator = Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(whole_number(seed, "seed", low=-(2**63), high=2**64 - 1))
    return generator


def _check_noise(noise_level: float, noise: str) -> None:
    if noise not in NOISES:
        raise ValueError(f"noise: unknown kind {noise!r}; expected one of {', '.join(NOISES)}")
    top = float("inf") if noise == "logit" else 1.0
    if not 0 <= noise_level <= top:
        meaning = "a standard deviation >= 0" if noise == "logit" else "a share from 0 to 1"
        raise ValueError(f"noise_level: {noise_level!r}; expected {meaning}")


def _options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return all options of the pattern, checked, defaults filled in."""
    known: dict[str, Option] = {"strength": STRENGTH}
    entry = PATTERNS.get(name) or VERDICTS[name]
    known |= {option.name: option for option in entry.options}
    for option, value in given.items():
        if option not in known:
            raise ValueError(
                f"{option}: unknown option for pattern {name!r}; expected one of "
                f"{', '.join(known)}, or an argument of create_synthetic_attention"
            )
        given[option] = known[option].checked(value, name)
    return {option.name: given.get(option.name, option.default) for option in known.values()}


def _grid(
    name: str, seq_len: int, causal: bool, tokens: Any, delimiters: Any, batch: int | None
) -> Grid:
    positions = torch.arange(seq_len)
    visible = torch.ones(1, 1, seq_len, seq_len, dtype=torch.bool)
    if causal:
        visible = visible.tril()
    rows = _token_rows(seq_len, tokens, batch)
    if tokens is None and delimiters is None:
        marks: Tensor | None = (positions % 4 == min(3, seq_len - 1))[None]
    else:
        marks = is_delimiter(rows, delimiters)
        if marks is None and name == "delimiter":
            raise ValueError("delimiters: tokens are ids; say which of them are delimiters")
    return Grid(visible, positions, True, causal, encode_tokens(rows), None, marks)


def _token_rows(seq_len: int, tokens: Any, batch: int | None) -> list[list[Any]]:
    if tokens is None:
        return [tokens_with_repeats(seq_len)]
    if isinstance(tokens, str):
        raise ValueError(f"tokens: got one string {tokens[:20]!r}; expected a list of tokens")
    listed = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    rows = [list(r) for r in listed] if listed and isinstance(listed[0], list | tuple) else [listed]
    for row in rows:
        if len(row) != seq_len:
            raise ValueError(f"tokens: {len(row)} tokens for seq_len {seq_len}")
    if len(rows) not in (1, batch or 1):
        raise ValueError(f"tokens: {len(rows)} sequences for batch {batch}")
    return rows


def _target(
    name: str, grid: Grid, shape: tuple[int, ...], generator: Generator, options: dict[str, Any]
) -> Tensor:
    if name in PATTERNS:
        return _pattern_target(PATTERNS[name], grid, options)
    if name == "mixed":
        parts = [canonical_name(part) for part in options["patterns"]]
        defaults = [_options(part, {}) for part in parts]
        targets = [
            _target(
                part, grid, shape, generator, {k: v for k, v in held.items() if k != "strength"}
            )
            for part, held in zip(parts, defaults, strict=True)
        ]
        return mixture([target.expand(shape) for target in targets], options["weights"])
    target = VERDICTS[name].target
    if target is None:
        raise ValueError(f"pattern: {name!r} is a verdict about too little data; none can be built")
    return target(grid, shape, generator, **options)


def _pattern_target(pattern: Pattern, grid: Grid, options: dict[str, Any]) -> Tensor:
    if grid.causal and pattern.direction == "bidirectional":
        raise ValueError(
            f"causal: {pattern.name} looks at a later key, which causal attention hides; "
            "use causal=False"
        )
    offset = options.get("offset")
    if grid.causal and offset is not None and offset < 0:
        raise ValueError(f"offset: {offset} looks ahead, which causal attention hides")
    return pattern.target(grid, **options)
