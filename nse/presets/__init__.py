"""Presets: the settings that the NSE project publishes for three models, by the names of its keys, and how to find them."""

from pathlib import Path

FOLDER = Path(__file__).parent


def presets() -> list[str]:
    """Names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def preset_or_file(path: Path) -> Path:
    """The file of the preset that `path` names, unless there is a file of that name; else `path` itself."""
    return FOLDER / f"{path}.yaml" if not path.exists() and str(path) in presets() else path
