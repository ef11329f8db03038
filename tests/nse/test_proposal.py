"""Settings that are proposed from the most similar model."""

from pathlib import Path

import pytest

from nse.architecture import load_model
from nse.hyperparameters import read_hyperparameters
from nse.presets import presets
from nse.proposal import EVIDENCE, propose, proposed


def test_every_preset_is_evidence() -> None:
    assert sorted(e.preset for e in EVIDENCE) == presets()


@pytest.mark.parametrize("evidence", EVIDENCE, ids=lambda e: e.preset)
def test_a_model_with_a_preset_gets_it_as_it_is(evidence) -> None:
    found = proposed(evidence.family, evidence.layers, evidence.parameters)
    assert found is not None
    assert found.settings == read_hyperparameters(Path(evidence.preset)).settings
    assert evidence.source in found.source


def test_another_size_gets_the_same_depth_and_another_family_the_nearest_size() -> None:
    small = proposed("llama", 32, 3.6e8)
    assert small is not None
    assert (small.settings.layers, small.settings.v_lr) == ((4, 5, 6, 7, 8, 9), 0.3)
    assert "preset smollm2-135m (llama, 30 layers, 135M parameters)" in small.source
    assert small.source.endswith("for llama, 32 layers, 360M parameters")
    other = proposed("qwen2", 28, 7.6e9)
    assert other is not None
    assert "preset llama3-8b" in other.source
    large = proposed("gpt2", 24, 3.5e8)
    assert large is not None
    assert "preset gpt2-xl" in large.source, "of the same family before the same size"


def test_a_proposal_is_a_file_of_settings_that_says_where_they_come_from(tmp_path) -> None:
    found = proposed("llama", 30, 1.35e8)
    assert found is not None
    path = tmp_path / "hparams.yaml"
    path.write_text(found.text)
    assert read_hyperparameters(path).settings == found.settings
    assert found.text.startswith("# Proposed from preset smollm2-135m")


def test_nothing_is_proposed_for_a_small_model(model_folders) -> None:
    assert propose(load_model(model_folders["llama"])) is None
