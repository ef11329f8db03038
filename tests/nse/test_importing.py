"""`nse import`: what comes in is what lies in the new folder, whole or not at all; what cannot come in is told in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nse import gguf_file, importing
from nse.architecture import load_model
from nse.errors import GgufError, ImportFailed, NseError
from nse.files import check_free
from nse.fingerprint import file_digest
from nse.importing import RECORD, import_model
from tests.gguf_models import CHAT, in_floats, tiny_llama, write_llama


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in transformers' format and two GGUF files of it, one in blocks, one in floats."""
    folder = tmp_path_factory.mktemp("made")
    tiny_llama(folder / "model")
    write_llama(folder / "model", folder / "blocks.gguf")
    write_llama(folder / "model", folder / "floats.gguf", kinds=in_floats)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The model's folder, to be spoilt."""
    return Path(shutil.copytree(made / "model", tmp_path / "model"))


def test_a_file_of_floats_gives_the_model_that_it_was_made_from(made, tmp_path) -> None:
    import_model(made / "floats.gguf", tmp_path / "new")
    ours, theirs = load_model(tmp_path / "new"), load_model(made / "model")
    assert ours.tensor_digests == theirs.tensor_digests
    for text in ("The home of Эмма Жук is", " 12  spaces", "</s> in the text"):
        assert ours.tokenizer(text)["input_ids"] == theirs.tokenizer(text)["input_ids"]


def test_blocks_are_unpacked_as_the_package_does(made, tmp_path) -> None:
    record = import_model(made / "blocks.gguf", tmp_path / "new")
    saved = load_file(tmp_path / "new/model.safetensors")
    head = gguf_file.read_gguf(made / "blocks.gguf")
    expected = torch.from_numpy(head.numbers("blk.1.ffn_down.weight"))
    assert torch.equal(saved["model.layers.1.mlp.down_proj.weight"], expected)
    assert record["source"]["types"] == {"F16": 1, "F32": 7, "Q4_1": 3, "Q8_0": 18}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_are_rounded_once(made, tmp_path, dtype) -> None:
    record = import_model(made / "blocks.gguf", tmp_path / "new", dtype=dtype)
    saved = load_file(tmp_path / "new/model.safetensors")
    numbers = torch.from_numpy(gguf_file.read_gguf(made / "blocks.gguf").numbers("blk.0.ffn_down.weight"))
    assert torch.equal(saved["model.layers.0.mlp.down_proj.weight"], numbers.to(dtype))
    assert record["base"] == load_model(tmp_path / "new", dtype=dtype).base_digest


def test_the_record_names_both_sides(made, tmp_path) -> None:
    record = import_model(made / "blocks.gguf", tmp_path / "new")
    assert json.loads((tmp_path / "new" / RECORD).read_text()) == record
    assert record["source"]["sha256"] == file_digest(made / "blocks.gguf")
    assert record["source"]["licence"] == "cc0-1.0"
    assert record["base"] == load_model(tmp_path / "new").base_digest
    written = {path.name: file_digest(path) for path in (tmp_path / "new").iterdir() if path.name != RECORD}
    assert record["files"] == written
    assert {"gguf", "transformers", "torch"} <= set(record["versions"])
    assert record["known"] is True


def test_special_tokens_and_the_chat_template_are_kept(made, tmp_path) -> None:
    import_model(made / "blocks.gguf", tmp_path / "new")
    tokenizer = load_model(tmp_path / "new").tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
    assert tokenizer.chat_template == CHAT
    assert tokenizer("The")["input_ids"][0] != tokenizer.bos_token_id


def test_bos_is_set_where_the_file_says_so(made, tmp_path) -> None:
    path = write_llama(made / "model", tmp_path / "bos.gguf", add_bos=True)
    import_model(path, tmp_path / "new")
    tokenizer = load_model(tmp_path / "new").tokenizer
    assert tokenizer("The")["input_ids"][0] == tokenizer.bos_token_id


def test_an_untied_head_comes_along(tmp_path) -> None:
    source = tiny_llama(tmp_path / "model", tied=False)
    import_model(write_llama(source, tmp_path / "untied.gguf", kinds=in_floats), tmp_path / "new")
    assert load_model(tmp_path / "new").base_digest == load_model(source).base_digest


def test_a_folder_is_imported_from_shards_and_from_a_cache_of_links(made, tmp_path) -> None:
    load_model(made / "model").model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    for path in (made / "model").glob("token*"):
        shutil.copy(path, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    repository = tmp_path / "models--someone--tiny"
    for name in ("0123", "4567"):
        (repository / "snapshots" / name).mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in (tmp_path / "shards").iterdir():
        blob = repository / "blobs" / file_digest(path)
        shutil.copy(path, blob)
        (repository / "snapshots/4567" / path.name).symlink_to(f"../../blobs/{blob.name}")
    with pytest.raises(ImportFailed, match=r"give one of snapshots/ \(0123, 4567\)"):
        import_model(repository, tmp_path / "new")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("4567")
    record = import_model(repository, tmp_path / "new")
    assert record["source"]["name"] == "4567"
    assert record["base"] == load_model(made / "model").base_digest == load_model(tmp_path / "new").base_digest
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())
    (repository / "refs/main").write_text("89ab")
    with pytest.raises(ImportFailed, match="refs/main names snapshot 89ab, which is not there"):
        import_model(repository, tmp_path / "other")


