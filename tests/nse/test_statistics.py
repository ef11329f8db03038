"""The estimate of second moments: what it is, how it converges, how it goes on after an interruption."""

import math
from pathlib import Path

import pytest
import torch

from nse.architecture import load_model
from nse.command import collect
from nse.corpus import open_corpus
from nse.errors import HyperparameterError, StatisticsError
from nse.fingerprint import file_digest
from nse.patch import patched
from nse.second_moment_files import SecondMoments
from nse.spectrum import effective_rank, fresh_weight
from nse.statistics import TOKENS_PER_NEURON, PartialFile, Sample, collect_second_moments
from nse.trace import capture_inputs
from nse.windows import packed


def keys_of(editable, windows: list[list[int]], layer: int) -> torch.Tensor:
    """Keys (tokens, d_mlp) float64 of every token, each window run by itself."""
    name, rows = editable.projection_name(layer), []
    with torch.no_grad(), capture_inputs({name: editable.projection(layer)}) as seen:
        for window in windows:
            editable.model(input_ids=torch.tensor([window]))
            rows.append(seen[name][0].double())
    return torch.cat(rows)


def windows_of(editable, corpus: Path, size: int) -> list[list[int]]:
    """All of a corpus in windows, in the order in which seed 0 draws its passages."""
    return list(packed(editable.tokenizer, open_corpus(corpus).sample(characters=10**9, seed=0), size=size))


def test_but_for_long_keys_the_estimate_is_the_mean_of_outer_products_of_all_keys(precise, corpus, monkeypatch) -> None:
    monkeypatch.setattr("nse.statistics.LONGEST_KEY", math.inf)
    moments = collect_second_moments(precise, corpus, layers=(0, 2), sample=Sample(10**6, window=32))
    for layer in (0, 2):
        keys = keys_of(precise, windows_of(precise, corpus, 32), layer)
        expected = (keys.T @ keys / len(keys)).float()
        torch.testing.assert_close(moments.of(precise.projection_name(layer)), expected, rtol=1e-5, atol=1e-7)
        assert moments.metadata["tokens"] == len(keys)


def test_keys_that_stand_out_by_their_length_count_no_more_than_twice_the_median(editable, corpus) -> None:
    """The first token of each window stands for an attention sink."""

    def collected(factor: float) -> SecondMoments:
        handle = editable.projection(1).register_forward_pre_hook(lambda _, x: (grown(x[0], factor),), prepend=True)
        found = collect_second_moments(editable, corpus, layers=(1,), sample=Sample(10**6, window=32))
        handle.remove()
        return found

    def grown(keys: torch.Tensor, factor: float) -> torch.Tensor:
        return torch.cat([factor * keys[:, :1], keys[:, 1:]], dim=1)

    name = editable.projection_name(1)
    fifty, thousand, usual = (collected(factor) for factor in (50.0, 1000.0, 1.0))
    torch.testing.assert_close(thousand.of(name), fifty.of(name))
    assert thousand.of(name).trace() < 1.2 * usual.of(name).trace()
    assert thousand.warnings() == usual.warnings() == []


def test_provenance_names_model_tokenizer_and_corpus(editable, corpus) -> None:
    metadata = collect_second_moments(editable, corpus, layers=(1,)).metadata
    assert metadata["model_digest"] == editable.base_digest
    assert metadata["tokenizer_digest"] == editable.tokenizer_digest
    assert metadata["corpus_sha256"] == file_digest(corpus)
    assert metadata["budget"] == TOKENS_PER_NEURON * editable.base_weight(editable.parameter_name(1)).shape[1]


def test_the_key_changes_with_every_input_and_with_nothing_else(loaded, corpus, tmp_path) -> None:
    def key(family="gpt2", dtype=torch.float32, text=corpus, layers=(1,), sample=None) -> str:
        chosen = sample or Sample(200)
        return collect_second_moments(loaded(family, dtype), text, layers=layers, sample=chosen).metadata["key"]

    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text(encoding="utf-8") + "More.\n", encoding="utf-8")
    assert key(layers=(2,)) == key()
    changed = [key(), key(family="llama"), key(dtype=torch.bfloat16), key(text=other)]
    changed += [key(sample=sample) for sample in (Sample(201), Sample(200, window=20), Sample(200, seed=1))]
    assert len(set(changed)) == len(changed)


@pytest.fixture
def long(corpus, tmp_path) -> Path:
    """A corpus several times as long as the budgets below."""
    path = tmp_path / "long.txt"
    path.write_text(corpus.read_text(encoding="utf-8") * 4, encoding="utf-8")
    return path


