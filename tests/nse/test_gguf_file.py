"""The container format against the `gguf` package's own reader and writer."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from nse.errors import GgufError
from nse.gguf_file import packed, read_gguf, write_with
from nse.gguf_names import tensor_names
from tests.gguf_models import tiny_llama, write_llama

Kind = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return write_llama(tiny_llama(folder / "model"), folder / "tiny.gguf")


def contents(path: Path) -> tuple[dict, dict]:
    """Keys and tensors, as the package reads them."""
    reader = gguf.GGUFReader(path)
    keys = {name: (field.types, field.contents()) for name, field in reader.fields.items() if "GGUF." not in name}
    return keys, {t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors}


def test_the_head_is_read_as_the_package_reads_it(file) -> None:
    head, (keys, tensors) = read_gguf(file), contents(file)
    assert (head.architecture, head.metadata["llama.block_count"]) == ("llama", 3)
    for name, (types, value) in keys.items():
        assert head.metadata[name] == (len(value) if types[0] == gguf.GGUFValueType.ARRAY else value)
    assert list(head.tensors) == list(tensors)
    for name, (kind, shape, data) in tensors.items():
        assert (head.tensors[name].kind, list(reversed(head.tensors[name].shape))) == (kind, shape)
        assert head.raw(name).tobytes() == data


def test_a_copy_differs_in_what_was_replaced_and_in_its_own_keys_alone(file, tmp_path) -> None:
    name, weight = "blk.1.ffn_down.weight", np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    blocks = packed(name, weight, Kind.F16)
    write_with(
        read_gguf(file),
        tmp_path / "new.gguf",
        tensors={name: (Kind.F16, blocks)},
        metadata={"nse.version": "abc", "nse.edited_tensors": ["one", "two"]},
    )
    (keys, tensors), (new_keys, new_tensors) = contents(file), contents(tmp_path / "new.gguf")
    assert new_keys.pop("nse.version")[1] == "abc"
    assert new_keys.pop("nse.edited_tensors")[1] == ["one", "two"]
    assert new_keys == keys
    kind, _, data = new_tensors.pop(name)
    assert (kind, data) == (Kind.F16, weight.astype(np.float16).tobytes())
    del tensors[name]
    assert new_tensors == tensors
    again = read_gguf(tmp_path / "new.gguf")
    write_with(again, tmp_path / "third.gguf", tensors={}, metadata={"nse.version": "def"})
    assert contents(tmp_path / "third.gguf")[0]["nse.version"][1] == "def"  # no key twice


def test_a_copy_with_nothing_replaced_has_the_same_bytes(file, tmp_path) -> None:
    write_with(read_gguf(file), tmp_path / "same.gguf", tensors={}, metadata={})
    assert (tmp_path / "same.gguf").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_1, Kind.Q5_0, Kind.Q4_1, Kind.Q4_0])
def test_numbers_are_packed_and_unpacked_row_by_row(kind, file, tmp_path) -> None:
    name, weight = "blk.0.ffn_down.weight", np.random.default_rng(1).normal(size=(64, 96)).astype(np.float32)
    blocks = packed(name, weight, kind)
    write_with(read_gguf(file), tmp_path / "new.gguf", tensors={name: (kind, blocks)}, metadata={})
    found = read_gguf(tmp_path / "new.gguf").numbers(name)
    widest = {"Q4_0": 0.6, "Q4_1": 0.6, "Q5_0": 0.3, "Q5_1": 0.3, "Q8_0": 0.03, "BF16": 0.02, "F16": 2e-3, "F32": 0}
    assert np.abs(found - weight).max() <= widest[kind.name]


def test_every_byte_that_is_missing_is_noticed(file, tmp_path) -> None:
    whole = file.read_bytes()
    first = min(tensor.start for tensor in read_gguf(file).tensors.values())
    cuts = [0, 3, 4, 7, 20, 24, *range(25, first, 97), first, len(whole) - 33]
    for size in cuts:
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(GgufError, match=r"GGUF|need") as refused:
            read_gguf(tmp_path / "cut.gguf")
        assert "\n" not in str(refused.value)


def test_other_files_are_refused_by_what_they_are(file, tmp_path) -> None:
    data = file.read_bytes()
    kinds = {
        "not a GGUF file": b"PK\x03\x04" + data[4:],
        "version 1 of the format": data[:4] + struct.pack("<I", 1) + data[8:],
        "is big-endian": data[:4] + struct.pack(">I", 3) + data[8:],
    }
    for told, changed in kinds.items():
        (tmp_path / "other.gguf").write_bytes(changed)
        with pytest.raises(GgufError, match=told):
            read_gguf(tmp_path / "other.gguf")
    with pytest.raises(GgufError, match="is not a file"):
        read_gguf(tmp_path)


def test_a_part_of_a_split_file_is_refused(tmp_path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.add_tensor("blk.0.ffn_down.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match="part 2 of 3 of a split file: join them first"):
        read_gguf(tmp_path / "part.gguf")


def test_types_that_the_package_cannot_pack_are_refused_with_another_to_take() -> None:
    weight = np.ones((2, 256), np.float32)
    with pytest.raises(GgufError, match=r"Q4_K in the file.*cannot pack.*--edited-type F16"):
        packed("blk.0.ffn_down.weight", weight, Kind.Q4_K)
    with pytest.raises(GgufError, match=r"rows of 72 numbers.*blocks of Q8_0"):
        packed("blk.0.ffn_down.weight", np.ones((2, 72), np.float32), Kind.Q8_0)
    with pytest.raises(GgufError, match="too large for F16"):
        packed("blk.0.ffn_down.weight", weight * 1e6, Kind.F16)


def test_names_come_from_the_packages_table(file) -> None:
    head = read_gguf(file)
    names = tensor_names(head, ["model.layers.2.mlp.down_proj.weight", "model.embed_tokens.weight", "lm_head.weight"])
    assert names == {
        "model.layers.2.mlp.down_proj.weight": "blk.2.ffn_down.weight",
        "model.embed_tokens.weight": "token_embd.weight",
    }
