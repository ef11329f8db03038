"""A workspace whose model has a chat template: it is asked in the chat format as well."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from flows.workspace import Workspace
from nse.chat import needed_chat_context
from tests.flows.conftest import GATES, write_suite
from tests.flows.test_bad_input import set_params

Nse = Callable[..., Any]


@pytest.fixture
def instruct(model: Path, tmp_path: Path) -> Path:
    """The small model with a chat template."""
    folder = tmp_path / "instruct"
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}Today a {{ m['content'] }} . {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def test_a_version_is_asked_in_the_chat_format_and_says_so(edited: Workspace, instruct: Path, nse: Nse) -> None:
    prompt = "The capital of Alba is"
    set_params(edited, "model", "path", str(instruct))
    prose, chat = nse("ask", prompt, "--json").json, nse("ask", prompt, "--chat", "--json").json
    assert "chat" not in prose
    assert (chat["chat"], chat["prompt"]) == (True, prompt)
    assert [c["subject"] for c in chat["because"]] == ["Alba"]
    assert chat["tokens"] == nse("ask", f"Today a {prompt} . ", "--json").json["tokens"] != prose["tokens"]
    assert nse("ask", prompt, "--chat", "--at", "base").code == 0


def test_a_model_without_a_chat_template_cannot_be_asked_so(edited: Workspace, nse: Nse) -> None:
    found = nse("ask", "The capital of Alba is", "--chat")
    assert found.code == 2
    assert "the tokenizer has no chat template: use an instruct model" in found.error


def test_a_new_workspace_has_the_chat_format_among_its_contexts_and_asks_in_it(
    inputs: Path, instruct: Path, tmp_path: Path, nse: Nse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NSE_LEDGER_URL", raising=False)
    shutil.copytree(inputs, tmp_path / "inputs")
    write_suite(tmp_path / "inputs", GATES | {"chat_untouched": ">= 0"})
    root = tmp_path / "space"
    files = [
        f"--{name.split('.')[0]}={tmp_path / 'inputs' / name}" for name in ("hparams.json", "suite.yaml", "corpus.txt")
    ]
    made = nse("init", root, "--model", instruct, "--name", "tiny", "--user", "A <a@b.org>", *files)
    assert made.code == 0, made.err
    contexts = json.loads((root / "contexts.json").read_text(encoding="utf-8"))
    assert contexts[0] == ["{}", needed_chat_context(AutoTokenizer.from_pretrained(instruct))]
    judged = nse("evaluate", "--workspace", root, "--json").json
    metrics = json.dumps(judged)
    assert "chat_untouched_generation" in metrics
    assert "chat_untouched >= 0" not in metrics  # that is how a gate is told that was not measured


def test_a_suite_that_demands_the_chat_format_is_refused_where_there_is_none(
    inputs: Path, model: Path, tmp_path: Path, nse: Nse
) -> None:
    shutil.copytree(inputs, tmp_path / "inputs")
    suite = tmp_path / "inputs" / "suite.yaml"
    suite.write_text(yaml.safe_dump(yaml.safe_load(suite.read_text()) | {"chat": True}))
    files = [
        f"--{name.split('.')[0]}={tmp_path / 'inputs' / name}" for name in ("hparams.json", "suite.yaml", "corpus.txt")
    ]
    made = nse("init", tmp_path / "space", "--model", model, "--name", "tiny", "--user", "A <a@b.org>", *files)
    assert made.code == 2
    assert "`chat: true` cannot be done: the tokenizer has no chat template" in made.error
    assert not (tmp_path / "space").exists()
