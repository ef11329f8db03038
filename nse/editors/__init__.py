"""One protocol, one file per published method; none imports another."""

from nse.editors.base import CaseReport, EditContext, Editor, EditResult
from nse.editors.nse import NSE
from nse.errors import HyperparameterError

EDITORS: dict[str, type[Editor]] = {"nse": NSE}

__all__ = ["EDITORS", "CaseReport", "EditContext", "EditResult", "Editor", "get_editor"]


def get_editor(name: str) -> Editor:
    """The editor of a method.

    Raises:
        HyperparameterError: If no method has that name.
    """
    if name not in EDITORS:
        raise HyperparameterError(f"method {name!r} is unknown: use one of {', '.join(sorted(EDITORS))}")
    return EDITORS[name]()
