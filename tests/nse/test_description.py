"""Architectures that no row of the table knows: described, checked, guessed, refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    BloomConfig,
    CohereConfig,
    GraniteConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    RobertaPreLayerNormConfig,
)

from nse.architecture import ARCHITECTURES, load_model
from nse.description import Architecture, architecture_of, read_architecture
from nse.errors import ArchitectureError
from nse.keys import measure
from tests.conformance.families import CONFIGURATIONS, write
from tests.nse.conftest import CONTEXTS, VOCABULARY, fact

COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
BODY = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}
OPT = OPTConfig(
    **COMMON, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=32
)
BLOOM = BloomConfig(**COMMON, hidden_size=32, n_layer=3, n_head=4)
COHERE = CohereConfig(**BODY, logit_scale=0.25)
GRANITE = GraniteConfig(**BODY, residual_multiplier=0.2)
PHI = PhiConfig(**BODY)
ROBERTA = RobertaPreLayerNormConfig(**BODY)
MIXTRAL = MixtralConfig(**BODY, num_key_value_heads=2, num_local_experts=4)
QWEN2_MOE = Qwen2MoeConfig(
    **BODY, num_key_value_heads=2, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made: dict[str, Path] = {}

    def folder(configuration: PretrainedConfig) -> Path:
        name = configuration.model_type
        if name not in made:
            made[name] = write(configuration, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


def suggestion(folder: Path) -> Architecture:
    """The description that the refusal of a model proposes, read back."""
    with pytest.raises(
        ArchitectureError, match=r"describe it in params\.yaml, perhaps `model\.architecture: \{"
    ) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    line = str(caught.value).split("perhaps `")[1].rstrip("`")
    return architecture_of(yaml.safe_load(line)["model.architecture"], where="the message")


@pytest.mark.parametrize("configuration", [PHI, BLOOM, COHERE], ids=lambda c: c.model_type)
@torch.no_grad()
def test_the_lines_that_a_refusal_proposes_load_the_model(folder_of, configuration) -> None:
    folder = folder_of(configuration)
    model = load_model(folder, architecture=suggestion(folder))
    ids = torch.tensor([[5, 6, 7]])
    hidden = model.model.base_model(input_ids=ids).last_hidden_state
    assert torch.equal(model.head(hidden), model.model(input_ids=ids).logits)
    inner = model.base_weight(model.parameter_name(1)).shape[1]
    found = measure(model, [fact(0)], CONTEXTS, key_layers=(1,), hidden_layer=1)
    assert found.keys[1].shape == (inner, 1)


def test_where_positions_are_unlimited_the_tokenizer_says_how_long_a_text_may_be(folder_of) -> None:
    folder = folder_of(BLOOM)
    model = load_model(folder, architecture=suggestion(folder))
    model.tokenizer.model_max_length = 77
    assert model.positions == 77


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_what_is_guessed_of_a_known_family_is_its_row(tmp_path, monkeypatch, family) -> None:
    CONFIGURATIONS[family]().save_pretrained(tmp_path)
    row = ARCHITECTURES[family]
    monkeypatch.delitem(ARCHITECTURES, family)
    assert suggestion(tmp_path) == row


@pytest.mark.parametrize(
    ("configuration", "wrong"),
    [
        (GRANITE, "scaled, gated or normed"),
        (ROBERTA, "only causal models"),
        (QWEN2_MOE, "does not see texts as"),
        (OPT, "does not see texts as"),
    ],
    ids=["granite", "roberta", "qwen2_moe", "opt"],
)
def test_a_described_model_that_does_not_behave_so_is_refused(folder_of, configuration, wrong) -> None:
    folder = folder_of(configuration)
    with pytest.raises(ArchitectureError, match=wrong) as caught:
        load_model(folder, architecture=suggestion(folder))
    assert str(caught.value).startswith(f"{folder}: ")
    assert "\n" not in str(caught.value)


def test_a_post_norm_that_is_not_named_is_found_out(tmp_path) -> None:
    folder = write(CONFIGURATIONS["olmo2"](), tmp_path)
    with pytest.raises(ArchitectureError, match="name the norm in post_norm"):
        load_model(folder, architecture=replace(ARCHITECTURES["olmo2"], post_norm=None))
    assert load_model(folder, architecture=ARCHITECTURES["olmo2"]).post_norm(0) is not None


def test_a_mixture_whose_experts_are_all_routed_is_refused(folder_of) -> None:
    message = "model type 'mixtral' has no row in the table .*; its experts are all routed, so no weight is read by every token"
    with pytest.raises(ArchitectureError, match=message):
        load_model(folder_of(MIXTRAL))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": "model.decoder.layer.{}"}, r"the model has no model\.decoder\.layer\.0: correct block"),
        ({"output_projection": "fc3"}, "a layer has no fc3: correct output_projection"),
        ({"output_projection": "fc1"}, r"layers\.0\.fc1 does not put out 32 numbers, its weight is \(48, 32\)"),
        ({"output_projection": "activation_fn"}, r"layers\.0\.activation_fn has no weight matrix"),
        ({"transposed": True}, r"fc2 does not put out 32 numbers, .*: correct output_projection or transposed"),
        ({"final_norm": "norm"}, "the model has no norm: correct final_norm"),
        ({"post_norm": "norm"}, r"layers\.0 has no norm: correct post_norm"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_described_part_that_is_not_there_is_named(folder_of, change, message) -> None:
    folder = folder_of(OPT)
    with pytest.raises(ArchitectureError, match=message) as caught:
        load_model(folder, architecture=replace(suggestion(folder), **change))
    assert "\n" not in str(caught.value)


def test_five_lines_of_yaml_are_read(tmp_path) -> None:
    path = tmp_path / "architecture.yaml"
    path.write_text(
        'block: "model.layers.{}"\noutput_projection: [mlp.shared.down, mlp.down]\n'
        "transposed: false\nfinal_norm: model.norm\npost_norm: post_norm\n"
    )
    expected = Architecture(
        block="model.layers.{}",
        output_projection=("mlp.shared.down", "mlp.down"),
        final_norm="model.norm",
        post_norm="post_norm",
    )
    assert read_architecture(path) == expected
    assert architecture_of(yaml.safe_load(expected.line()), where="here") == expected


GOOD = {"block": "h.{}", "output_projection": "mlp.out", "final_norm": "norm"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["block"], "here is not a mapping"),
        ({**GOOD, "layers": 3}, "here: layers is not a part of an architecture"),
        ({**GOOD, "block": "h.0"}, r"here: block = 'h\.0': give the path of a layer with one \{\}"),
        ({**GOOD, "output_projection": []}, "here: output_projection = "),
        ({**GOOD, "output_projection": [3]}, "here: output_projection = "),
        ({**GOOD, "transposed": "no"}, "here: transposed = 'no': write true"),
        ({"block": "h.{}", "output_projection": "mlp.out"}, "here: final_norm = None"),
        ({**GOOD, "post_norm": 3}, "here: post_norm = 3"),
    ],
)
def test_a_malformed_description_is_refused(data, message) -> None:
    with pytest.raises(ArchitectureError, match=message):
        architecture_of(data, where="here")


def test_a_description_that_cannot_be_read_is_refused(tmp_path) -> None:
    path = tmp_path / "architecture.yaml"
    with pytest.raises(ArchitectureError, match=r"architecture\.yaml"):
        read_architecture(path)
    path.write_text("block: [")
    with pytest.raises(ArchitectureError, match="is not YAML") as caught:
        read_architecture(path)
    assert "\n" not in str(caught.value)
