"""`nse init`: makes a workspace out of a model and five files. Run twice, it changes nothing."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from flows.config import PARAMS, ArchitectureParams, ModelParams, Params, read_params, write_params
from flows.decide import adopt
from flows.errors import FlowError
from flows.git import commit, git, identity
from flows.metrics import declared
from flows.session import Session
from flows.workspace import Workspace, ledger_url
from ledger.unit_of_work import open_ledger
from nse.architecture import EditableModel, load_model
from nse.contexts import read_contexts, sample_contexts
from nse.description import read_architecture
from nse.evaluation.suites import read_suite
from nse.fingerprint import file_digest
from nse.hyperparameters import read_hyperparameters
from nse.proposal import Proposal, propose

IGNORED = """\
# Working files: may be deleted at any time when nothing runs.
/.nse/
# The ledger is backed up, not versioned.
/ledger.db
/ledger.db-shm
/ledger.db-wal
"""
REMOTE = "storage"


@dataclass(frozen=True, slots=True)
class Setup:
    """What a new workspace is made of.

    Attributes:
        model: Folder of the base model, in transformers' own format.
        name: Its name in the ledger.
        hparams: Hyper-parameters of the method; proposed from evidence on a similar model if None.
        contexts: Context templates; sampled from the model, with a fixed seed, and its chat format if it has one, if None.
        suite: The regression suite; the files it names come along.
        corpus: Text for the second moments.
        dtype: Type of the weights in memory.
        remote: URL of the DVC remote; a folder beside the workspace if None.
        copy_model: Whether the model is copied into the workspace and tracked by DVC.
        user: "Name <email>" for git, in this workspace only.
        architecture: YAML that describes the model's family, if it is not a known one.
        device_map: "auto" to use all devices.
    """

    model: Path
    name: str
    hparams: Path | None
    suite: Path
    corpus: Path
    contexts: Path | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    remote: str | None = None
    copy_model: bool = False
    user: str | None = None
    architecture: Path | None = None
    device_map: Literal["auto"] | None = None


def init(folder: Path, setup: Setup) -> Workspace:
    """Makes the workspace, or completes one that an earlier run left half made.

    Raises:
        FlowError: If the folder is the workspace of something else, or a file is missing.
        NseError: If one of the files makes no sense.
    """
    root = folder.resolve()
    files = _files(setup)  # everything is read before anything is written
    settings = read_hyperparameters(setup.hparams).settings if setup.hparams else None
    if setup.contexts is not None:
        read_contexts(setup.contexts)
    editable = load_model(
        setup.model,
        dtype=getattr(torch, setup.dtype),
        architecture=read_architecture(setup.architecture) if setup.architecture else None,
        device_map=setup.device_map,
    )
    proposal = _proposal(editable) if settings is None else Proposal(settings, str(setup.hparams))
    editable.check_layers(proposal.settings.layers)
    read_suite(setup.suite).chat_context(editable.tokenizer)  # a suite may demand a chat format that is not there
    params = _params(root, setup, editable.base_digest)
    if (root / PARAMS).is_file():
        _check_same(read_params(root / PARAMS), params, root)
    root.mkdir(parents=True, exist_ok=True)
    _git(root, setup.user)
    with _dvc(root) as repo:
        _name_remote(repo, setup.remote or _beside(root))
    for target, source in files.items():
        _copy(source, root / target)
    if setup.hparams is None and not (root / PARAMS).is_file():
        _write_once(root / params.method.hparams, proposal.text)
    if not (root / "contexts.json").is_file():
        sampled = sample_contexts(editable, seed=params.method.seed)
        _write_once(root / "contexts.json", json.dumps(sampled, ensure_ascii=False, indent=1) + "\n")
    if not (root / PARAMS).is_file():
        write_params(root / PARAMS, params)
    workspace = Workspace(root, read_params(root / PARAMS))
    _write_once(root / ".gitignore", IGNORED)
    _write_once(root / "dvc.yaml", yaml.safe_dump(_stages(workspace), sort_keys=False))
    kept = [
        ".gitignore",
        ".dvcignore",
        ".dvc",
        PARAMS,
        "dvc.yaml",
        "contexts.json",
        workspace.params.method.hparams,
        *files,
    ]
    if setup.copy_model:
        kept += _track_model(root, setup.model)
    commit(root, f"Workspace of {setup.name}", *kept)
    _start(workspace, editable.base_digest)
    return workspace


def complete(folder: Path) -> Workspace:
    """Gives a workspace that has its `params.yaml`, such as a fresh clone, the ledger that it lacks.

    Raises:
        FlowError: If there is no `params.yaml`, or the model is not the one it names.
        LedgerError: If there is a ledger of a newer schema, or of another base model.
    """
    root = folder.resolve()
    if not (root / PARAMS).is_file():
        raise FlowError(
            f"{root} is no workspace", "give --model, --name, --hparams, --suite and --corpus to make one there"
        )
    workspace = Workspace(root, read_params(root / PARAMS))
    _start(workspace, Session(workspace).editable.base_digest)  # the session checks the digest
    return workspace


def _files(setup: Setup) -> dict[str, Path]:
    """Where each file goes, relative to the workspace."""
    files = {"corpus.txt": setup.corpus}
    if setup.contexts is not None:
        files["contexts.json"] = setup.contexts
    if setup.hparams is not None:
        files[_hparams_name(setup)] = setup.hparams
    for path in files.values():
        if not path.is_file():
            raise FlowError(f"{path} is not a file", "check the path")
    suite, *named = read_suite(setup.suite).files
    files["suites/suite.yaml"] = suite
    home = suite.parent.resolve()
    return files | {f"suites/{path.resolve().relative_to(home)}": path for path in named}


def _params(root: Path, setup: Setup, digest: str) -> Params:
    if setup.copy_model:
        path = "model"
    else:
        model = setup.model.resolve()
        path = str(model.relative_to(root)) if model.is_relative_to(root) else str(model)
    described = asdict(read_architecture(setup.architecture)) if setup.architecture else None
    params = Params(
        model=ModelParams(
            name=setup.name,
            path=path,
            dtype=setup.dtype,
            digest=digest,
            device_map=setup.device_map,
            architecture=ArchitectureParams.model_validate(described) if described else None,
        )
    )
    return params.model_copy(update={"method": params.method.model_copy(update={"hparams": _hparams_name(setup)})})


def _hparams_name(setup: Setup) -> str:
    return "hparams.json" if setup.hparams and setup.hparams.suffix not in (".yaml", ".yml") else "hparams.yaml"


def _proposal(editable: EditableModel) -> Proposal:
    found = propose(editable)
    if found is None:
        raise FlowError("there is no evidence for a model so small", "give --hparams; `nse calibrate` finds them")
    return found


def _check_same(found: Params, wanted: Params, root: Path) -> None:
    for field in ("name", "digest"):
        have, want = getattr(found.model, field), getattr(wanted.model, field)
        if have != want:
            raise FlowError(
                f"{root} is the workspace of model.{field} {have[:40]}, not {want[:40]}", "choose another folder"
            )


def _git(root: Path, user: str | None) -> None:
    if not (root / ".git").exists():
        git(root, "init", "--quiet", "--initial-branch=main")
    if user is not None:
        name, _, email = user.partition("<")
        git(root, "config", "user.name", name.strip())
        git(root, "config", "user.email", email.rstrip("> ").strip() or "nobody@localhost")
    if identity(root) is None:
        raise FlowError("git does not know who you are", 'give --user "Name <email>", or set git config user.name')


@contextmanager
def _dvc(root: Path) -> Iterator[Any]:
    """Yields the workspace's DVC repository, made if there is none."""
    from dvc.exceptions import DvcException  # takes a second to import
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # it greets at length
    try:
        if not (root / ".dvc" / "config").is_file():
            Repo.init(str(root)).close()
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise FlowError(f"DVC refused in {root} ({error})", "check the folder and the remote's URL") from error


