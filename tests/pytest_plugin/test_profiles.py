"""`attention_profiles`: the table of one process, whichever workers ran the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncheck import HeadProfile, profile_attention
from attncheck.patterns import create_synthetic_attention
from tests.pytest_plugin.conftest import Run

SOURCE = """
    import pytest
    from attncheck import profile_attention
    from attncheck.patterns import create_synthetic_attention

    @pytest.mark.parametrize("seed", range(7))
    def test_it(attention_profiles, seed):
        weights = create_synthetic_attention(9 + seed, "local", causal=True, heads=2, seed=seed)
        attention_profiles.add(profile_attention(weights, causal=True), "small")
        if seed % 2:
            attention_profiles.add(profile_attention(weights[:1], causal=True))
"""


def parts() -> list[HeadProfile]:
    options = {"causal": True, "heads": 2}
    return [
        profile_attention(
            create_synthetic_attention(9 + seed, "local", seed=seed, **options),  # type: ignore[arg-type]
            causal=True,
        )
        for seed in range(7)
    ]


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_the_table_is_that_of_one_process(
    run: Run, pytester: pytest.Pytester, workers: str
) -> None:
    result = run(SOURCE, "--attncheck-profiles=out", "-n", workers)
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(["*small.json: HeadProfile(1 layer, 2 heads, 84 rows*, 7 added"])
    found = HeadProfile.load(pytester.path / "out" / "small.json")
    want = HeadProfile.merged(parts())
    for metric, counts in want.layers[0].counts.items():
        assert np.array_equal(found.layers[0].counts[metric], counts), metric
    for measure in want.measures:
        np.testing.assert_allclose(found[measure], want[measure], atol=1e-12, err_msg=measure)
    other = HeadProfile.load(pytester.path / "out" / "heads.json")
    assert other.heads() == ("L0H0",)
    assert int(other.layers[0].counts["entropy"][0]) == 10 + 12 + 14


def test_without_the_option_nothing_is_written(run: Run, pytester: pytest.Pytester) -> None:
    run(SOURCE).assert_outcomes(passed=7)
    assert not list(pytester.path.rglob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            """
            import os, pytest, torch
            from attncheck import profile_attention

            @pytest.mark.parametrize("heads", [1, 2])
            def test_it(attention_profiles, heads):
                attention_profiles.add(profile_attention(torch.eye(8).repeat(heads, 1, 1)))
            """,
            "*not written: heads: other: holds 1 layer with heads*",
        ),
        (
            """
            import os, pytest, torch
            from attncheck import profile_attention

            @pytest.mark.parametrize("crash", [True, False])
            def test_it(attention_profiles, crash):
                attention_profiles.add(profile_attention(torch.eye(8)))
                if crash:
                    os._exit(3)
            """,
            "*not written: worker gw* ended without handing over*",
        ),
    ],
    ids=["other-layers", "crash"],
)
def test_half_a_table_is_not_written(
    run: Run, pytester: pytest.Pytester, source: str, message: str
) -> None:
    result = run(source, "--attncheck-profiles=out", "-n2", "--dist=load")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([message])
    assert not list(pytester.path.rglob("*.json"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("add({})", "TypeError: profile: is dict; expected a HeadProfile"),
        (
            "add(profile_attention(torch.eye(8)), 'a/b')",
            "name: 'a/b'; expected letters",
        ),
        (
            "add(profile_attention(torch.eye(8).repeat(2, 1, 1)))",
            "ValueError: other: holds 1 layer",
        ),
    ],
)
def test_wrong_use_is_told_where_it_happens(run: Run, call: str, message: str) -> None:
    result = run(
        f"""
        import torch
        from attncheck import profile_attention

        def test_it(attention_profiles):
            attention_profiles.add(profile_attention(torch.eye(8)))
            attention_profiles.{call}
        """
    )
    result.assert_outcomes(failed=1)
    assert message in result.stdout.str()


def test_a_place_that_cannot_be_is_refused(run: Run, pytester: pytest.Pytester) -> None:
    Path(pytester.path, "taken").write_text("")
    for given, message in (("taken", "taken is a file; expected a folder"), ("", "is empty")):
        result = run(SOURCE, f"--attncheck-profiles={given}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert f"--attncheck-profiles: {message}" in result.stderr.str()
