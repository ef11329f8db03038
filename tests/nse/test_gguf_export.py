"""`nse export gguf`: the served file is the original but for the edited tensors, and what packing costs is measured in it."""

import json
from pathlib import Path

import gguf
import pytest
import torch

from nse.architecture import EditableModel, load_model
from nse.delta import Memory
from nse.errors import DeltaError, GgufError, NseError
from nse.evaluation.generate import generate
from nse.gguf_export import EDITED_TYPES, Asked, export_gguf
from nse.gguf_file import read_gguf
from nse.importing import import_model, load_gguf
from nse.patch import Weights, compose, patched
from tests.gguf_models import in_blocks, in_floats, tiny_llama, write_llama
from tests.nse.test_export import delta_of

ASKED = tuple(Asked(prompt) for prompt in ("Anna Berg lives in", "The home of Эмма Жук is", "Today it rains."))
NAMES = ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    return write_llama(tiny_llama(folder / "model"), folder / "tiny.gguf")


@pytest.fixture(scope="module")
def base(original: Path) -> EditableModel:
    """The base model, as it is imported from the file."""
    import_model(original, original.parent / "imported")
    return load_model(original.parent / "imported")


@pytest.fixture(scope="module")
def weights(base: EditableModel) -> Weights:
    return compose(base, [delta_of(base, layers=(0, 1), columns=3, seed=1)])


def said(editable: EditableModel) -> list[str]:
    return generate(editable, [asked.prompt for asked in ASKED])


def test_in_floats_the_file_says_what_the_weights_say(base, weights, original, tmp_path) -> None:
    with patched(base, weights):
        expected = said(base)
    assert expected != said(base), "the edit changes nothing, so the comparison shows nothing"
    right = [Asked(a.prompt, text) for a, text in zip(ASKED, expected, strict=True)]
    found = export_gguf(base, weights, tmp_path / "new.gguf", original=original, asked=right, edited_type="F32")
    assert found["right"] == {"version": 1, "file": 1}
    assert (found["same_answers"], found["largest_logit_difference"]) == (1, 0)
    assert set(found["update_lost"].values()) == {0}
    model, tokenizer = load_gguf(tmp_path / "new.gguf", torch.float32)
    assert said(EditableModel(model, tokenizer, base.architecture)) == expected
    for name, weight in weights.items():
        assert torch.equal(model.get_parameter(name), weight)


def test_all_but_the_edited_tensors_stays_byte_by_byte(base, weights, original, tmp_path) -> None:
    export_gguf(base, weights, tmp_path / "new.gguf", original=original, asked=ASKED)
    old, new = read_gguf(original), read_gguf(tmp_path / "new.gguf")
    for name, tensor in old.tensors.items():
        assert new.tensors[name].kind == tensor.kind
        assert (new.raw(name).tobytes() == old.raw(name).tobytes()) == (name not in NAMES)
    before, after = original.read_bytes(), (tmp_path / "new.gguf").read_bytes()
    for key, (start, end) in old.pairs.items():
        again = new.pairs[key]
        assert after[again[0] : again[1]] == before[start:end]


def test_the_file_names_version_base_and_original(base, weights, original, tmp_path) -> None:
    found = export_gguf(
        base, weights, tmp_path / "new.gguf", original=original, asked=ASKED, edited_type="Q8_0", record={"position": 7}
    )
    fields = gguf.GGUFReader(tmp_path / "new.gguf").fields
    assert fields["nse.version"].contents() == found["version"]
    assert fields["nse.base"].contents() == base.base_digest
    assert fields["nse.original.sha256"].contents() == found["original"]["sha256"]
    assert fields["nse.edited_tensors"].contents() == [f"{name} Q8_0" for name in NAMES]
    assert found["position"] == 7
    assert json.loads((tmp_path / "new.gguf.json").read_text()) == found


def test_finer_types_lose_less_of_the_update(base, weights, original, tmp_path) -> None:
    lost = []
    for kind in ("Q4_1", "Q5_1", "Q8_0", "F16"):
        found = export_gguf(base, weights, tmp_path / f"{kind}.gguf", original=original, asked=ASKED, edited_type=kind)
        lost.append(max(found["update_lost"].values()))
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 1e-3 < lost[0]


@pytest.mark.parametrize("kind", EDITED_TYPES)
def test_every_type_can_be_loaded_back(base, weights, original, tmp_path, kind) -> None:
    found = export_gguf(base, weights, tmp_path / "new.gguf", original=original, asked=ASKED[:1], edited_type=kind)
    assert set(found["edited"].values()) == {kind}


def test_the_file_of_another_model_is_refused(base, weights, original, tmp_path) -> None:
    others = {
        "is not the base model's model.layers.0.mlp.down_proj": in_floats,  # not rounded to blocks
        "original's model.layers.0.mlp.gate_proj.weight is not the base model's": lambda name: (
            gguf.GGMLQuantizationType.F16 if "blk.0.ffn_gate" in name else in_blocks(name)
        ),
    }
    for told, kinds in others.items():
        other = write_llama(original.parent / "model", tmp_path / "other.gguf", kinds=kinds)
        with pytest.raises(GgufError, match=told):
            export_gguf(base, weights, tmp_path / "new.gguf", original=other, asked=ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["other.gguf"]


def test_what_cannot_be_exported_is_refused(base, weights, original, tmp_path) -> None:
    path = tmp_path / "new.gguf"
    with pytest.raises(DeltaError, match="the original file is it already"):
        export_gguf(base, Weights(), path, original=original, asked=ASKED)
    memory = Memory("grace", {}, torch.zeros(0, dtype=torch.int32))
    with pytest.raises(DeltaError, match="a memory of grace"):
        export_gguf(base, Weights(weights, [memory]), path, original=original, asked=ASKED)
    with pytest.raises(GgufError, match="'Q4_K' is none that the gguf package packs"):
        export_gguf(base, weights, path, original=original, asked=ASKED, edited_type="Q4_K")
    unknown = {"model.layers.9.mlp.down_proj.weight": torch.zeros(64, 96)}
    with pytest.raises(GgufError, match=r"has no tensor for model.layers.9"):
        export_gguf(base, unknown, path, original=original, asked=ASKED)
    path.write_text("mine")
    with pytest.raises(NseError, match=r"new.gguf exists"):
        export_gguf(base, weights, path, original=original, asked=ASKED)
    assert path.read_text() == "mine"


def test_with_corrections_unjudged_there_is_no_share_of_right_ones(base, weights, original, tmp_path) -> None:
    found = export_gguf(base, weights, tmp_path / "new.gguf", original=original, asked=ASKED)
    assert found["right"] == {"version": None, "file": None}
    assert found["asked"] == 3