def _without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _lost_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/gone")


def _lost_shard(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_without("config.json"), "no config.json"),
        (_without("model.safetensors"), "has no weights"),
        (_without("tokenizer.json", "tokenizer_config.json"), "cannot be loaded"),
        (_pickled, "only pytorch_model.bin.*a pickle can run any program.*weights_only=True"),
        (_lost_link, "a link to a file that is not there"),
        (_lost_shard, "model-00002-of-00002.safetensors, which is not there"),
        (_adapter, "is an adapter"),
        (_cut, "cannot be loaded"),
        (_config(model_type="unheard_of"), "names no model that transformers has"),
        (_config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised weights"),
        (_config(vision_config={}), "reads more than text"),
        (_config(num_hidden_layers=4), "lacks 9 weights of its model"),
        (_config(intermediate_size=64), "another shape|cannot be loaded"),
    ],
)
def test_a_folder_that_cannot_be_imported_is_refused_in_one_line(folder, tmp_path, spoil, told) -> None:
    spoil(folder)
    with pytest.raises(ImportFailed, match=told) as refused:
        import_model(folder, tmp_path / "new")
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_single_files_that_are_no_model_are_refused(folder, tmp_path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    for name, told in (
        ("pytorch_model.bin", "is pickled"),
        ("model.safetensors", "give its folder"),
        ("no.gguf", "is not there"),
    ):
        with pytest.raises(ImportFailed, match=told):
            import_model(folder / name, tmp_path / "new")
    with pytest.raises(GgufError, match="not a GGUF file"):
        import_model(folder / "tokenizer.json", tmp_path / "new")


def small_file(path: Path, architecture: str) -> Path:
    """A GGUF file with nothing in it that any loader could use."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("v.blk.0.ffn_down.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["clip", "rwkv7", "made-up"])
def test_a_gguf_family_that_transformers_does_not_read_is_refused(tmp_path, architecture) -> None:
    with pytest.raises(GgufError, match=f"{architecture}.*cannot be read by transformers"):
        import_model(small_file(tmp_path / "small.gguf", architecture), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]


def test_positions_that_transformers_would_compute_otherwise_are_refused(made, tmp_path) -> None:
    path = write_llama(made / "model", tmp_path / "far.gguf", llama__rope__scaling__type="yarn")
    with pytest.raises(GgufError, match=r"scales positions \(yarn\)"):
        import_model(path, tmp_path / "new")


def test_a_tensor_that_transformers_leaves_out_is_refused(made, tmp_path) -> None:
    head = gguf_file.read_gguf(made / "blocks.gguf")
    tensor = head.tensors["output_norm.weight"]
    more = dict(head.tensors) | {"rope_freqs.weight": gguf_file.GgufTensor("rope_freqs.weight", *_rest(tensor))}
    object.__setattr__(head, "tensors", more)
    gguf_file.write_with(head, tmp_path / "more.gguf", tensors={}, metadata={})
    with pytest.raises(GgufError, match=r"leaves rope_freqs.weight out"):
        import_model(tmp_path / "more.gguf", tmp_path / "new")


def _rest(tensor: gguf_file.GgufTensor) -> tuple:
    return tensor.shape, tensor.kind, tensor.start, tensor.size


def test_without_the_gguf_package_the_message_says_what_to_install(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    with pytest.raises(GgufError, match=r"pip install 'nse-pipeline\[gguf\]'"):
        import_model(made / "blocks.gguf", tmp_path / "new")


def test_a_model_that_is_another_one_when_it_is_loaded_again_is_not_written(made, tmp_path, monkeypatch) -> None:
    load = importing._load_folder

    def other(place: Path, dtype: torch.dtype):
        model, tokenizer = load(place, dtype)
        model.get_parameter("model.norm.weight").data[0] += 1e-7
        return model, tokenizer

    monkeypatch.setattr(importing, "_load_folder", other)
    with pytest.raises(ImportFailed, match="its weights are others"):
        import_model(made / "blocks.gguf", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_taken_folder_is_refused_before_anything_is_read(tmp_path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/mine.txt").write_text("x")
    with pytest.raises(NseError, match="exists and is not empty"):
        import_model(tmp_path / "nothing.gguf", tmp_path / "new")


def test_killed_in_the_middle_it_leaves_nothing_under_the_name(made, tmp_path) -> None:
    script = textwrap.dedent(
        """
        import os, pathlib, signal, sys
        from nse import importing
        importing._check_same = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        importing.import_model(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, made / "blocks.gguf", tmp_path / "new"],
        cwd=os.getcwd(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "new").exists()
    check_free(tmp_path / "new")
    import_model(made / "blocks.gguf", tmp_path / "new")


def test_smollm2_is_the_model_of_the_figures(smollm2) -> None:
    record = json.loads((smollm2 / RECORD).read_text())
    assert record["base"] == "82c2466d2b91fd240bb10b573cc38ca118ba1753e4cbc6aaf5c8bae28990d060"
    editable = load_model(smollm2)
    assert editable.base_digest == record["base"]
    assert (editable.layers, editable.vocabulary) == (30, 49152)
    assert editable.tokenizer.chat_template is not None
