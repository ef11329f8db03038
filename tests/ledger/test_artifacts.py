"""The artifact store on a real Git + DVC repository with a local remote."""

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger.artifacts import DvcStore, StoredArtifact
from ledger.errors import ArtifactError

BYTES = b"left and right factors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file to store, outside the workspace."""
    path = tmp_path / "delta.safetensors"
    path.write_bytes(BYTES)
    return path


def objects(remote: Path) -> list[Path]:
    return [path for path in remote.rglob("*") if path.is_file()]


def commits(workspace: Path) -> list[str]:
    log = subprocess.run(
        ["git", "-C", str(workspace), "log", "--format=%s"], capture_output=True, text=True, check=True
    )
    return log.stdout.splitlines()


def test_a_stored_artifact_is_local_tracked_committed_and_on_the_remote(
    workspace: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stored = DvcStore(workspace).put(source, "artifacts/deltas")
    assert stored.path == f"artifacts/deltas/{stored.sha256[:16]}.safetensors"
    assert (workspace / stored.path).read_bytes() == BYTES
    assert [path.read_bytes() for path in objects(workspace.parent / "remote")] == [BYTES]
    assert commits(workspace)[0] == f"Store artifact {stored.path}"
    assert DvcStore(workspace).check(stored.path, stored.sha256) == []
    assert capfd.readouterr() == ("", "")


def test_storing_the_same_bytes_again_changes_nothing(workspace: Path, source: Path) -> None:
    store = DvcStore(workspace)
    first = store.put(source, "artifacts/deltas")
    before = commits(workspace)
    assert store.put(source, "artifacts/deltas") == first
    assert commits(workspace) == before
    assert len(objects(workspace.parent / "remote")) == 1


def test_what_others_staged_is_not_swept_into_the_commit(workspace: Path, source: Path) -> None:
    (workspace / "notes.txt").write_text("draft")
    subprocess.run(["git", "-C", str(workspace), "add", "notes.txt"], check=True)
    DvcStore(workspace).put(source, "artifacts/deltas")
    status = subprocess.run(
        ["git", "-C", str(workspace), "status", "--porcelain"], capture_output=True, text=True, check=True
    )
    assert status.stdout == "A  notes.txt\n"


def test_a_missing_local_file_is_pulled_from_the_remote_and_checked(workspace: Path, source: Path) -> None:
    store = DvcStore(workspace)
    stored = store.put(source, "artifacts/deltas")
    (workspace / stored.path).unlink()
    shutil.rmtree(workspace / ".dvc" / "cache")
    assert store.check(stored.path, stored.sha256) == []
    (workspace / stored.path).unlink()
    shutil.rmtree(workspace / ".dvc" / "cache")
    assert store.fetch(stored.path, stored.sha256).read_bytes() == BYTES


def test_a_local_file_with_one_byte_changed_is_refused(workspace: Path, source: Path) -> None:
    store = DvcStore(workspace)
    stored = store.put(source, "artifacts/deltas")
    (workspace / stored.path).write_bytes(BYTES[:-1] + b"S")
    with pytest.raises(ArtifactError, match="holds other bytes"):
        store.fetch(stored.path, stored.sha256)
    assert any("holds other bytes" in problem for problem in store.check(stored.path, stored.sha256))


def test_other_bytes_that_come_back_from_the_remote_are_refused(workspace: Path, source: Path) -> None:
    store = DvcStore(workspace)
    stored = store.put(source, "artifacts/deltas")
    (workspace / stored.path).unlink()
    shutil.rmtree(workspace / ".dvc" / "cache")
    [remote] = objects(workspace.parent / "remote")
    remote.chmod(0o644)
    remote.write_bytes(BYTES[:-1] + b"S")
    with pytest.raises(ArtifactError):
        store.fetch(stored.path, stored.sha256)


def test_an_artifact_that_left_the_remote_is_found_and_put_back_by_storing_it_again(
    workspace: Path, source: Path
) -> None:
    store = DvcStore(workspace)
    stored = store.put(source, "artifacts/deltas")
    [remote] = objects(workspace.parent / "remote")
    remote.unlink()
    assert store.check(stored.path, stored.sha256) == [f"{stored.path} is not on the DVC remote"]
    store.put(source, "artifacts/deltas")
    assert store.check(stored.path, stored.sha256) == []


def test_an_artifact_nobody_stored_is_refused_with_one_line(workspace: Path) -> None:
    store = DvcStore(workspace)
    with pytest.raises(ArtifactError) as caught:
        store.fetch("artifacts/deltas/none.safetensors", "0" * 64)
    assert "\n" not in str(caught.value)
    assert store.check("artifacts/deltas/none.safetensors", "0" * 64)


@pytest.mark.parametrize("path", ["../elsewhere/x.safetensors", "/etc/passwd", "artifacts/../../x", "link/x"])
def test_a_path_outside_the_workspace_is_refused(workspace: Path, source: Path, path: str) -> None:
    (workspace / "link").symlink_to(workspace.parent)
    store = DvcStore(workspace)
    with pytest.raises(ArtifactError, match="outside the workspace"):
        store.fetch(path, "0" * 64)
    with pytest.raises(ArtifactError, match="outside the workspace"):
        store.put(source, str(Path(path).parent))


def test_a_workspace_without_a_remote_is_refused_with_one_line(workspace: Path, source: Path) -> None:
    (workspace / ".dvc" / "config").write_text("")
    with pytest.raises(ArtifactError, match="no remote") as caught:
        DvcStore(workspace).put(source, "artifacts/deltas")
    assert "\n" not in str(caught.value)


def test_two_processes_can_store_at_once(
    workspace: Path, tmp_path: Path, run_script: Callable[..., "subprocess.Popen[str]"]
) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        from ledger.artifacts import DvcStore
        stored = DvcStore(Path(sys.argv[1])).put(Path(sys.argv[2]), "artifacts/deltas")
        print(stored.path, stored.sha256)
    """
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    processes = [run_script(script, str(workspace), str(tmp_path / name)) for name in ("one", "two")]
    store = DvcStore(workspace)
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert store.check(*output.split()) == []


KILLED_WITHIN_PUT = """if True:
    import os, signal, sys
    from pathlib import Path
    import dvc.repo, ledger.artifacts as artifacts
    def kill(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)
    step = sys.argv[3]
    if step == "copy":
        artifacts.os.fsync = kill  # the bytes are in the partial file, which has not been renamed
    elif step == "add":
        dvc.repo.Repo.add = kill
    elif step == "commit":
        artifacts.DvcStore._commit = kill
    elif step == "push":
        dvc.repo.Repo.push = kill
    elif step == "remote":
        artifacts.DvcStore._on_remote = kill
    artifacts.DvcStore(Path(sys.argv[1])).put(Path(sys.argv[2]), "artifacts/deltas")
"""


@pytest.mark.parametrize("step", ["copy", "add", "commit", "push", "remote"])
def test_storing_again_completes_what_a_kill_left_out(
    workspace: Path, source: Path, step: str, run_script: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = run_script(KILLED_WITHIN_PUT, str(workspace), str(source), step)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    store = DvcStore(workspace)
    stored: StoredArtifact = store.put(source, "artifacts/deltas")
    assert store.check(stored.path, stored.sha256) == []
    assert commits(workspace)[0] == f"Store artifact {stored.path}"
    assert sorted(path.name for path in (workspace / "artifacts" / "deltas").iterdir()) == sorted(
        [".gitignore", Path(stored.path).name, f"{Path(stored.path).name}.dvc"]
    )