def test_reading_stops_at_the_budget_and_ends_with_the_corpus(editable, long) -> None:
    calls: list[tuple[str, int, int]] = []
    few, all_ = (
        collect_second_moments(editable, long, layers=(1,), sample=Sample(n), progress=lambda *c: calls.append(c))
        for n in (100, 10**9)
    )
    assert few.metadata["tokens"] == 100
    assert all_.metadata["tokens"] == sum(map(len, windows_of(editable, long, 96)))
    assert calls[-1] == ("second moments", all_.metadata["tokens"], all_.metadata["tokens"])
    assert ("second moments", 100, 100) in calls


def test_the_base_weights_are_in_force_whatever_the_model_holds(editable, corpus) -> None:
    base = collect_second_moments(editable, corpus, layers=(1,))
    name, module = editable.parameter_name(0), editable.projection_name(1)
    with patched(editable, {name: editable.base_tensors[name] * 2}):
        other = collect_second_moments(editable, corpus, layers=(1,))
        assert torch.equal(editable.model.get_parameter(name), editable.base_tensors[name] * 2)
    assert torch.equal(base.of(module), other.of(module))


def test_blocks_above_the_last_wanted_layer_are_not_run(editable, corpus) -> None:
    ran = []
    handles = [editable.projection(i).register_forward_hook(lambda *_, i=i: ran.append(i)) for i in range(4)]
    collect_second_moments(editable, corpus, layers=(0, 1), sample=Sample(100))
    for handle in handles:
        handle.remove()
    assert set(ran) == {0, 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_gives_nearly_the_same(loaded, family, corpus, dtype) -> None:
    half, full = (collect_second_moments(loaded(family, d), corpus, layers=(1,)) for d in (dtype, torch.float32))
    name = loaded(family, dtype).projection_name(1)
    assert half.of(name).dtype == torch.float32
    assert (half.of(name) - full.of(name)).norm() < 0.05 * full.of(name).norm()
    assert half.metadata["dtype"] == str(dtype).removeprefix("torch.")


def test_convergence_is_the_relative_change_as_the_tokens_double(editable, long) -> None:
    def moment(tokens: int) -> torch.Tensor:
        return collect_second_moments(editable, long, layers=(1,), sample=Sample(tokens, window=10)).of(name)

    name = editable.projection_name(1)
    sample = Sample(1600, window=10)
    shown = collect_second_moments(editable, long, layers=(1, 2), sample=sample).metadata["convergence"]
    assert [step["tokens"] / step["from"] for step in shown] == pytest.approx([2.0] * 4, rel=0.1)
    assert (shown[0]["from"] // 10, shown[-1]["tokens"]) == (100 // 10, 1600)
    for step in shown:
        assert set(step["change"]) == {name, editable.projection_name(2)}
        before, after = moment(step["from"]), moment(step["tokens"])
        expected = float((after - before).norm() / after.norm())
        assert step["change"][name] == pytest.approx(expected, rel=0.1)  # the limit depends on the first batch


def test_a_corpus_that_ends_early_is_compared_at_its_end(editable, corpus) -> None:
    found = collect_second_moments(editable, corpus, layers=(1,), sample=Sample(10**4)).metadata
    assert found["convergence"][-1]["tokens"] == found["tokens"] < 10**4


def test_fewer_tokens_than_neurons_is_a_warning(editable, long) -> None:
    width = editable.base_weight(editable.parameter_name(1)).shape[1]
    few, enough = (collect_second_moments(editable, long, layers=(1,), sample=Sample(n)) for n in (width - 1, width))
    assert [f"singular ({width - 1} tokens for {width} neurons)" in text for text in few.warnings()] == [True]
    assert enough.warnings() == []


def test_effective_rank_counts_the_directions() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(5, 5)) == pytest.approx(1)


def test_text_that_a_second_moment_was_made_of_weighs_one_and_other_text_more() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    few, many = (own.T @ own / len(own) for own in (rows[:20], rows[20:]))
    assert fresh_weight(few, few) == pytest.approx(1)
    # of n normal keys in d dimensions the mean over fresh ones is d n / (n - d - 1)
    assert fresh_weight(few, many) == pytest.approx(20 / 11, rel=0.25)
    assert fresh_weight(many, few) == pytest.approx(1, rel=0.25)
    assert fresh_weight(torch.zeros(8, 8), many) is None


class Killed(Exception):
    """Stands for the end of the process."""


def interrupted(editable, corpus: Path, partial: PartialFile, *, after: int, **options) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "second moments" and done >= after:
            raise Killed

    with pytest.raises(Killed):
        collect_second_moments(editable, corpus, partial=partial, progress=progress, **options)


def same_bytes(one: SecondMoments, other: SecondMoments, folder: Path) -> bool:
    one.save(folder / "one")
    other.save(folder / "other")
    return (folder / "one").read_bytes() == (folder / "other").read_bytes()


@pytest.mark.parametrize("after", [100, 400, 800, 1600])
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(editable, long, tmp_path, after) -> None:
    options = {"layers": (1, 2), "sample": Sample(1600)}
    whole = collect_second_moments(editable, long, **options)
    partial = PartialFile(tmp_path / "c0.partial", seconds=0)
    interrupted(editable, long, partial, after=after, **options)
    done: list[int] = []
    again = collect_second_moments(
        editable, long, partial=partial, progress=lambda _stage, n, _total: done.append(n), **options
    )
    assert min(done) > after or after == 1600
    assert same_bytes(whole, again, tmp_path)


def test_what_was_not_saved_before_the_end_is_read_again(editable, long, tmp_path) -> None:
    options = {"layers": (1,), "sample": Sample(1600)}
    partial = PartialFile(tmp_path / "c0.partial", seconds=0)
    interrupted(editable, long, partial, after=100, **options)
    interrupted(editable, long, PartialFile(partial.path, seconds=3600), after=800, **options)
    again = collect_second_moments(editable, long, partial=partial, **options)
    assert same_bytes(collect_second_moments(editable, long, **options), again, tmp_path)


def test_the_command_goes_on_from_the_partial_file_beside_its_output_and_removes_it(folder, long, tmp_path) -> None:
    output = tmp_path / "out" / "c0.safetensors"
    options = {"layers": (1,), "sample": Sample(1600)}
    beside = PartialFile(output.with_name("c0.safetensors.partial"), seconds=0)
    interrupted(load_model(folder), long, beside, after=400, **options)
    done: list[int] = []
    told = collect(
        model=folder, corpus=long, output=output, progress=lambda _stage, n, _total: done.append(n), **options
    )
    assert min(done) > 400
    assert told["tokens"] == 1600
    assert told["warnings"] == []
    assert [path.name for path in output.parent.iterdir()] == ["c0.safetensors"]


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float32, "float32")])
def test_the_command_loads_the_model_in_the_type_that_is_asked_for(
    loaded, folder, family, corpus, tmp_path, dtype, name
) -> None:
    told = collect(model=folder, corpus=corpus, layers=(1,), output=tmp_path / "c0", sample=Sample(200), dtype=dtype)
    assert told["dtype"] == name
    assert told["model_digest"] == loaded(family, dtype).base_digest