def _name_remote(repo: Any, url: str) -> None:
    with repo.config.edit("repo") as config:
        if not config["core"].get("remote"):
            config["core"] |= {"remote": REMOTE, "analytics": False}
            config["remote"][REMOTE] = {"url": url}


def _beside(root: Path) -> str:
    """A folder next to the workspace; DVC keeps it relative to its own, so that both can be moved together."""
    remote = root.parent / f"{root.name}-remote"
    remote.mkdir(parents=True, exist_ok=True)
    return os.path.relpath(remote)


def _copy(source: Path, target: Path) -> None:
    if target.is_file():
        if file_digest(source) != file_digest(target):
            raise FlowError(f"{target} is there already and differs from {source}", "edit that one, or remove it first")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _write_once(path: Path, text: str) -> None:
    if not path.is_file():
        path.write_text(text, encoding="utf-8")


def _track_model(root: Path, model: Path) -> list[str]:
    for file in sorted(path for path in model.iterdir() if path.is_file()):
        _copy(file, root / "model" / file.name)
    with _dvc(root) as repo:
        repo.add([str(root / "model")])  # DVC reads relative paths from the current folder
        repo.push(targets=[str(root / "model.dvc")])
    return ["model.dvc"]


def _stages(workspace: Workspace) -> Mapping[str, Any]:
    """`dvc.yaml`: what is computed once from the base model, before the first round, and the figures of later versions."""
    params = workspace.params
    moments, hparams = params.method.second_moment, params.method.hparams
    return {
        "stages": {
            "second_moment": {
                "cmd": f"nse stats --output {moments}",
                "deps": [params.model.path, hparams, params.corpus],
                "outs": [moments],
            },
            "baseline": {
                "cmd": "nse evaluate --at base --json-file metrics/baseline.json",
                "deps": [params.model.path, "suites"],
                "metrics": [{"metrics/baseline.json": {"cache": False}}],
            },
        },
        **declared(workspace.model),
    }


def _start(workspace: Workspace, digest: str) -> None:
    ledger = open_ledger(ledger_url(workspace.root), create=True)
    person = workspace.person(None)
    with ledger.begin() as work:
        work.start(workspace.model, digest, workspace.now(), person)
    adopt(workspace, by=person, first=True)
