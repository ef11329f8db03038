"""Exported versions against the weights in force: adapters as PEFT loads them, whole models as transformers does."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nse.architecture import EditableModel, load_model
from nse.delta import Delta, LayerDelta, Memory
from nse.errors import ArchitectureError, DeltaError, NseError
from nse.export import RECORD, SERVED_RANKS, export_lora, export_merged
from nse.fingerprint import file_digest
from nse.patch import compose, patched, version_digest
from tests.conformance.families import CONFIGURATIONS, write

PROMPTS = ("Anna Berg lives in", "The home of Эмма Жук is", "Today it rains.")


def delta_of(editable: EditableModel, *, layers: tuple[int, ...], columns: int, seed: int, scale: float = 0.1) -> Delta:
    """A random update of some layers, one fact a column."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = {}
    for layer in layers:
        name = editable.parameter_name(layer)
        d_out, d_in = editable.base_weight(name).shape
        index = torch.arange(columns, dtype=torch.int32)
        parts[name] = LayerDelta(scale * noise(d_out, columns), noise(columns, d_in), index, torch.zeros(columns, d_in))
    return Delta(parts, tuple(f"{seed}-{i}" for i in range(columns)), editable.base_digest)


@pytest.fixture
def deltas(editable: EditableModel) -> list[Delta]:
    """Two rounds that share a layer, with unlike ranks per layer."""
    return [
        delta_of(editable, layers=(1, 2), columns=3, seed=1),
        delta_of(editable, layers=(2,), columns=2, seed=2),
    ]


@torch.no_grad()
def logits(model: torch.nn.Module, editable: EditableModel, prompt: str) -> torch.Tensor:
    return model(input_ids=torch.tensor([editable.tokenizer(prompt)["input_ids"]])).logits[0].float()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT 0.21's
def test_an_adapter_that_peft_loads_on_the_base_gives_the_edited_logits(editable, folder, deltas, tmp_path) -> None:
    record = export_lora(editable, deltas, tmp_path / "adapter", prompts=PROMPTS)
    assert record["largest_logit_difference"] < 1e-5
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = [logits(base, editable, prompt) for prompt in PROMPTS]
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    with patched(editable, compose(editable, deltas)):
        for prompt, old in zip(PROMPTS, before, strict=True):
            expected = logits(editable.model, editable, prompt)
            assert (expected - old).abs().max() > 0.1, "the edit changes nothing, so the comparison shows nothing"
            torch.testing.assert_close(logits(adapted, editable, prompt), expected, rtol=0, atol=1e-5)


def test_all_modules_have_one_rank_that_servers_take_and_no_patterns(editable, deltas, tmp_path) -> None:
    record = export_lora(editable, deltas, tmp_path / "adapter", prompts=PROMPTS)
    names = [editable.parameter_name(1), editable.parameter_name(2)]
    assert record["ranks"] == dict(zip(names, (3, 5), strict=True))
    assert record["rank"] == 8
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert not config.get("rank_pattern")
    assert not config.get("alpha_pattern")
    assert config["target_modules"] == [name.removesuffix(".weight") for name in names]
    assert config["fan_in_fan_out"] is editable.architecture.transposed
    for name, tensor in load_file(tmp_path / "adapter/adapter_model.safetensors").items():
        assert tensor.shape[0 if "lora_A" in name else 1] in SERVED_RANKS
        assert tensor.dtype == torch.float32
    a, b = (float(t.norm()) for _, t in sorted(load_file(tmp_path / "adapter/adapter_model.safetensors").items())[:2])
    assert a == pytest.approx(b, rel=1e-5), "factors are not balanced"


def test_the_exact_rank_is_found_where_columns_repeat(editable, tmp_path) -> None:
    delta = delta_of(editable, layers=(1,), columns=3, seed=1)
    record = export_lora(editable, [delta, delta], tmp_path / "adapter", prompts=PROMPTS)
    assert list(record["ranks"].values()) == [3]
    assert record["largest_logit_difference"] < 1e-5


def test_a_rank_below_the_exact_one_is_the_best_of_its_rank_and_says_what_it_leaves_out(
    editable, deltas, tmp_path
) -> None:
    record = export_lora(editable, deltas, tmp_path / "adapter", rank=2, prompts=PROMPTS)
    assert set(record["ranks"].values()) == {2}
    for name, error in record["relative_error"].items():
        update = sum(d.layers[name].product() for d in deltas if name in d.layers)
        values = torch.linalg.svdvals(update)
        assert error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-6)
    assert record["largest_logit_difference"] > 1e-3


def test_an_adapter_is_in_the_dtype_of_the_model_and_compared_in_it(loaded, family, tmp_path) -> None:
    half = loaded(family, torch.bfloat16)
    deltas = [delta_of(half, layers=(1, 2), columns=3, seed=1)]
    record = export_lora(half, deltas, tmp_path / "adapter", prompts=PROMPTS)
    assert {t.dtype for t in load_file(tmp_path / "adapter/adapter_model.safetensors").values()} == {torch.bfloat16}
    assert 1e-5 < record["largest_logit_difference"] < 0.5