@pytest.mark.parametrize(
    "change",
    [{"sample": Sample(1500)}, {"sample": Sample(1600, seed=1)}, {"sample": Sample(1600, window=32)}, {"layers": (2,)}],
)
def test_sums_of_other_inputs_are_not_used_and_replaced(editable, long, tmp_path, change) -> None:
    options = {"layers": (1,), "sample": Sample(1600)}
    partial = PartialFile(tmp_path / "c0.partial", seconds=0)
    interrupted(editable, long, partial, after=400, **options)
    before = partial.path.read_bytes()
    found = collect_second_moments(editable, long, partial=partial, **(options | change))
    assert same_bytes(found, collect_second_moments(editable, long, **(options | change)), tmp_path)
    assert partial.path.read_bytes() != before


def test_sums_over_a_corpus_that_has_changed_since_are_not_used(editable, long, tmp_path) -> None:
    options = {"layers": (1,), "sample": Sample(1600)}
    partial = PartialFile(tmp_path / "c0.partial", seconds=0)
    interrupted(editable, long, partial, after=400, **options)
    long.write_text("Another beginning. " + long.read_text(encoding="utf-8"), encoding="utf-8")
    found = collect_second_moments(editable, long, partial=partial, **options)
    assert same_bytes(found, collect_second_moments(editable, long, **options), tmp_path)


def test_a_broken_partial_file_is_replaced(editable, long, tmp_path, caplog) -> None:
    partial = PartialFile(tmp_path / "c0.partial", seconds=0)
    partial.path.write_bytes(b"cut off")
    found = collect_second_moments(editable, long, layers=(1,), sample=Sample(400), partial=partial)
    assert same_bytes(found, collect_second_moments(editable, long, layers=(1,), sample=Sample(400)), tmp_path)
    assert "c0.partial cannot be read" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c0.partial", "long.txt", "one", "other"]


def test_keys_that_are_not_finite_are_refused(editable, corpus) -> None:
    name = editable.projection_name(1)
    handle = editable.projection(1).register_forward_pre_hook(lambda _m, x: (x[0] * float("inf"),), prepend=True)
    with pytest.raises(StatisticsError, match=f"C0 of {name} is not finite".replace(".", r"\.")):
        collect_second_moments(editable, corpus, layers=(1,))
    handle.remove()


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
