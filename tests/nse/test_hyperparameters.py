"""Settings: our layout and the published one."""

import json

import pytest
import yaml

from nse.editors import read_settings
from nse.errors import HyperparameterError
from nse.hyperparameters import Hyperparameters, read_hyperparameters

PUBLISHED = {
    "layers": [4, 5, 6, 7, 8],
    "clamp_norm_factor": 0.75,
    "layer_selection": "all",
    "fact_token": "subject_last",
    "v_num_grad_steps": 25,
    "v_lr": 1e-1,
    "v_loss_layer": 31,
    "v_weight_decay": 0.5,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "mom2_update_weight": 15000,
    "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
    "layer_module_tmp": "model.layers.{}",
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100000,
    "mom2_dtype": "float32",
    "alpha": 2.5,
    "upper_bound": 50,
    "max_iterations": 3,
    "neuron_threshold": 1.0,
}


def test_the_published_json_gives_the_papers_settings_and_says_what_it_does_not_use(tmp_path) -> None:
    path = tmp_path / "Llama3-8B.json"
    path.write_text(json.dumps(PUBLISHED))
    file = read_hyperparameters(path)
    assert file.settings == Hyperparameters(
        layers=(4, 5, 6, 7, 8),
        v_num_grad_steps=25,
        v_lr=0.1,
        v_weight_decay=0.5,
        clamp_norm_factor=0.75,
        kl_factor=0.0625,
        v_loss_target=0.05,
        mom2_update_weight=15000.0,
        previous_keys_weight=1.0,
        neuron_threshold=1.0,
        alpha=2.5,
        upper_bound=50.0,
        max_passes=2,
    )
    assert file.settings.z_layer == 8
    assert file.unused == tuple(
        sorted(
            [
                "layer_selection",
                "v_loss_layer",
                "mom2_adjustment",
                "rewrite_module_tmp",
                "layer_module_tmp",
                "mom2_dataset",
                "mom2_n_samples",
                "mom2_dtype",
            ]
        )
    )


@pytest.mark.parametrize(("iterations", "passes"), [(1, 1), (2, 1), (3, 2), (6, 5)])
def test_published_iterations_count_one_more_than_the_passes_made(tmp_path, iterations, passes) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps({"layers": [1], "max_iterations": iterations}))
    assert read_hyperparameters(path).settings.max_passes == passes
    assert read_hyperparameters(path).unused == ()


def test_our_own_name_for_passes_comes_first(tmp_path) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps({"layers": [1], "max_iterations": 9, "max_passes": 3}))
    assert read_hyperparameters(path).settings.max_passes == 3
    assert read_hyperparameters(path).unused == ("max_iterations",)


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_our_settings_come_back_from_yaml_as_they_were(tmp_path, suffix) -> None:
    settings = Hyperparameters((2, 5), v_num_grad_steps=7, v_lr=0.3, upper_bound=9.0, neuron_threshold=0.8)
    path = tmp_path / f"h{suffix}"
    path.write_text(yaml.safe_dump({**settings.to_dict(), "layers": [2, 5]}))
    file = read_hyperparameters(path)
    assert (file.settings, file.unused) == (settings, ())


