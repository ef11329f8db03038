"""Files of second moments: ours, and those of the ROME and MEMIT projects, one by one or by the folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nse.errors import StatisticsError
from nse.second_moment_files import METADATA_KEY, SecondMoments, read_second_moments
from nse.statistics import collect_second_moments


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


def test_a_layer_that_was_not_collected_is_named_with_those_that_were(editable, corpus) -> None:
    moments = collect_second_moments(editable, corpus, layers=(1,))
    have = editable.projection_name(1).replace(".", r"\.")
    with pytest.raises(StatisticsError, match=rf"no second moment for x\.y \(have: {have}\): run `nse stats`"):
        moments.of("x.y")


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


def published(path: Path, scale: float = 1.0, count: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{"mom2.mom2": scale * np.eye(3, dtype=np.float32), "mom2.count": np.array(count)})


NAMES = {
    "transformer.h.13.mlp.c_proj_float32_mom2_100000.npz": "transformer.h.13.mlp.c_proj",
    "transformer.h.3.mlp.fc_out_float16_mom2_50.npz": "transformer.h.3.mlp.fc_out",
    "model.layers.4.mlp.down_proj_float32_mom2.npz": "model.layers.4.mlp.down_proj",
    "transformer.h.5.mlp.c_proj_float64_mean-mom2-norm_mean_10.npz": "transformer.h.5.mlp.c_proj",
    "transformer.h.6.mlp.c_proj_float32_mom2_t{batch_tokens}_100000.npz": "transformer.h.6.mlp.c_proj",
}


def test_a_published_file_says_its_module_by_its_name(tmp_path) -> None:
    for file, module in NAMES.items():
        published(tmp_path / file)
        assert list(read_second_moments(tmp_path / file).moments) == [module]


def test_a_published_folder_loads_as_it_is(tmp_path) -> None:
    for number, file in enumerate(NAMES):
        published(tmp_path / "gpt2-xl" / "wikipedia_stats" / file, scale=8.0 + number, count=4 + number)
    published(tmp_path / "notes.npz")
    moments = read_second_moments(tmp_path)
    assert set(moments.moments) == set(NAMES.values())
    for number, module in enumerate(NAMES.values()):
        torch.testing.assert_close(moments.of(module), torch.eye(3) * (8 + number) / (4 + number))
        assert moments.metadata["tokens_by_module"][module] == 4 + number
    assert moments.metadata["tokens"] == 4


def test_of_a_folder_or_a_file_only_what_is_wanted_is_loaded(tmp_path) -> None:
    published(tmp_path / "a.0_float32_mom2_1.npz")
    (tmp_path / "a.1_float32_mom2_1.npz").write_bytes(b"broken, and not looked at")
    assert list(read_second_moments(tmp_path, only={"a.0"}).moments) == ["a.0"]
    SecondMoments({"a": torch.eye(2), "b": torch.eye(3)}, {}).save(tmp_path / "own")
    assert list(read_second_moments(tmp_path / "own", only={"b"}).moments) == ["b"]


def test_a_folder_with_two_files_for_one_module_is_refused(tmp_path) -> None:
    published(tmp_path / "a.0_float32_mom2_100.npz")
    published(tmp_path / "a.0_float32_mom2_100000.npz")
    with pytest.raises(StatisticsError, match=r"_mom2_100\.npz and .*_mom2_100000\.npz for a\.0: leave one there"):
        read_second_moments(tmp_path)


def test_a_folder_without_such_files_is_refused(tmp_path) -> None:
    published(tmp_path / "notes.npz")
    with pytest.raises(StatisticsError, match=r"holds no file named like layer_float32_mom2_100000\.npz"):
        read_second_moments(tmp_path)


def test_a_published_file_over_no_token_is_refused(tmp_path) -> None:
    published(tmp_path / "c.npz", count=0)
    with pytest.raises(StatisticsError, match="rests on 0 tokens"):
        read_second_moments(tmp_path / "c.npz")


def test_few_tokens_are_a_warning_and_unknown_ones_are_none() -> None:
    eye = {"m": torch.eye(4)}
    assert SecondMoments(eye, {"tokens": 3}).warnings()
    assert SecondMoments(eye, {"tokens": 4}).warnings() == SecondMoments(eye, {}).warnings() == []


def test_saving_leaves_nothing_else_behind_and_a_failure_leaves_the_old_file(tmp_path) -> None:
    SecondMoments({"m": torch.eye(2)}, {}).save(tmp_path / "c")
    with pytest.raises(TypeError):
        SecondMoments({"m": torch.eye(3)}, {"n": {1, 2}}).save(tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert read_second_moments(tmp_path / "c").of("m").shape == (2, 2)


def test_a_second_moment_of_few_directions_is_a_warning_whoever_made_it(tmp_path) -> None:
    sink = torch.zeros(64, 64)
    sink[3, 3] = 1e4
    np.savez(tmp_path / "a.0_float32_mom2_9.npz", **{"mom2.mom2": (torch.eye(64) + sink).numpy(), "mom2.count": 900})
    (told,) = read_second_moments(tmp_path).warnings()
    assert told.startswith("C0 of a.0 holds 1.0 directions of 64")
    assert SecondMoments({"m": torch.eye(64)}, {}).warnings() == []


@pytest.mark.parametrize(("weight", "told"), [(1.9, []), (2.5, ["2.5 times"]), (None, ["beyond all bounds"])])
def test_text_that_would_weigh_much_more_than_what_was_read_is_a_warning(weight, told) -> None:
    found = SecondMoments({"m": torch.eye(64)}, {"tokens": 100, "fresh_weight": {"m": weight}}).warnings()
    assert [word in text for word, text in zip(told, found, strict=True)] == [True] * len(told)


def test_a_file_of_the_first_estimate_is_read_as_it_is(tmp_path) -> None:
    head = {"schema": 1, "tokens": 640, "budget": 640, "key": "0", "convergence": [], "effective_rank": {"m": 1.0}}
    save_file({"m": torch.eye(64)}, tmp_path / "c", {METADATA_KEY: json.dumps(head)})
    found = read_second_moments(tmp_path / "c")
    assert found.metadata == {name: value for name, value in head.items() if name != "schema"}
    assert found.warnings() == []
