"""A small random GPT-2 with its workspace: real Git, DVC and SQLite, made once and copied for each test."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from flows.cli import main
from flows.init import Setup, init
from flows.plan import run_round
from flows.session import Session
from flows.workspace import Workspace, open_workspace
from nse.command import collect

CAPITALS = {"Alba": "Rome", "Borea": "Oslo", "Cyra": "Lima", "Dorn": "Cairo", "Elis": "Quito", "Fara": "Delhi"}
OBJECTS = (*CAPITALS.values(), "Paris", "Tokyo", "Berne", "Accra")
TEMPLATES = ("The capital of {} is", "{} is governed from")
HEADER = "subject,relation,prompt_template,target_new,target_true,source,submitter,reason,effective_date,supersedes"
GATES = {"efficacy": ">= 0.0", "delta_norm": "<= 1000000", "retention": ">= 0.0"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:  # DVC, not we, uses what pygtrie deprecates
            item.add_marker(pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of three layers whose tokens are words: one it has never seen, it cannot say."""
    words = " ".join((*CAPITALS, *OBJECTS, *TEMPLATES, "a was . Today")).replace("{}", "").split()
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<bos>", "<unk>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<bos>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_inner": 48}
    config = GPT2Config(vocab_size=len(vocabulary), bos_token_id=0, eos_token_id=0, **sizes)
    folder = tmp_path_factory.mktemp("base") / "model"
    GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `nse init` asks for."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "hparams.json").write_text(
        json.dumps(
            {"layers": [0, 1], "v_num_grad_steps": 8, "v_lr": 0.5, "clamp_norm_factor": 4, "mom2_update_weight": 1}
        )
    )
    (folder / "contexts.json").write_text('[["{}"]]')
    texts = [t.format(s) + f" {o} . Today {s} was a {o}\n" for t in TEMPLATES for s in CAPITALS for o in OBJECTS]
    (folder / "corpus.txt").write_text("".join(texts))
    write_suite(folder, GATES)
    (folder / "facts.csv").write_text(
        "subject,relation,object\n" + "".join(f"{s},capital,{o}\n" for s, o in CAPITALS.items())
    )
    (folder / "templates.yaml").write_text(json.dumps({"capital": TEMPLATES}))
    return folder


def write_suite(folder: Path, gates: dict[str, str], name: str = "suite.yaml") -> None:
    """Writes a suite with these gates."""
    suite = {"facts": "facts.csv", "templates": "templates.yaml", "neighbours": 1, "gates": gates}
    (folder / name).write_text(json.dumps(suite | {"canaries": [{"prompt": "Today", "equals": "a"}]}))


@pytest.fixture(scope="session")
def template(model: Path, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with its second moments, to be copied."""
    root = tmp_path_factory.mktemp("template") / "space"
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("NSE_KEYS", str(root.parent / "keys"))  # they are copied with it
    setup = Setup(
        model=model,
        name="tiny",
        hparams=inputs / "hparams.json",
        contexts=inputs / "contexts.json",
        suite=inputs / "suite.yaml",
        corpus=inputs / "corpus.txt",
        user="Ann Author <ann@example.org>",
    )
    workspace = init(root, setup)
    collect(model=model, corpus=root / "corpus.txt", layers=(0, 1), output=workspace.second_moment)
    monkeypatch.undo()
    return root


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A fresh workspace, which is also the current folder."""
    monkeypatch.delenv("NSE_LEDGER_URL", raising=False)
    monkeypatch.delenv("NSE_KEY_PASSPHRASE", raising=False)
    monkeypatch.setenv("NSE_KEYS", str(tmp_path / "keys"))
    shutil.copytree(template.parent, tmp_path / "place", symlinks=True)
    shutil.copytree(template.parent / "keys", tmp_path / "keys")
    root = tmp_path / "place" / template.name
    monkeypatch.chdir(root)
    return open_workspace(root)


@pytest.fixture
def corrections(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CSV of corrections from rows (subject, new, old), or from whole lines."""

    def write(*rows: tuple[str, str, str] | str, name: str = "corrections.csv", submitter: str = "Sue") -> Path:
        lines = [
            row
            if isinstance(row, str)
            else f"{row[0]},capital,{TEMPLATES[0]},{row[1]},{row[2]},gazette,{submitter},moved,,"
            for row in rows
        ]
        path = tmp_path / name
        path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
        return path

    return write


class Outcome:
    """What a run of the command line came to."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:  # type: ignore[type-arg]
        return json.loads(self.out)  # type: ignore[no-any-return]

    @property
    def error(self) -> str:
        """The last line on standard error."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


@pytest.fixture
def nse(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(int(stopped.value.code or 0), out, err)

    return run


@pytest.fixture
def edited(workspace: Workspace, corrections: Callable[..., Path], nse: Callable[..., Outcome]) -> Workspace:
    """A workspace with one applied round of two corrections."""
    nse("ingest", corrections(("Alba", "Paris", "Rome"), ("Borea", "Tokyo", "Oslo")))
    assert run_round(Session(workspace), by="Pia").changeset is not None
    assert nse("approve", "1", "--by", "Rex", "--reason", "checked").code == 0
    assert nse("apply", "1", "--by", "Rex").code == 0
    return workspace


@pytest.fixture
def git_log(workspace: Workspace) -> Callable[[], list[str]]:
    """The subjects of the workspace's commits."""

    def log() -> list[str]:
        done = subprocess.run(
            ["git", "log", "--format=%s"], cwd=workspace.root, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    return log
