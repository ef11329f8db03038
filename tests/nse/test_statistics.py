"""Second moments: the estimate, its file, and ROME's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nse.errors import HyperparameterError, StatisticsError
from nse.fingerprint import file_digest
from nse.patch import patched
from nse.statistics import METADATA_KEY, SecondMoments, collect_second_moments, read_second_moments


def test_the_estimate_is_the_mean_of_outer_products_of_the_keys_of_every_token(precise, corpus) -> None:
    moments = collect_second_moments(precise, corpus, layers=(0, 2), tokens=10**6)
    seen: dict[int, list[torch.Tensor]] = {0: [], 2: []}
    handles = [
        precise.projection(la).register_forward_pre_hook(lambda _m, x, la=la: seen[la].append(x[0][0].double()))
        for la in seen
    ]
    with torch.no_grad():
        for line in corpus.read_text(encoding="utf-8").splitlines():
            precise.model(input_ids=torch.tensor([precise.tokenizer(line)["input_ids"]]))
    for handle in handles:
        handle.remove()
    for layer, rows in seen.items():
        keys = torch.cat(rows)
        expected = (keys.T @ keys / len(keys)).float()
        torch.testing.assert_close(moments.of(precise.projection_name(layer)), expected, rtol=1e-5, atol=1e-7)
        assert moments.metadata["tokens"] == len(keys)


def test_provenance_names_model_tokenizer_and_corpus(editable, corpus) -> None:
    metadata = collect_second_moments(editable, corpus, layers=(1,)).metadata
    assert metadata["model_digest"] == editable.base_digest
    assert metadata["tokenizer_digest"] == editable.tokenizer_digest
    assert metadata["corpus_sha256"] == file_digest(corpus)
    assert metadata["budget"] == 10 * editable.base_weight(editable.parameter_name(1)).shape[1]


def test_reading_stops_when_the_budget_is_reached(editable, corpus, tmp_path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(corpus.read_text(encoding="utf-8") * 4, encoding="utf-8")
    calls: list[tuple[str, int, int]] = []
    few, all_ = (
        collect_second_moments(editable, long, layers=(1,), tokens=n, progress=lambda *c: calls.append(c))
        for n in (100, 10**9)
    )
    assert 100 <= few.metadata["tokens"] < all_.metadata["tokens"]
    assert calls[0] == ("second moments", 100, 100)
    assert calls[-1] == ("second moments", all_.metadata["tokens"], 10**9)


def test_a_line_longer_than_the_model_is_cut(editable, tmp_path) -> None:
    (tmp_path / "c.txt").write_text("so and " * 200)
    assert collect_second_moments(editable, tmp_path / "c.txt", layers=(1,)).metadata["tokens"] == 96


def test_a_file_comes_back_as_it_was(editable, corpus, tmp_path) -> None:
    moments = collect_second_moments(editable, corpus, layers=(1, 2))
    moments.save(tmp_path / "deep" / "c0.safetensors")
    again = read_second_moments(tmp_path / "deep" / "c0.safetensors")
    assert again.metadata == moments.metadata
    assert set(again.moments) == {editable.projection_name(1), editable.projection_name(2)}
    for name, moment in moments.moments.items():
        assert moment.dtype == torch.float32
        assert torch.equal(again.of(name), moment)
    first = (tmp_path / "deep" / "c0.safetensors").read_bytes()
    collect_second_moments(editable, corpus, layers=(2, 1)).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == first


def test_weights_in_force_matter_so_the_base_must_be_in_force(editable, corpus) -> None:
    base = collect_second_moments(editable, corpus, layers=(1,))
    name = editable.parameter_name(0)
    with patched(editable, {name: editable.base_tensors[name] * 2}):
        other = collect_second_moments(editable, corpus, layers=(1,))
    module = editable.projection_name(1)
    assert not torch.allclose(base.of(module), other.of(module))


def test_a_layer_that_was_not_collected_is_named_with_those_that_were(editable, corpus) -> None:
    moments = collect_second_moments(editable, corpus, layers=(1,))
    have = editable.projection_name(1).replace(".", r"\.")
    with pytest.raises(StatisticsError, match=rf"no second moment for x\.y \(have: {have}\): run `nse stats`"):
        moments.of("x.y")


def test_a_layer_that_the_model_lacks_is_refused(editable, corpus) -> None:
    with pytest.raises(HyperparameterError, match="layers: 4 is not in this model"):
        collect_second_moments(editable, corpus, layers=(1, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no text"), (b"\n \n", "holds no text"), (b"M\xfcnchen", r"is not UTF-8 \(line 1, byte 1\)")],
)
def test_a_corpus_without_text_is_refused(editable, tmp_path, content, message) -> None:
    (tmp_path / "c.txt").write_bytes(content)
    with pytest.raises(StatisticsError, match=message):
        collect_second_moments(editable, tmp_path / "c.txt", layers=(1,))


def test_a_missing_corpus_is_refused(editable, tmp_path) -> None:
    with pytest.raises(StatisticsError, match="cannot be read"):
        collect_second_moments(editable, tmp_path / "c.txt", layers=(1,))


def test_the_layout_of_rome_is_read_as_a_mean(tmp_path) -> None:
    total = np.arange(9, dtype=np.float32).reshape(3, 3) + 10 * np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "c.npz", **{"mom2.mom2": total, "mom2.count": np.array(4), "mom2.constructor": "x"})
    moments = read_second_moments(tmp_path / "c.npz", module="transformer.h.1.mlp.c_proj")
    torch.testing.assert_close(moments.of("transformer.h.1.mlp.c_proj"), torch.from_numpy(total / 4))
    assert moments.metadata["tokens"] == 4
    assert list(read_second_moments(tmp_path / "c.npz").moments) == ["c"]


def test_another_npz_is_refused(tmp_path) -> None:
    np.savez(tmp_path / "c.npz", x=np.zeros(3))
    with pytest.raises(StatisticsError, match=r"lacks mom2\.mom2 or mom2\.count"):
        read_second_moments(tmp_path / "c.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"plain text"])
def test_a_broken_npz_is_refused(tmp_path, content) -> None:
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(StatisticsError, match=r"c\.npz cannot be read as \.npz"):
        read_second_moments(tmp_path / "c.npz")


@pytest.mark.parametrize("name", ["c.safetensors", "c.npz"])
def test_a_missing_file_says_how_to_make_it(tmp_path, name) -> None:
    with pytest.raises(StatisticsError, match=r"do not exist: make them with `nse stats`"):
        read_second_moments(tmp_path / name)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path) -> None:
    (tmp_path / "c").write_bytes(b"nothing of the kind")
    with pytest.raises(StatisticsError, match="cannot be read as safetensors"):
        read_second_moments(tmp_path / "c")


@pytest.mark.parametrize("head", [None, {"schema": 2}, {}, [1]])
def test_a_file_of_another_kind_or_a_newer_schema_is_refused(tmp_path, head) -> None:
    save_file({"w": torch.eye(2)}, tmp_path / "c", None if head is None else {METADATA_KEY: json.dumps(head)})
    with pytest.raises(StatisticsError, match="is not a second-moment file of schema 1 or below"):
        read_second_moments(tmp_path / "c")


def test_a_file_with_a_broken_header_is_refused(tmp_path) -> None:
    save_file({"w": torch.eye(2)}, tmp_path / "c", {METADATA_KEY: "{"})
    with pytest.raises(StatisticsError, match="has a broken header"):
        read_second_moments(tmp_path / "c")


def test_metadata_is_kept_whatever_it_says(tmp_path) -> None:
    moments = SecondMoments({"m": torch.eye(2)}, {"source": "ж"})
    replace(moments).save(tmp_path / "c")
    assert read_second_moments(tmp_path / "c").metadata == {"source": "ж"}
