"""The presets, and the published files of four projects in the layouts in which they publish them.

The values are those of the files in the projects' `hparams` folders: jianghoucheng/NSE (9ef6573), kmeng01/memit (80426fd),
jianghoucheng/AlphaEdit (f5248d3) and zjunlp/EasyEdit (14cea82).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nse.errors import HyperparameterError
from nse.hyperparameters import Hyperparameters, read_hyperparameters
from nse.presets import preset_or_file, presets

COMMON: dict[str, Any] = {
    "clamp_norm_factor": 0.75,
    "layer_selection": "all",
    "fact_token": "subject_last",
    "v_weight_decay": 0.5,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "lm_head_module": "lm_head",
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100000,
    "mom2_dtype": "float32",
}
TRANSFORMER = {
    "layer_module_tmp": "transformer.h.{}",
    "mlp_module_tmp": "transformer.h.{}.mlp",
    "attn_module_tmp": "transformer.h.{}.attn",
    "ln_f_module": "transformer.ln_f",
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2-xl": {
        "model_name": "gpt2-xl",
        "layers": [13, 14, 15, 16, 17],
        "v_num_grad_steps": 20,
        "v_lr": 5e-1,
        "v_loss_layer": 47,
        "mom2_update_weight": 20000,
        "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
        **TRANSFORMER,
    },
    "gpt-j-6b": {
        "model_name": "EleutherAI_gpt-j-6B",
        "layers": [3, 4, 5, 6, 7, 8],
        "v_num_grad_steps": 25,
        "v_lr": 5e-1,
        "v_loss_layer": 27,
        "mom2_update_weight": 15000,
        "rewrite_module_tmp": "transformer.h.{}.mlp.fc_out",
        **TRANSFORMER,
    },
    "llama3-8b": {
        "model_name": "Llama3-8B",
        "layers": [4, 5, 6, 7, 8],
        "v_num_grad_steps": 25,
        "v_lr": 1e-1,
        "v_loss_layer": 31,
        "mom2_update_weight": 15000,
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
        "layer_module_tmp": "model.layers.{}",
        "mlp_module_tmp": "model.layers.{}.mlp",
        "attn_module_tmp": "model.layers.{}.self_attn",
        "ln_f_module": "model.norm",
    },
}
NSE: dict[str, dict[str, Any]] = {
    "gpt2-xl": {"alpha": 35, "upper_bound": 150, "neuron_threshold": 1.0, "mom2_update_weight": 10000},
    "gpt-j-6b": {"alpha": 15, "upper_bound": 100, "neuron_threshold": 0.8},
    "llama3-8b": {"alpha": 2.5, "upper_bound": 50, "neuron_threshold": 1.0},
}
EASYEDIT = {"stats_dir": "./data/stats", "device": 0, "model_parallel": False}


def published(model: str, **more: Any) -> dict[str, Any]:
    return COMMON | MODELS[model] | more


def settings_of(path: Path) -> Hyperparameters:
    return read_hyperparameters(path).settings


def test_there_is_a_preset_for_each_published_model() -> None:
    assert presets() == sorted([*MODELS, "smollm2-135m"])


def test_the_preset_of_the_pretrained_demo_is_the_file_that_it_ships() -> None:
    assert settings_of(preset_or_file(Path("smollm2-135m"))) == settings_of(Path("demo/smollm2/hparams.yaml"))


@pytest.mark.parametrize("model", MODELS)
def test_a_preset_is_the_published_file(tmp_path, model) -> None:
    path = tmp_path / "published.json"
    path.write_text(json.dumps(published(model, **NSE[model], max_iterations=3), indent=4))
    assert settings_of(preset_or_file(Path(model))) == settings_of(path)


@pytest.mark.parametrize("model", MODELS)
def test_every_key_of_a_preset_is_used(model) -> None:
    assert read_hyperparameters(preset_or_file(Path(model))).unused == ()


def test_a_preset_has_the_published_values_and_the_passes_that_were_made() -> None:
    assert settings_of(preset_or_file(Path("gpt2-xl"))) == Hyperparameters(
        layers=(13, 14, 15, 16, 17),
        v_num_grad_steps=20,
        v_lr=0.5,
        v_weight_decay=0.5,
        clamp_norm_factor=0.75,
        kl_factor=0.0625,
        mom2_update_weight=10000.0,
        neuron_threshold=1.0,
        alpha=35.0,
        upper_bound=150.0,
        max_passes=2,
    )


def test_a_file_comes_before_a_preset_of_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-xl").write_text("layers: [1]")
    assert preset_or_file(Path("gpt2-xl")) == Path("gpt2-xl")


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl.yaml", "./folder/gpt2-xl", "__init__"])
def test_another_name_stays_a_path_that_is_then_refused(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    assert preset_or_file(Path(name)) == Path(name)
    with pytest.raises(HyperparameterError, match="cannot be read"):
        read_hyperparameters(preset_or_file(Path(name)))


@pytest.mark.parametrize("model", ["gpt2-xl", "gpt-j-6b", "llama3-8b"])
@pytest.mark.parametrize("more", [{}, {"nullspace_threshold": 2e-2, "L2": 10}], ids=["MEMIT", "AlphaEdit"])
def test_files_of_memit_and_alphaedit_load_as_they_are(tmp_path, model, more) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps(published(model, **more)))
    file = read_hyperparameters(path)
    assert file.settings.layers == tuple(MODELS[model]["layers"])
    assert file.settings.mom2_update_weight == MODELS[model]["mom2_update_weight"]
    assert set(more) <= set(file.unused)


@pytest.mark.parametrize(
    "more",
    [{"alg_name": "MEMIT"}, {"alg_name": "AlphaEdit", "P_loc": "./p.pt", "nullspace_threshold": "2e-2", "L2": 1}],
    ids=["MEMIT", "AlphaEdit"],
)
@pytest.mark.parametrize("model", MODELS)
def test_files_of_easyedit_load_as_they_are_with_numbers_that_yaml_takes_for_texts(tmp_path, model, more) -> None:
    data = published(model, **EASYEDIT, **more) | {"model_name": f"./hugging_cache/{model}"}
    path = tmp_path / "h.yaml"
    path.write_text(yaml.safe_dump(data).replace("v_lr: 0.5", "v_lr: 5e-1").replace("v_lr: 0.1", "v_lr: 1e-1"))
    assert isinstance(yaml.safe_load(path.read_text())["v_lr"], str)
    file = read_hyperparameters(path)
    assert file.settings.v_lr == MODELS[model]["v_lr"]
    assert file.settings.layers == tuple(MODELS[model]["layers"])
    assert {*EASYEDIT, "alg_name", "model_name"} <= set(file.unused)


def test_a_published_file_without_iterations_makes_one_pass_whatever_remains(tmp_path) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps(published("gpt2-xl")))
    file = read_hyperparameters(path)
    assert (file.settings.max_passes, file.settings.alpha) == (1, float("inf"))
    assert "no max_iterations: one pass, as in MEMIT" in file.differences


def test_where_a_published_file_means_something_else_it_is_said(tmp_path) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps(published("gpt-j-6b", **NSE["gpt-j-6b"], max_iterations=3)))
    told = " ".join(read_hyperparameters(path).differences)
    for text in (
        "max_passes 2",
        "v_num_grad_steps 25",
        "alpha:",
        "upper_bound:",
        "neuron_threshold:",
        "v_loss_layer 27",
    ):
        assert text in told


def test_a_file_of_ours_means_what_it_says(tmp_path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text("layers: [1]\nalpha: 3\nmax_passes: 2\n")
    assert read_hyperparameters(path).differences == ()


def test_a_file_of_another_method_says_so(tmp_path) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps(published("llama3-8b", alg_name="AlphaEdit", L2=1)))
    assert any("of AlphaEdit" in text for text in read_hyperparameters(path).differences)


def test_a_presets_name_is_read_as_the_preset() -> None:
    assert read_hyperparameters(Path("llama3-8b")).settings.layers == (4, 5, 6, 7, 8)
