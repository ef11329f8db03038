"""Git in a workspace: the few commands that the pipeline needs, run quietly."""

import subprocess
from pathlib import Path

from flows.errors import FlowError


def git(root: Path, *arguments: str) -> str:
    """Runs git in `root` and returns what it printed, stripped.

    Raises:
        FlowError: If git is not there or refuses.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FlowError("git is not installed or the folder is gone", "install git 2.30 or newer") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise FlowError(f"git {arguments[0]} failed in {root} ({said[-1]})", "see to it and try again")
    return done.stdout.strip()


def identity(root: Path) -> str | None:
    """The person that git's configuration names, "Name <email>"; None when it names nobody."""
    values = []
    for key in ("user.name", "user.email"):
        done = subprocess.run(["git", "config", key], cwd=root, capture_output=True, text=True, check=False)
        values.append(done.stdout.strip())
    name, email = values
    return f"{name} <{email}>" if name and email else name or email or None


def commit(root: Path, message: str, *paths: str) -> bool:
    """Commits `paths` if they changed, and says whether they did."""
    git(root, "add", "--", *paths)
    if not git(root, "diff", "--cached", "--name-only", "--", *paths):
        return False
    git(root, "commit", "--quiet", "-m", message, "--", *paths)
    return True
