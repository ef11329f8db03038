"""`nse train` on the command line, and the edits that take its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nse.delta import Delta
from nse.fingerprint import file_digest
from tests.flows.conftest import CAPITALS

Nse = Callable[..., Any]
SETTINGS = {
    "layers": [0, 1],
    "mend": {"layers": [1], "rank": 4, "steps": 3, "batch_size": 2, "edit_lr": 0.01},
    "serac": {"scope_layer": 1, "width": 4, "rank": 2, "steps": 3, "batch_size": 4},
}


@pytest.fixture
def files(model: Path, tmp_path: Path) -> tuple[object, ...]:
    """The options that say what is trained, in the CounterFact layout."""
    rows = [
        {
            "case_id": i,
            "requested_rewrite": {
                "prompt": "The capital of {} is",
                "subject": country,
                "relation_id": "capital",
                "target_new": {"str": "Paris" if i % 2 else "Tokyo"},
                "target_true": {"str": city},
            },
            "paraphrase_prompts": [f"{country} is governed from"],
            "neighborhood_prompts": ["The capital of Fara is"],
        }
        for i, (country, city) in enumerate(list(CAPITALS.items())[:4])
    ]
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    (tmp_path / "hparams.json").write_text(json.dumps(SETTINGS))
    return ("--model", model, "--dataset", tmp_path / "dataset.json", "--hparams", tmp_path / "hparams.json")


@pytest.mark.parametrize("method", ["mend", "serac"])
def test_what_is_trained_serves_an_edit(files, model: Path, tmp_path: Path, nse: Nse, method: str) -> None:
    output, out = tmp_path / "made" / f"{method}.safetensors", tmp_path / "out"
    made = nse("train", *files, "--method", method, "--output", output, "--steps", 2, "--seed", 3, "--json")
    assert made.code == 0, made.err
    assert made.json["dataset"] == file_digest(tmp_path / "dataset.json")
    assert (made.json["steps"], made.json["seed"], made.json["requests"]) == (2, 3, 4)
    assert made.json["settings"]["rank"] == SETTINGS[method]["rank"]  # type: ignore[index]
    request = {"subject": "Elis", "prompt_template": "The capital of {} is", "target_new": "Paris"}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request) + "\n")
    asked = ("--model", model, "--requests", tmp_path / "requests.jsonl", "--hparams", tmp_path / "hparams.json")
    refused = nse("edit", *asked, "--method", method, "--output", out)
    assert refused.code == 2
    assert f"make it with `nse train --method {method}`" in refused.error
    edited = nse("edit", *asked, "--method", method, "--trained", output, "--output", out, "--json")
    assert edited.code == 0, edited.err
    assert edited.json["requests"][0]["status"] in ("edited", "unconverged")
    assert (Delta.load(out / "delta.safetensors").memory is not None) == (method == "serac")


def test_the_command_says_what_it_made_and_trains_as_long_as_the_settings_say(files, tmp_path: Path, nse: Nse) -> None:
    made = nse("train", *files, "--method", "mend", "--output", tmp_path / "mend.safetensors")
    assert made.code == 0, made.err
    assert "mend: 3 steps on 4 edits, loss" in made.out.replace("\n", " ")


def test_a_method_that_trains_nothing_and_bad_files_are_refused(files, tmp_path: Path, nse: Nse) -> None:
    output = tmp_path / "x.safetensors"
    assert (
        "trains nothing before it edits: use mend or serac"
        in nse("train", *files, "--method", "nse", "--output", output).error
    )
    (tmp_path / "dataset.json").write_text("[]")
    empty = nse("train", *files, "--method", "mend", "--output", output)
    assert (empty.code, output.exists()) == (2, False)
    (tmp_path / "dataset.json").unlink()
    assert nse("train", *files, "--method", "mend", "--output", output).code == 2
