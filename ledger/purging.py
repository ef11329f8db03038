"""Deleting the bytes of an artifact for good: the local file, DVC's cache, the remote, and the file by which DVC tracks it.

`erasing.purge` records it in the ledger first. Git keeps the tracking file's history: a digest, no bytes.
"""

from pathlib import Path

import yaml

from ledger.artifacts import DvcStore
from ledger.errors import ArtifactError


def purge(store: DvcStore, path: str) -> list[str]:
    """Delete an artifact wherever this workspace can reach it; returns where it was. Killed anywhere, the same call goes on.

    Raises:
        ArtifactError: `path` is outside the workspace, or Git, DVC or the remote refuses.
    """
    target = store._inside(path)
    tracking = target.with_name(f"{target.name}.dvc")
    found = []
    with store._exclusively(path) as repo:
        if tracking.is_file():
            md5 = _md5(tracking)
            places = {"the DVC remote": repo.cloud.get_remote_odb(command="push"), "DVC's cache": repo.cache.local}
            remote = places["the DVC remote"]
            if remote.fs.protocol == "local" and not remote.fs.isdir(remote.path):  # a disk that is not mounted, say
                raise ArtifactError(f"the DVC remote {remote.path} is not there", "make it reachable, then purge again")
            for name, place in places.items():
                if place.exists(md5):
                    place.delete(md5)
                    found.append(name)
                if place.exists(md5):
                    raise ArtifactError(f"{path} is still in {name}", "check who may delete there")
        if target.is_file() or target.is_symlink():
            target.unlink()
            found.append("the workspace")
        if tracking.is_file():
            repo.remove(str(tracking))  # last: it says where the bytes are
        ignore = f"{Path(path).parent.as_posix()}/.gitignore"
        changed = [f"{path}.dvc", ignore]
        store._git("add", "--all", "--", *[name for name in changed if store._git("ls-files", "--", name)])
        if store._git("status", "--porcelain", "--untracked-files=no", "--", *changed):
            store._git("commit", "--quiet", "-m", f"Purge artifact {path}", "--", *changed)
    return found


def _md5(tracking: Path) -> str:
    try:
        return str(yaml.safe_load(tracking.read_text())["outs"][0]["md5"])
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        raise ArtifactError(f"{tracking} cannot be read", "restore it from Git") from error
