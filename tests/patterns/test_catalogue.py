"""The catalogue: names, aliases, one entry = score + generator + documentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attncheck.patterns import PATTERNS, VERDICTS, Grid, Option, Pattern, canonical_name

NAMES = [
    "diagonal",
    "previous_token",
    "next_token",
    "offset",
    "local",
    "first_token",
    "broadcast",
    "block",
    "uniform",
    "duplicate_token",
    "induction",
    "delimiter",
]


def test_every_name_of_the_vocabulary_is_one_entry() -> None:
    assert list(PATTERNS) == NAMES
    assert list(VERDICTS) == ["mixed", "heterogeneous", "undetermined"]
    for name, entry in PATTERNS.items():
        assert entry.name == name
        assert entry.summary
        assert entry.function
        assert entry.source


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("bos", "first_token"),
        ("CLS", "first_token"),
        ("beginning_of_sequence", "first_token"),
        ("attention-sink", "first_token"),
        ("vertical", "broadcast"),
        ("Sliding Window", "local"),
        ("current_token", "diagonal"),
        ("mixed", "mixed"),
    ],
)
def test_aliases_come_out_canonical(alias: str, name: str) -> None:
    assert canonical_name(alias) == name


def test_no_alias_is_claimed_twice() -> None:
    entries = [*PATTERNS.values(), *VERDICTS.values()]
    names = [name for entry in entries for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["nonsense", "", 3])
def test_unknown_name_lists_the_known(name: object) -> None:
    with pytest.raises(ValueError, match=r"unknown name .*previous_token.*heterogeneous"):
        canonical_name(name)  # type: ignore[arg-type]


def test_a_name_that_is_nearly_right_is_told() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'previous_token'\?$"):
        canonical_name("previus_token")
    with pytest.raises(ValueError, match=r"undetermined$"):
        canonical_name("nonsense")


def test_the_catalogue_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PATTERNS["mine"] = PATTERNS["diagonal"]  # type: ignore[index]


def test_a_new_pattern_is_one_entry() -> None:
    """A relation given once yields generator and selected keys; nothing else knows of it."""
    every_second = Pattern(
        name="every_second",
        support=lambda grid, step: (grid.offsets % step == 0) & (grid.offsets > 0),
        summary="keys an even number of tokens back",
        options=(Option("step", "int", 2, 2, None, summary="how many"),),
    )
    grid = Grid(torch.ones(1, 1, 6, 6, dtype=torch.bool).tril(), torch.arange(6), causal=True)
    target = every_second.target(grid, step=2)[0, 0]
    assert target[5].tolist() == [0, 0.5, 0, 0.5, 0, 0]
    assert target[1].tolist() == [0.5, 0.5, 0, 0, 0, 0]  # no target: even over what it sees
    selected = every_second.selected(grid, step=2)[0, 0]
    mass = (target * selected).sum(-1)[selected.any(-1)]
    assert mass.tolist() == pytest.approx([1.0] * 4)
    assert "every_second" not in PATTERNS


def test_option_ranges_are_data_and_are_enforced() -> None:
    option = Option("width", "int", 2, 1, None)
    assert option.bounds(9) == (1, 8)
    assert option.checked(np.int64(3), "local") == 3
    with pytest.raises(ValueError, match=r"width: 0 .* expected an integer"):
        option.checked(0, "local")
    for bad in (1.5, True, "2"):
        with pytest.raises(TypeError, match=r"width: .* expected a whole number"):
            option.checked(bad, "local")
    with pytest.raises(ValueError, match="makes another pattern"):
        PATTERNS["offset"].options[0].checked(1, "offset")


def test_induction_is_what_followed_an_earlier_occurrence() -> None:
    tokens = torch.tensor([[7, 8, 9, 7, 8, 8]])
    grid = Grid(torch.ones(1, 1, 6, 6, dtype=torch.bool), torch.arange(6), tokens=tokens)
    induction = PATTERNS["induction"].selected(grid)[0, 0]
    duplicate = PATTERNS["duplicate_token"].selected(grid)[0, 0]
    for i in range(6):
        for j in range(6):
            t = tokens[0]
            assert induction[i, j] == (1 <= j < i and t[j - 1] == t[i])
            assert duplicate[i, j] == (j < i and t[j] == t[i])
