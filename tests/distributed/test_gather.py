"""Ranks of a process group hold the table of one process that saw everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.multiprocessing as mp

from attncheck import HeadProfile, gather_profiles, profile_dataset, profile_model
from tests.distributed.models import HEADS, KV_HEADS, Decoder, batches, on_whole_tensors
from tests.distributed.scenarios import spawned

ROOT = Path(__file__).parents[2]
Results = Callable[[str], list[Any]]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What a scenario gave, rank by rank."""
    folder, world = tmp_path_factory.mktemp("ranks"), request.param
    mp.spawn(spawned, (world, folder), nprocs=world)  # type: ignore[no-untyped-call]

    def found(name: str) -> list[Any]:
        files = [folder / f"{name}.{rank}.json" for rank in range(world)]
        held = [json.loads(path.read_text()) for path in files]
        return [HeadProfile.from_dict(one) if isinstance(one, dict) else one for one in held]

    return found


@pytest.fixture(scope="module")
def alone() -> HeadProfile:
    return profile_dataset(Decoder(), batches(), progress=False)


def require_same(found: HeadProfile, want: HeadProfile, atol: float = 1e-9) -> None:
    """Counts bit for bit, sums to rounding."""
    assert found.heads() == want.heads()
    for one, other in zip(found.layers, want.layers, strict=True):
        for metric, counts in other.counts.items():
            assert np.array_equal(one.counts[metric], counts), metric
        assert np.array_equal(one.evidence.rows, other.evidence.rows)
        assert np.array_equal(one.evidence.sequences, other.evidence.sequences)
        assert one.n_kv_heads == other.n_kv_heads
    assert found.measures == want.measures
    for measure in want.measures:
        np.testing.assert_allclose(found[measure], want[measure], atol=atol, err_msg=measure)
    assert found.classify().array().tolist() == want.classify().array().tolist()


@pytest.mark.parametrize("scenario", ["whole", "streamed"])
def test_every_rank_holds_the_table_of_one_process(
    results: Results, alone: HeadProfile, scenario: str
) -> None:
    for profile in results(scenario):  # the last of four ranks had no batch
        require_same(profile, alone)


def test_one_rank_alone_may_get_it(results: Results) -> None:
    first, second, *others = results("one_rank_only")
    assert first is None
    assert not any(others)
    world = 2 + len(others)
    want = HeadProfile.merged(profile_model(Decoder(), **batch) for batch in batches()[:world])
    require_same(second, want)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("other_layers", "does not|holds 3 layers with heads L0H0, L0H1, ..., L2H7, here 2 layers"),
        ("nobody", "^ValueError: profile: no rank has seen a batch"),
        ("no_profile", "^ValueError: rank 1: profile: is dict; expected a HeadProfile or None"),
        (
            "divided_queries",
            "its output, a DTensor, is divided along its queries. Divide the heads",
        ),
        ("undivided", "same numbers and measure exactly the same as those here"),
        ("heads_of_other_input", "of layers.0 saw other input|rank 1 beside rank 0.*other input"),
    ],
)
def test_what_is_wrong_on_one_rank_is_raised_on_all(
    results: Results, scenario: str, message: str
) -> None:
    found = results(scenario)
    assert len({str(text) for text in found}) == 1
    assert isinstance(found[0], str)
    assert re.search(message, found[0])


def test_a_rank_that_fails_keeps_nobody_waiting(results: Results) -> None:
    found = results("one_fails")
    assert "Expected tensor for argument" in found[1]
    for text in found[:1] + found[2:]:
        assert text.startswith("ValueError: rank 1: RuntimeError: Expected tensor for argument")


def test_divided_heads_are_numbered_as_in_the_whole_model(results: Results) -> None:
    want = profile_model(Decoder(), **batches()[3])
    assert (want.layers[0].n_heads, want.layers[0].n_kv_heads) == (HEADS, KV_HEADS)
    for profile in results("heads"):
        require_same(profile, want, atol=1e-5)


@pytest.mark.parametrize("way", ["sdpa", "softmax"])
def test_attention_on_dtensor_is_measured_where_its_heads_are(results: Results, way: str) -> None:
    want = profile_model(on_whole_tensors(way), batches()[3]["input_ids"])
    assert (want.layers[0].n_heads, want.layers[0].causal) == (HEADS, True)
    for profile in results(f"divided_{way}"):
        require_same(profile, want, atol=1e-5)


def test_heads_and_batches_at_once(results: Results, alone: HeadProfile) -> None:
    for profile in results("heads_and_batches"):
        require_same(profile, alone, atol=1e-5)


def test_a_process_alone_needs_no_group(alone: HeadProfile) -> None:
    assert gather_profiles(alone) is alone
    with pytest.raises(ValueError, match="no rank has seen a batch"):
        gather_profiles(None)
    with pytest.raises(ValueError, match="over: 'layers'; expected one of batches, heads"):
        gather_profiles(alone, over="layers")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="dst: no rank 5; the group has 1, 0 to 0"):
        gather_profiles(alone, dst=5)


@pytest.mark.slow
def test_torchrun(tmp_path: Path, alone: HeadProfile) -> None:
    script, path = Path(__file__).parent / "under_torchrun.py", tmp_path / "heads.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*launched, "--nproc-per-node=2", str(script), str(path)],
        check=True,
        env=environment,
        timeout=240,
        capture_output=True,
    )
    require_same(HeadProfile.load(path), alone)
