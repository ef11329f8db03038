"""The contracts of `nse edit` and `nse stats`."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nse.architecture import load_model
from nse.command import EditFiles, StreamOptions, collect, edit_stream
from nse.delta import Delta
from nse.editors.nse import NSE
from nse.errors import ArchitectureError, HyperparameterError, NseError, RequestError, StatisticsError
from nse.hyperparameters import read_hyperparameters
from nse.patch import compose, version_digest
from nse.statistics import Sample, read_second_moments
from nse.values import values_for
from tests.nse.conftest import CONTEXTS, fact

SETTINGS = {
    "layers": [1, 2],
    "v_num_grad_steps": 3,
    "v_lr": 0.2,
    "mom2_update_weight": 2,
    "alpha": 0.5,
    "upper_bound": 1000,
    "max_iterations": 3,
    "mom2_dataset": "wikipedia",
}


@pytest.fixture
def files(folder, tmp_path, corpus) -> EditFiles:
    names = {n: tmp_path / n for n in ("requests.json", "hparams.json", "contexts.json", "c0.safetensors")}
    rows = [
        {
            "case_id": r.case_id,
            "requested_rewrite": {
                "prompt": r.prompt_template,
                "subject": r.subject,
                "target_new": {"str": r.target_new},
                "target_true": {"str": r.target_true},
            },
        }
        for r in (fact(i) for i in range(5))
    ]
    names["requests.json"].write_text(json.dumps(rows))
    names["hparams.json"].write_text(json.dumps(SETTINGS))
    names["contexts.json"].write_text(json.dumps(CONTEXTS))
    collect(model=folder, corpus=corpus, layers=(1, 2), output=names["c0.safetensors"])
    return EditFiles(
        folder,
        names["requests.json"],
        names["hparams.json"],
        second_moment=names["c0.safetensors"],
        contexts=names["contexts.json"],
    )


@pytest.mark.parametrize("size", [None, 2])
def test_three_files_are_written_and_base_plus_the_factors_is_the_saved_model(files, tmp_path, size) -> None:
    out, saved = tmp_path / "out", tmp_path / "edited"
    report = edit_stream(files, output=out, options=StreamOptions(size), save_model=saved)
    assert sorted(p.name for p in out.iterdir()) == ["delta.safetensors", "report.json", "values.safetensors"]
    base, edited = load_model(files.model), load_model(saved)
    factors = load_file(out / "delta.safetensors")
    names = {n.removesuffix(".left") for n in factors if n.endswith(".left")}
    assert names == {base.parameter_name(1), base.parameter_name(2)}
    for name in base.base_tensors:
        if name not in names:
            assert torch.equal(edited.base_tensors[name], base.base_tensors[name])
            continue
        weight = (base.base_weight(name).double() + factors[f"{name}.left"] @ factors[f"{name}.right"]).float()
        assert not torch.equal(weight, base.base_weight(name))
        assert torch.equal(edited.base_weight(name), weight)
    loaded = Delta.load(out / "delta.safetensors")
    assert version_digest(base, compose(base, [loaded])) == report["digests"]["edited"] == edited.base_digest
    assert report["digests"]["base"] == base.base_digest == loaded.base_digest
    for name in names:
        assert set(loaded.layers[name].case_index.tolist()) == set(range(5))
        assert loaded.layers[name].keys.shape[0] == 5


def test_values_are_z_of_every_request_in_request_order(files, tmp_path) -> None:
    edit_stream(files, output=tmp_path / "out", options=StreamOptions(2))
    z = load_file(tmp_path / "out" / "values.safetensors")["z"]
    model = load_model(files.model)
    expected = values_for(
        model,
        [fact(i) for i in range(5)],
        contexts=CONTEXTS,
        hyperparameters=read_hyperparameters(files.hparams).settings,
    )
    assert z.shape == (5, model.model.config.hidden_size)
    torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-4)


def test_the_report_says_what_went_in_and_what_came_out(files, tmp_path) -> None:
    report = edit_stream(files, output=tmp_path / "out", options=StreamOptions(2, 5))
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert [r["case_id"] for r in report["requests"]] == [f"case {i}" for i in range(5)]
    assert all(set(r) == {"case_id", "status", "residual_before", "residual_after"} for r in report["requests"])
    assert {r["status"] for r in report["requests"]} <= {"edited", "skipped", "unconverged"}
    assert [b["size"] for b in report["batches"]] == [2, 2, 1]
    assert all({"values", "keys", "solve"} == set(b["seconds"]) for b in report["batches"])
    assert report["hyper_parameters"]["max_passes"] == 2
    assert report["unused_keys"] == ["mom2_dataset"]
    assert (report["seed"], report["method"], report["schema"]) == (5, "nse", 1)
    assert set(report["digests"]) == {
        "base",
        "edited",
        "tokenizer",
        "requests",
        "hparams",
        "second_moment",
        "contexts",
    }
    assert all(len(d) == 64 for d in report["digests"].values())
    assert {"torch", "transformers"} <= set(report["versions"])


def test_the_same_inputs_give_the_same_bytes_and_sampled_contexts_hang_on_the_seed(files, tmp_path) -> None:
    sampled = replace(files, contexts=None)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        edit_stream(sampled, output=tmp_path / name, options=StreamOptions(seed=seed))
    a, b, c = ((tmp_path / n / "delta.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_a_stream_in_batches_is_each_round_on_top_of_the_others(files, tmp_path) -> None:
    one, two = (edit_stream(files, output=tmp_path / str(n), options=StreamOptions(n)) for n in (5, 2))
    assert one["digests"]["edited"] != two["digests"]["edited"]
    assert all(r["residual_after"] < r["residual_before"] for r in two["requests"])


def test_a_stream_of_skipped_facts_gives_the_base_and_says_so(files, tmp_path) -> None:
    files.hparams.write_text(json.dumps({**SETTINGS, "upper_bound": 1e-9}))
    report = edit_stream(files, output=tmp_path / "out", options=StreamOptions(2))
    assert {r["status"] for r in report["requests"]} == {"skipped"}
    assert report["digests"]["edited"] == report["digests"]["base"]


def test_a_round_is_told_of_the_earlier_ones_that_were_written(files, tmp_path, monkeypatch) -> None:
    edit, told = NSE.edit, []

    def seen(self, editable, requests, context):
        told.append(([r.case_id for r in context.earlier], [case for d in context.previous for case in d.case_ids]))
        return edit(self, editable, requests, context)

    monkeypatch.setattr(NSE, "edit", seen)
    edit_stream(files, output=tmp_path / "all", options=StreamOptions(2))
    assert [len(earlier) for earlier, _ in told] == [0, 2, 4]
    files.hparams.write_text(json.dumps(SETTINGS | {"upper_bound": 1e-9}))
    edit_stream(files, output=tmp_path / "none", options=StreamOptions(2))
    assert all(earlier == previous for earlier, previous in told)


def test_the_delta_of_a_stream_at_the_last_token_has_the_keys_of_all_its_tokens(files, tmp_path, monkeypatch) -> None:
    edit, rounds = NSE.edit, []

    def seen(self, editable, requests, context):
        rounds.append(edit(self, editable, requests, context))
        return rounds[-1]

    monkeypatch.setattr(NSE, "edit", seen)
    files.hparams.write_text(json.dumps(SETTINGS | {"fact_token": "last"}))
    edit_stream(files, output=tmp_path / "out", options=StreamOptions(2))
    whole = Delta.load(tmp_path / "out" / "delta.safetensors")
    for name, layer in whole.layers.items():
        assert layer.further_index.numel() > 0
        for delta in (done.delta for done in rounds):
            own = whole.without(set(whole.case_ids) - set(delta.case_ids)).layers[name]
            assert torch.equal(own.keys, delta.layers[name].keys)
            assert torch.equal(own.further_index, delta.layers[name].further_index)


def test_second_moments_are_written_by_contract(files, folder) -> None:
    model = load_model(folder)
    with safe_open(files.second_moment, framework="pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
        inner = model.base_weight(model.parameter_name(1)).shape[1]
        for name in names:
            assert file.get_tensor(name).shape == (inner, inner)
            assert file.get_tensor(name).dtype == torch.float32
    assert names == {model.projection_name(1), model.projection_name(2)}
    head = json.loads(metadata["nse.second_moment"])
    assert {"schema", "tokens", "corpus_sha256", "model_digest"} <= set(head)


def test_collecting_tells_what_it_did(folder, corpus, tmp_path) -> None:
    told = collect(model=folder, corpus=corpus, layers=(2,), output=tmp_path / "c", sample=Sample(200))
    assert told["tokens"] >= told["budget"] == 200
    assert told["modules"] == sorted(read_second_moments(tmp_path / "c").moments)
    assert told["seconds"] > 0


def test_an_unknown_model_type_is_refused(files, tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-family"}')
    with pytest.raises(ArchitectureError, match="model type 'no-such-family' has no row in the table"):
        edit_stream(replace(files, model=tmp_path), output=tmp_path / "out")


def test_a_missing_second_moment_is_refused_however_it_is_missing(files, tmp_path, corpus) -> None:
    with pytest.raises(NseError, match=r"no second moments: make them with `nse stats"):
        edit_stream(replace(files, second_moment=None), output=tmp_path / "out")
    with pytest.raises(StatisticsError, match="do not exist"):
        edit_stream(replace(files, second_moment=tmp_path / "none"), output=tmp_path / "out")
    collect(model=files.model, corpus=corpus, layers=(1,), output=tmp_path / "one")
    with pytest.raises(StatisticsError, match=r"no second moment for .*\.2\."):
        edit_stream(replace(files, second_moment=tmp_path / "one"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_moment_of_another_model_is_refused(files, model_folders, family, corpus, tmp_path) -> None:
    other = next(f for name, f in model_folders.items() if name != family)
    collect(model=other, corpus=corpus, layers=(1, 2), output=tmp_path / "other")
    with pytest.raises(NseError, match="was made for model"):
        edit_stream(replace(files, second_moment=tmp_path / "other"), output=tmp_path / "out")


def test_other_bad_inputs_are_refused_before_anything_is_written(files, tmp_path) -> None:
    with pytest.raises(HyperparameterError, match="method 'cut_and_paste' is unknown"):
        edit_stream(replace(files, method="cut_and_paste"), output=tmp_path / "out")
    files.hparams.write_text(json.dumps({**SETTINGS, "layers": [9]}))
    with pytest.raises(HyperparameterError, match="layers: 9 is not in this model"):
        edit_stream(files, output=tmp_path / "out")
    files.requests.write_text("[]")
    with pytest.raises(RequestError, match="holds no request"):
        edit_stream(files, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