def test_numbers_of_the_other_kind_become_the_right_kind(tmp_path) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps({"layers": [1], "v_num_grad_steps": 5.0, "alpha": 3, "v_lr": "1e-1"}))
    settings = read_hyperparameters(path).settings
    assert (settings.v_num_grad_steps, settings.alpha, settings.v_lr) == (5, 3.0, 0.1)
    assert isinstance(settings.v_num_grad_steps, int)
    assert isinstance(settings.alpha, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "layers = .* is out of range"),
        ({"layers": [3, 2]}, "layers = .* is out of range"),
        ({"layers": [2, 2]}, "layers = .* is out of range"),
        ({"layers": 5}, "a value has the wrong type"),
        ({"layers": ["a"]}, "a value has the wrong type"),
        ({"layers": None}, "a value has the wrong type"),
        ({"v_num_grad_steps": 0}, "v_num_grad_steps = 0 is out of range"),
        ({"v_lr": 0}, "v_lr = 0.0 is out of range"),
        ({"v_lr": "fast"}, "a value has the wrong type"),
        ({"v_lr": float("nan")}, "v_lr = nan is out of range"),
        ({"clamp_norm_factor": -1}, "clamp_norm_factor = -1.0 is out of range"),
        ({"mom2_update_weight": 0}, "mom2_update_weight = 0.0 is out of range"),
        ({"previous_keys_weight": -0.1}, "previous_keys_weight = -0.1 is out of range"),
        ({"prompt_keys_weight": -0.1}, "prompt_keys_weight = -0.1 is out of range"),
        ({"context_spread_weight": -0.1}, "context_spread_weight = -0.1 is out of range"),
        ({"known_keys_weight": -0.1}, "known_keys_weight = -0.1 is out of range"),
        ({"neuron_threshold": 0}, "neuron_threshold = 0.0 is out of range"),
        ({"neuron_threshold": 1.01}, "neuron_threshold = 1.01 is out of range"),
        ({"max_passes": 0}, "max_passes = 0 is out of range"),
        ({"write_layers": "some"}, "write_layers = 'some' is out of range"),
        ({"value_contexts": "some"}, "value_contexts = 'some' is out of range"),
        ({"write_layers": 1}, "a value has the wrong type"),
        ({"protected_directions": 1.5}, "protected_directions = 1.5 is out of range"),
        ({"protected_directions": -1}, "protected_directions = -1.0 is out of range"),
        ({"z_norm_limit": -1}, "z_norm_limit = -1.0 is out of range"),
        ({"ridge": -0.5}, "ridge = -0.5 is out of range"),
        ({"v_patience": -1}, "v_patience = -1 is out of range"),
        ({"max_iterations": "many"}, "a value has the wrong type"),
        ({"max_iterations": None}, "a value has the wrong type"),
        ({"fact_token": "first"}, "fact_token = 'first' is out of range"),
        ({"fact_token": "last", "subject_share": 0.5}, "subject_share = 0.5 is out of range"),
    ],
)
def test_a_bad_value_is_named_with_its_file(tmp_path, change, message) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps({"layers": [1], **change}))
    with pytest.raises(HyperparameterError, match=rf"h\.json: {message}"):
        read_hyperparameters(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("h.json", "{", r"h\.json is not valid \.json"),
        ("h.yaml", "a: [", r"h\.yaml is not valid \.yaml"),
        ("h.json", "[1]", "is not a mapping of settings"),
        ("h.yaml", "", "is not a mapping of settings"),
        ("h.json", "{}", "has no `layers`"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(HyperparameterError, match=message) as caught:
        read_hyperparameters(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_another_encoding_are_refused(tmp_path) -> None:
    with pytest.raises(HyperparameterError, match="cannot be read"):
        read_hyperparameters(tmp_path / "h.json")
    (tmp_path / "h.json").write_bytes(b'{"layers": [1], "note": "\xfc"}')
    with pytest.raises(HyperparameterError, match="is not UTF-8"):
        read_hyperparameters(tmp_path / "h.json")


def test_the_published_file_of_alphaedit_gives_its_own_settings(tmp_path) -> None:
    path = tmp_path / "AlphaEdit.json"
    published = {
        k: v for k, v in PUBLISHED.items() if k not in ("alpha", "upper_bound", "max_iterations", "neuron_threshold")
    }
    path.write_text(json.dumps({**published, "nullspace_threshold": 3e-2, "L2": 7}))
    file = read_settings(path, "alphaedit")
    assert file.settings.own == {"nullspace_threshold": 3e-2, "L2": 7}
    assert not {"nullspace_threshold", "L2"} & set(file.unused)
    told = " ".join(file.differences)
    assert "v_num_grad_steps" in told
    assert not any(word in told for word in ("the file is of", "joint_values", "one pass"))
    assert "the file is of AlphaEdit" in " ".join(read_settings(path, "nse").differences)


def test_a_published_file_that_writes_at_the_last_token_is_told_that_each_token_is(tmp_path) -> None:
    path = tmp_path / "NSE.json"
    for fact_token, told in (("last", True), ("subject_last", False)):
        path.write_text(json.dumps({**PUBLISHED, "fact_token": fact_token}))
        differences = " ".join(read_settings(path, "nse").differences)
        assert ("every token of a target is written where it is said" in differences) is told
        assert ("joint_values" in differences) is not told


def test_what_z_does_not_depend_on_is_not_in_the_key_of_its_cache() -> None:
    plain = Hyperparameters((1, 2))
    later = Hyperparameters((1, 2), write_layers="ends", protected_directions=4, z_norm_limit=2.0, ridge=1.0)
    assert later.value_settings() == plain.value_settings()
    assert set(plain.value_settings()) == {
        "z_layer",
        "v_num_grad_steps",
        "v_lr",
        "v_weight_decay",
        "clamp_norm_factor",
        "kl_factor",
        "v_loss_target",
        "hold_factor",
    }
    patient = Hyperparameters((1, 2), v_patience=3).value_settings()
    assert patient == plain.value_settings() | {"v_patience": 3}
