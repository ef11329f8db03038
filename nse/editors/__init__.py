"""One protocol, one file per published method; none imports another."""

from dataclasses import fields
from pathlib import Path

from nse.editors.alphaedit import AlphaEdit
from nse.editors.base import CaseReport, EditContext, Editor, EditResult
from nse.editors.ft import FT, FTL
from nse.editors.grace import GRACE
from nse.editors.locft_bf import LocFTBF
from nse.editors.memit import Memit, MemitSequential
from nse.editors.mend import MEND
from nse.editors.nse import NSE
from nse.editors.one_li import OneLI
from nse.editors.rome import Rome
from nse.editors.saul import SAUL
from nse.editors.serac import SERAC
from nse.editors.ultraedit import UltraEdit
from nse.errors import HyperparameterError
from nse.hyperparameters import HyperparameterFile, read_hyperparameters

EDITORS: dict[str, type[Editor]] = {
    editor.name: editor
    for editor in (
        NSE,
        GRACE,
        MEND,
        SERAC,
        Rome,
        Memit,
        MemitSequential,
        AlphaEdit,
        FT,
        FTL,
        LocFTBF,
        SAUL,
        OneLI,
        UltraEdit,
    )
}

__all__ = ["EDITORS", "CaseReport", "EditContext", "EditResult", "Editor", "get_editor", "read_settings"]


def get_editor(name: str) -> Editor:
    """The editor of a method.

    Raises:
        HyperparameterError: If no method has that name.
    """
    if name not in EDITORS:
        raise HyperparameterError(f"method {name!r} is unknown: use one of {', '.join(sorted(EDITORS))}")
    return EDITORS[name]()


def read_settings(path: Path, method: str) -> HyperparameterFile:
    """Reads a hyper-parameter file for a method: the common settings, its own, and its section of the file.

    Raises:
        HyperparameterError: If the file is missing or malformed, or no method has that name.
    """
    own = [setting.name for setting in fields(get_editor(method).settings)]
    return read_hyperparameters(path, method=method, own=own)
