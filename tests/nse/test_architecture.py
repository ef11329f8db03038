"""The table of families, and loading."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nse.architecture import load_model
from nse.errors import ArchitectureError, HyperparameterError


def test_the_names_of_a_row_lead_to_the_parts_of_the_model(editable) -> None:
    assert editable.layers == len({editable.block(i) for i in range(editable.layers)}) == 4
    for layer in range(editable.layers):
        name = editable.parameter_name(layer)
        assert editable.projection(layer) is editable.model.get_submodule(editable.projection_name(layer))
        assert editable.projection(layer).weight is editable.model.get_parameter(name)
        assert editable.projection(layer) in set(editable.block(layer).modules())
    assert "norm" in type(editable.model.get_submodule(editable.architecture.final_norm)).__name__.lower()


def test_canonical_orientation_is_out_by_in(editable, family) -> None:
    config = editable.model.config
    inner = config.n_inner if family == "gpt2" else config.intermediate_size
    assert editable.base_weight(editable.parameter_name(1)).shape == (config.hidden_size, inner)
    weight = torch.rand(3, 5)
    assert torch.equal(editable.canonical(editable.canonical(weight)), weight)


@torch.no_grad()
def test_the_head_gives_the_models_own_logits(editable) -> None:
    ids = torch.tensor([[5, 6, 7]])
    hidden = editable.model.base_model(input_ids=ids).last_hidden_state
    assert torch.equal(editable.head(hidden), editable.model(input_ids=ids).logits)
    assert editable.vocabulary == 320
    assert editable.positions == 96


def test_the_model_does_not_train(editable) -> None:
    assert not editable.model.training
    assert not any(p.requires_grad for p in editable.model.parameters())


def test_layers_that_do_not_exist_are_named(editable) -> None:
    editable.check_layers((0, 3))
    for layers, wrong in (((0, 4), 4), ((-1, 2), -1)):
        with pytest.raises(HyperparameterError, match=f"layers: {wrong} is not in this model \\(0 to 3\\)"):
            editable.check_layers(layers)


def test_digests_name_the_weights_and_the_tokenizer(loaded, folder) -> None:
    one, two = load_model(folder), load_model(folder)
    assert one.base_digest == two.base_digest
    assert one.tokenizer_digest == two.tokenizer_digest
    assert load_model(folder, dtype=torch.bfloat16).base_digest != one.base_digest
    assert loaded("gpt2", torch.float32).tokenizer_digest != loaded("llama", torch.float32).tokenizer_digest


def test_one_changed_weight_changes_the_digest(folder, tmp_path) -> None:
    other = load_model(folder)
    before = other.base_digest
    name = other.parameter_name(2)
    with torch.no_grad():
        other.model.get_parameter(name)[0, 0] += 1e-3
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path).base_digest != before


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(ArchitectureError, match=r"not a model directory \(no config.json\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("family_name", ["no-such-family", "clip"])
def test_a_family_of_no_causal_language_model_is_refused(tmp_path, family_name) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family_name}))
    message = f"model type '{family_name}' has no row in the table \\(.*gpt2.*\\), and transformers makes no causal"
    with pytest.raises(ArchitectureError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_broken_configuration_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ArchitectureError, match=r"config\.json is not JSON"):
        load_model(tmp_path)


def test_missing_or_broken_weights_are_refused(folder, tmp_path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArchitectureError, match=r"cannot be loaded .*: check its files"):
        load_model(copy)
    weights.unlink()
    with pytest.raises(ArchitectureError, match=r"cannot be loaded .*: check its files"):
        load_model(copy)


def test_layers_are_laid_on_the_devices_that_are_there(folder, editable) -> None:
    pytest.importorskip("accelerate")
    placed = load_model(folder, device_map="auto")
    assert placed.device == next(placed.model.parameters()).device
    assert placed.base_digest == editable.base_digest
    ids = torch.tensor([[5, 6, 7]], device=placed.device)
    with torch.no_grad():
        assert torch.allclose(
            placed.model(input_ids=ids).logits.cpu(), editable.model(input_ids=ids.cpu()).logits, atol=1e-3
        )


def test_a_model_that_does_not_fit_on_its_devices_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_args, **_kwargs: build_on_meta(folder))
    with pytest.raises(
        ArchitectureError, match=r"does not fit on the devices \(.*weight is left out\): use more, or a smaller"
    ):
        load_model(folder)


def build_on_meta(folder):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def test_without_accelerate_a_device_map_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setattr("nse.architecture.find_spec", lambda _name: None)
    with pytest.raises(ArchitectureError, match="device_map needs accelerate: pip install"):
        load_model(folder, device_map="auto")
    assert load_model(folder).layers == 4
