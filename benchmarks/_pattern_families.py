"""Generators that know nothing of attncheck, to judge its detector; and the classic ones.

`JUDGES` draws matrices of every pattern from softmax logits, additive mixtures, Dirichlet rows,
jittered targets, bands of five shapes, unequal blocks, decaying sinks and dominated mixtures. It
shares no code with `attncheck.create_synthetic_attention`. `CLASSIC` are six generators that
tutorials on attention plots use, together with the detector that goes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

__all__ = [
    "CLASSIC",
    "JUDGES",
    "Case",
    "add_noise",
    "classic_case",
    "classic_detector",
    "classic_signal",
    "judge_case",
]

Matrix: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """One matrix and what it should be called."""

    weights: Matrix
    label: str
    causal: bool
    noise: str
    tokens: list[str] | None = None

    @property
    def n(self) -> int:
        return len(self.weights)


@dataclass(frozen=True, eq=False)
class _Frame:
    """What a judge draws from: a length, a direction, random numbers."""

    n: int
    causal: bool
    rng: Generator

    @property
    def visible(self) -> NDArray[np.bool_]:
        seen = np.ones((self.n, self.n), dtype=bool)
        return np.tril(seen) if self.causal else seen

    @property
    def distance(self) -> NDArray[np.int64]:
        place = np.arange(self.n)
        return place[:, None] - place[None, :]

    def rows(self, weights: Matrix) -> Matrix:
        """Hide what is hidden, scale rows to 1; an empty row looks at everything it sees."""
        held = np.where(self.visible, weights, 0.0)
        empty = held.sum(1, keepdims=True) <= 0
        held = np.where(empty, self.visible, held)
        return np.asarray(held / held.sum(1, keepdims=True))

    def softmax(self, logits: Matrix) -> Matrix:
        held = np.where(self.visible, logits, -np.inf)
        return self.rows(np.exp(held - held.max(1, keepdims=True)))

    def background(self) -> Matrix:
        """What a head does besides its pattern: nothing in particular."""
        even = self.rows(np.ones((self.n, self.n)))
        if self.rng.random() < 0.5:
            return even
        return self.rows(self.rng.gamma(self.rng.uniform(1, 6), size=(self.n, self.n)))

    def blend(self, target: Matrix, low: float = 0.25, high: float = 1.0) -> Matrix:
        """Give a target a random share of the mass; by rows alike, or varying between rows."""
        share = self.rng.uniform(low, high)
        if self.rng.random() < 0.3:
            rows = share + self.rng.uniform(-0.15, 0.15, size=(self.n, 1))
            return self.mix(target, np.clip(rows, 0.1, 1))
        return self.mix(target, share)

    def mix(self, target: Matrix, share: Any) -> Matrix:
        return np.asarray(share * self.rows(target) + (1 - share) * self.background())

    def one_hot(self, keys: NDArray[np.int64]) -> Matrix:
        """Rows that look at one key each; keys outside the sequence or hidden: nothing."""
        target = np.zeros((self.n, self.n))
        rows = np.flatnonzero((keys >= 0) & (keys < self.n))
        target[rows, keys[rows]] = 1
        return target

    def sharpened(self, target: Matrix) -> Matrix:
        """Softmax whose logit on the target gives it a random mass, with noise in the logits."""
        share = self.rng.uniform(0.3, 0.97)
        others = np.maximum(self.visible.sum(1, keepdims=True) - 1, 1)
        height = np.log(share / (1 - share) * others)
        noise = self.rng.normal(0, self.rng.uniform(0, 0.8), size=(self.n, self.n))
        return self.softmax(height * (target > 0) + noise)

    def single(self, keys: NDArray[np.int64]) -> Matrix:
        """A head that looks at one key a row, drawn in one of three ways."""
        way = self.rng.integers(3)
        if way == 0:
            return self.sharpened(self.one_hot(keys))
        if way == 1:
            jitter = self.rng.random(self.n) < self.rng.uniform(0, 0.12)
            step = self.rng.choice([-1, 1], size=self.n)
            return self.blend(self.one_hot(np.where(jitter, keys + step, keys)), 0.4)
        return self.blend(self.one_hot(keys))


def _diagonal(frame: _Frame) -> Matrix:
    return frame.single(np.arange(frame.n))


def _previous(frame: _Frame) -> Matrix:
    return frame.single(np.arange(frame.n) - 1)


def _next(frame: _Frame) -> Matrix:
    return frame.single(np.arange(frame.n) + 1)


def _offset(frame: _Frame) -> Matrix:
    step = int(frame.rng.integers(2, max(3, frame.n // 2)))
    if not frame.causal and frame.rng.random() < 0.5:
        step = -step
    return frame.single(np.arange(frame.n) - step)


def _local(frame: _Frame) -> Matrix:
    apart = np.abs(frame.distance).astype(float)
    widest = max(1, min(8, frame.n // 4))
    shape = frame.rng.integers(5)
    if shape == 0:
        band = (apart <= frame.rng.integers(1, widest + 1)).astype(float)
    elif shape == 1:
        band = frame.rng.uniform(0.6, 0.85) ** apart
    elif shape == 2:
        band = np.exp(-0.5 * (apart / frame.rng.uniform(1.0, max(1.2, widest / 2))) ** 2)
    elif shape == 3:
        band = np.maximum(0, 1 - apart / (1 + frame.rng.integers(2, widest + 2)))
    else:
        return frame.softmax(
            -frame.rng.uniform(0.2, 0.6) * apart
            + frame.rng.normal(0, frame.rng.uniform(0, 0.5), size=apart.shape)
        )
    return frame.blend(band, 0.35)


def _first(frame: _Frame) -> Matrix:
    target = frame.one_hot(np.zeros(frame.n, dtype=np.int64))
    way = frame.rng.integers(3)
    if way == 0:
        return frame.sharpened(target)
    if way == 1:
        fade = 1 - frame.rng.uniform(0, 0.7) * np.arange(frame.n)[:, None] / frame.n
        return frame.mix(target, frame.rng.uniform(0.4, 1) * fade)
    return frame.blend(target)


def _broadcast(frame: _Frame) -> Matrix:
    column = int(frame.rng.integers(1, max(2, int(frame.n * (0.5 if frame.causal else 1)))))
    target = frame.one_hot(np.full(frame.n, column))
    way = frame.rng.integers(3)
    if way == 0:
        return frame.sharpened(target)
    if way == 1 and column + 1 < frame.n:
        target[:, column + 1] = frame.rng.uniform(0.1, 0.4)
    return frame.blend(target)


def _block(frame: _Frame) -> Matrix:
    least = max(2, frame.n // 12)
    count = int(frame.rng.integers(2, min(6, max(2, frame.n // (2 * least))) + 1))
    spare = frame.n - count * least
    extra = frame.rng.multinomial(spare, frame.rng.dirichlet(np.full(count, 3.0)))
    number = np.repeat(np.arange(count), least + extra)
    same = (number[:, None] == number[None, :]).astype(float)
    way = frame.rng.integers(3)
    if way == 0:
        sharp = frame.rng.uniform(1.5, 5)
        return frame.softmax(sharp * same + frame.rng.normal(0, 0.4, size=same.shape))
    if way == 1:
        same = same * frame.rng.gamma(5, size=same.shape)
    return frame.blend(same, 0.35)


def _uniform(frame: _Frame) -> Matrix:
    shape = (frame.n, frame.n)
    if frame.rng.random() < 0.5:
        return frame.softmax(frame.rng.normal(0, frame.rng.uniform(0, 1), size=shape))
    return frame.rows(frame.rng.gamma(frame.rng.uniform(2, 30), size=shape))


def _heterogeneous(frame: _Frame) -> Matrix:
    shape = (frame.n, frame.n)
    way = frame.rng.integers(3)
    if way == 0:
        seen = np.arange(frame.n) + 1 if frame.causal else np.full(frame.n, frame.n)
        keys = (frame.rng.random(frame.n) * seen).astype(np.int64)
        return frame.blend(frame.one_hot(keys), 0.7)
    if way == 1:
        return frame.softmax(frame.rng.normal(0, frame.rng.uniform(3, 6), size=shape))
    return frame.rows(frame.rng.gamma(frame.rng.uniform(0.05, 0.15), size=shape) + 1e-12)


def _pair(frame: _Frame) -> tuple[str, Matrix, str, Matrix]:
    """A column and a diagonal, with their names."""
    n = frame.n
    if frame.rng.random() < 0.6:
        stripe, column = "first_token", 0
    else:
        stripe, column = "broadcast", int(frame.rng.integers(1, max(2, n // 3)))
    steps = [("diagonal", 0), ("previous_token", 1)]
    if not frame.causal:
        steps.append(("next_token", -1))
    slash, step = steps[int(frame.rng.integers(len(steps)))]
    return (
        stripe,
        frame.one_hot(np.full(n, column)),
        slash,
        frame.one_hot(np.arange(n) - step),
    )


def _mixed(frame: _Frame) -> Matrix:
    _, stripe, _, slash = _pair(frame)
    share = frame.rng.uniform(0.44, 0.56)
    if frame.rng.random() < 0.25:
        half = (np.arange(frame.n) % 2 == 0)[:, None]
        both = np.where(half, frame.rows(stripe), frame.rows(slash))
    else:
        both = share * frame.rows(stripe) + (1 - share) * frame.rows(slash)
    return frame.mix(both, frame.rng.uniform(0.7, 1))


def _dominated(frame: _Frame) -> tuple[str, Matrix]:
    """A mixture in which one pattern clearly leads, which is then its name."""
    stripe_name, stripe, slash_name, slash = _pair(frame)
    lead = frame.rng.uniform(0.5, 0.75)
    other = min(1 - lead, frame.rng.uniform(0.2, 0.4) * lead)
    if frame.rng.random() < 0.5:
        stripe_name, stripe, slash_name, slash = slash_name, slash, stripe_name, stripe
    rest = 1 - lead - other
    weights = lead * frame.rows(stripe) + other * frame.rows(slash) + rest * frame.background()
    return stripe_name, weights


def _prose(frame: _Frame) -> list[str]:
    """Tokens with repeats, as in text: a few frequent ones, commas and full stops."""
    size = max(4, frame.n // 3)
    frequency = 1 / np.arange(1, size + 1)
    drawn = frame.rng.choice(size, size=frame.n, p=frequency / frequency.sum())
    tokens = [f"w{number}" for number in drawn]
    for place in range(int(frame.rng.integers(2, 5)), frame.n, int(frame.rng.integers(3, 8))):
        tokens[place] = frame.rng.choice([".", ","])
    return tokens


def _repeats(frame: _Frame) -> list[str]:
    """Distinct tokens, repeated with a random period."""
    period = int(frame.rng.integers(max(2, frame.n // 4), frame.n // 2 + 1))
    names = frame.rng.permutation(period)
    return [f"w{names[place % period]}" for place in range(frame.n)]


def _by_tokens(frame: _Frame, pattern: str) -> tuple[Matrix, list[str]]:
    n = frame.n
    tokens = _prose(frame) if pattern == "delimiter" else _repeats(frame)
    target = np.zeros((n, n))
    for query in range(n):
        for key in range(n):
            if pattern == "delimiter":
                target[query, key] = tokens[key] in ".,"
            elif pattern == "duplicate_token":
                target[query, key] = key != query and tokens[key] == tokens[query]
            else:
                earlier = 1 <= key < query and tokens[key - 1] == tokens[query]
                target[query, key] = earlier
    has = (np.where(frame.visible, target, 0).sum(1) > 0)[:, None]
    if pattern != "delimiter" and frame.rng.random() < 0.5:
        target[:, 0] = np.where(has[:, 0], target[:, 0], 1)  # the rest looks at the first token
    return frame.blend(target, 0.4), tokens


JUDGES: Final[Mapping[str, Callable[[_Frame], Matrix]]] = {
    "diagonal": _diagonal,
    "previous_token": _previous,
    "next_token": _next,
    "offset": _offset,
    "local": _local,
    "first_token": _first,
    "broadcast": _broadcast,
    "block": _block,
    "uniform": _uniform,
    "mixed": _mixed,
    "heterogeneous": _heterogeneous,
}
"""Patterns without tokens; `judge_case` also knows the three with tokens, and ``"dominated"``."""


def add_noise(frame_rng: Generator, weights: Matrix, causal: bool, kind: str) -> Matrix:
    """Add noise of a kind, with a random level up to a share of 0.2 or a sigma of 1."""
    frame = _Frame(len(weights), causal, frame_rng)
    if kind == "logit":
        sigma = frame_rng.uniform(0, 1)
        return frame.rows(weights * np.exp(frame_rng.normal(0, sigma, size=weights.shape)))
    share = {"none": 0.0, "uniform": 0.2, "dirichlet": 0.2}[kind] * frame_rng.random()
    drawn = (
        frame_rng.random(weights.shape)
        if kind == "uniform"
        else frame_rng.gamma(frame_rng.uniform(0.3, 1), size=weights.shape) + 1e-12
    )
    return np.asarray((1 - share) * frame.rows(weights) + share * frame.rows(drawn))


def judge_case(name: str, n: int, causal: bool, noise: str, rng: Generator) -> Case:
    """Draw one matrix of a pattern, noise included."""
    frame = _Frame(n, causal, rng)
    tokens: list[str] | None = None
    label = name
    if name == "dominated":
        label, weights = _dominated(frame)
    elif name in ("induction", "duplicate_token", "delimiter"):
        weights, tokens = _by_tokens(frame, name)
    else:
        weights = JUDGES[name](frame)
    if not (name == "uniform" and noise == "logit"):  # its own logits are noisy already
        weights = add_noise(rng, weights, causal, noise)
    return Case(weights, label, causal, noise, tokens)


def classic_case(name: str, n: int, noise: float, rng: Generator) -> Case:
    """Draw one matrix of a classic generator; it may be invalid, as theirs may."""
    place = np.arange(n)
    apart = np.abs(place[:, None] - place[None, :])
    cells = rng.random((n, n)) * noise
    eye = np.eye(n)
    if name == "diagonal":
        weights = 0.7 * eye + cells
    elif name == "local":
        weights = np.select([apart == 0, apart == 1, apart == 2], [0.4, 0.25, 0.1], 0.01)
    elif name == "broadcast":
        weights = 0.15 * eye + cells
        weights[:, n // 3] += 0.7
    elif name == "bos":
        weights = cells.copy()
        first = 0.6 - 0.03 * place
        weights[:, 0] += first
        weights[place, place] += 0.2
        weights[0, 0] -= first[0]
    elif name == "uniform":
        weights = np.ones((n, n)) + cells
    else:
        same = (place[:, None] < n // 2) == (place[None, :] < n // 2)
        size = np.where(place < n // 2, n // 2, n - n // 2)[:, None]
        weights = np.where(same, 0.7 / size, 0.0) + 0.15 * eye
    weights = np.asarray(weights / weights.sum(1, keepdims=True))
    return Case(weights, CLASSIC[name], False, f"cells {noise}")


CLASSIC: Final[Mapping[str, str]] = {
    "diagonal": "diagonal",
    "local": "local",
    "broadcast": "broadcast",
    "bos": "first_token",
    "uniform": "uniform",
    "block": "block",
}
"""The classic generators, and what their matrices should be called."""


def classic_signal(name: str, n: int, noise: float) -> float:
    """Share of the mass that the pattern itself holds: noise there grows with the length."""
    added = n * noise / 2
    if name in ("local", "block", "uniform"):
        return 1.0
    if name == "diagonal":
        return 0.7 / (0.7 + added)
    if name == "broadcast":
        return 0.7 / (0.85 + added)
    first = 0.6 - 0.03 * (n - 1) / 2
    return first / (first + 0.2 + added)


def classic_detector(attention: Matrix) -> str:
    """The detector that goes with the classic generators: fixed thresholds, in a fixed order."""
    n = len(attention)
    place = np.arange(n)
    apart = np.abs(place[:, None] - place[None, :])
    diagonal = float(np.diag(attention).mean())
    near = float(attention[apart <= 2].sum() / attention.sum())
    if diagonal > 0.5 and diagonal > 3 * float(attention[apart > 0].mean()):
        return "diagonal"
    if float(attention[:, 0].mean()) > 0.4:
        return "first_token"
    if float(attention.sum(0).max()) / n > 0.6:
        return "broadcast"
    if near > 0.8:
        return "local"
    return "uniform" if float(attention.std()) < 0.1 else "mixed"