def test_the_base_has_no_adapter(editable, deltas, tmp_path) -> None:
    emptied = [delta.without(delta.case_ids) for delta in deltas]
    for nothing in ([], emptied):
        with pytest.raises(DeltaError, match="nothing to put into an adapter"):
            export_lora(editable, nothing, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_version_with_a_memory_is_refused_by_both(editable, tmp_path) -> None:
    memory = Memory("grace", {}, torch.zeros(0, dtype=torch.int32))
    delta = Delta({}, (), editable.base_digest, memory=memory)
    for export, given in ((export_lora, [delta]), (export_merged, compose(editable, [delta]))):
        with pytest.raises(DeltaError, match="memory of grace beside its weights"):
            export(editable, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_no_matrix_of_a_module_is_refused(editable, tmp_path, monkeypatch) -> None:
    delta = delta_of(editable, layers=(1,), columns=1, seed=1)
    monkeypatch.setattr(EditableModel, "base_weight", lambda self, name: self._base[name][None])
    monkeypatch.setattr("nse.export.compose", lambda editable, deltas: dict.fromkeys(deltas[0].layers))
    with pytest.raises(ArchitectureError, match="nse export merged"):
        export_lora(editable, [delta], tmp_path / "adapter")


def test_a_family_whose_adapters_peft_puts_elsewhere_is_refused_and_can_be_merged(tmp_path) -> None:
    mixture = load_model(write(CONFIGURATIONS["glm4_moe"](), tmp_path / "model", padding_side="right"))
    delta = delta_of(mixture, layers=(1,), columns=2, seed=1)
    with pytest.raises(ArchitectureError, match="nse export merged"):
        export_lora(mixture, [delta], tmp_path / "adapter", prompts=PROMPTS)
    assert not (tmp_path / "adapter").exists()
    weights = compose(mixture, [delta])
    export_merged(mixture, weights, tmp_path / "merged")
    assert load_model(tmp_path / "merged").base_digest == version_digest(mixture, weights) != mixture.base_digest


def test_without_peft_the_message_says_how_to_get_it(editable, deltas, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nse.export.find_spec", lambda name: None)
    with pytest.raises(NseError, match=r"nse-pipeline\[export\]"):
        export_lora(editable, deltas, tmp_path / "adapter")


def test_a_merged_model_is_sharded_loads_and_is_that_version_to_the_bit(editable, deltas, tmp_path) -> None:
    weights = compose(editable, deltas)
    record = export_merged(editable, weights, tmp_path / "merged", max_shard_size="60KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    again = load_model(tmp_path / "merged")
    assert again.base_digest == version_digest(editable, weights) == record["version"] != record["base"]
    assert record["base"] == editable.base_digest
    assert again.tokenizer_digest == editable.tokenizer_digest
    assert record["exact"] is True
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.float32
    with patched(editable, weights):
        assert torch.equal(logits(model, editable, PROMPTS[0]), logits(editable.model, editable, PROMPTS[0]))


def test_the_base_can_be_merged_and_in_one_file(editable, tmp_path) -> None:
    record = export_merged(editable, {}, tmp_path / "merged")
    assert (tmp_path / "merged/model.safetensors").is_file()
    assert record["version"] == record["base"] == load_model(tmp_path / "merged").base_digest


def test_a_merged_model_in_another_dtype_says_so_and_keeps_ties(editable, deltas, tmp_path) -> None:
    weights = compose(editable, deltas)
    record = export_merged(editable, weights, tmp_path / "merged", dtype=torch.bfloat16)
    assert record["exact"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.bfloat16
    assert len(list(model.parameters())) == len(editable.base_tensors)
    name = editable.parameter_name(1)
    assert torch.equal(model.get_parameter(name), weights[name].to(torch.bfloat16))


def test_whatever_is_in_force_around_it_the_version_is_what_was_asked_for(editable, deltas, tmp_path) -> None:
    name = editable.parameter_name(0)
    with patched(editable, {name: editable.base_tensors[name] * 2}):
        record = export_merged(editable, {}, tmp_path / "merged")
        adapter = export_lora(editable, deltas, tmp_path / "adapter", prompts=PROMPTS)
    assert load_model(tmp_path / "merged").base_digest == record["version"] == editable.base_digest
    assert adapter["largest_logit_difference"] < 1e-5


def test_the_record_names_every_file_with_its_digest_and_what_the_caller_adds(editable, deltas, tmp_path) -> None:
    record = export_lora(editable, deltas, tmp_path / "adapter", prompts=PROMPTS, record={"deltas": ["abc"]})
    assert record == json.loads((tmp_path / "adapter" / RECORD).read_text())
    assert record["deltas"] == ["abc"]
    files = {p.name: file_digest(p) for p in (tmp_path / "adapter").iterdir() if p.name != RECORD}
    assert record["files"] == files
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert {"peft", "torch"} <= set(record["versions"])
    assert record["version"] == version_digest(editable, compose(editable, deltas))


def test_a_folder_that_holds_something_is_refused_and_an_empty_one_is_taken(editable, deltas, tmp_path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for place, why in ((taken, "taken exists and is not empty"), (tmp_path / "file", "file exists: name another")):
        with pytest.raises(NseError, match=why):
            export_merged(editable, {}, place)
        with pytest.raises(NseError, match=why):
            export_lora(editable, deltas, place)
    assert [p.name for p in taken.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export_merged(editable, {}, tmp_path / "empty")
    assert (tmp_path / "empty" / RECORD).is_file()


def test_an_export_that_fails_leaves_nothing(editable, deltas, tmp_path, monkeypatch) -> None:
    def fail(*_args, **_kwargs) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("nse.export.recorded", fail)
    for export in (
        lambda: export_merged(editable, {}, tmp_path / "merged"),
        lambda: export_lora(editable, deltas, tmp_path / "adapter", prompts=PROMPTS),
    ):
        with pytest.raises(OSError, match="disk full"):
            export()
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_in_the_middle_leaves_no_folder_of_that_name(model_folders, tmp_path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        import nse.export
        import nse.files
        from nse.architecture import load_model

        nse.files.file_digest = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        nse.export.export_merged(load_model(Path({str(model_folders["gpt2"])!r})), {{}}, Path({str(tmp_path / "merged")!r}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "merged").exists()
    assert [p.name.startswith(".merged.") for p in tmp_path.iterdir()] == [True]
