"""The shipped data: complete, what the manifest says, found in a checkout and in an install."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from attncheck.attention import AttentionMaps
from attncheck.models import fixture_files, load_tiny_model, repeated_tokens, tokens_of
from attncheck.models.fixture_files import fixture_path
from tests.models.plain import tiny_forward

MANIFEST = json.loads(fixture_path("manifest.json").read_text())


@pytest.mark.parametrize("name", sorted(MANIFEST["files"]))
def test_file_is_the_one_the_manifest_describes(name: str) -> None:
    content = fixture_path(name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == MANIFEST["files"][name]["sha256"]
    assert len(content) == MANIFEST["files"][name]["bytes"]


def test_manifest_covers_every_data_file_and_names_its_maker() -> None:
    folder = fixture_path("manifest.json").parent
    data = {path.name for path in folder.glob("*.safetensors")}
    assert data == set(MANIFEST["files"])
    assert MANIFEST["made_by"] == "fixtures/train_tiny.py"
    assert fixture_path("train_tiny.py").is_file()
    model = load_tiny_model()
    assert MANIFEST["model"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_measured_scores_in_the_manifest_tell_the_story() -> None:
    for scores in MANIFEST["measured"]["by_period"].values():
        assert scores["accuracy"] == 1.0
        assert scores["previous_token"]["L0H1"] > 0.8
        assert min(scores["induction"][head] for head in ("L1H0", "L1H1")) > 0.9
    ablated = MANIFEST["measured"]["ablated_at_period_12"]
    assert ablated["L0H1"]["accuracy"] < 0.4
    assert all(ablated[head]["accuracy"] > 0.95 for head in ("L0H0", "L1H0", "L1H1"))


def test_recorded_heads_are_the_models_own() -> None:
    prompt = repeated_tokens(11, seed=7)
    maps = AttentionMaps.load(fixture_path("recorded_heads.safetensors"))
    assert maps.tokens == (tuple(tokens_of(prompt)[0]),)
    expected, _ = tiny_forward(load_tiny_model(), prompt[0].tolist())
    for layer in maps.layers:
        assert layer.causal
        for head in range(2):
            weights = layer.weights[0, head].numpy()
            np.testing.assert_allclose(weights, expected[f"L{layer.index}H{head}"], atol=1e-5)


def test_install_comes_before_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed, checkout = tmp_path / "_fixtures", tmp_path / "fixtures"
    monkeypatch.setattr(fixture_files, "FOLDERS", (installed, checkout))
    with pytest.raises(FileNotFoundError, match=r"no shipped file 'x'.*_fixtures nor .*reinstall"):
        fixture_path("x")
    checkout.mkdir()
    (checkout / "x").touch()
    assert fixture_path("x") == checkout / "x"
    installed.mkdir()
    (installed / "x").touch()
    assert fixture_path("x") == installed / "x"


def test_folders_are_inside_and_beside_the_package() -> None:
    package = Path(fixture_files.__file__).parents[1]
    assert package.name == "attncheck"
    assert (package / "_fixtures", package.parent / "fixtures") == fixture_files.FOLDERS
