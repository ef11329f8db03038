"""Which program a result is of: a digest of the code that it may depend on."""

import ast
from pathlib import Path

from nse.bench.job import BASE
from nse.editors import EDITORS
from nse.fingerprint import json_digest

PACKAGE = Path(__file__).resolve().parent.parent
DRAWING = ("bench/plot.py", "bench/summary.py", "bench/run.py", "export.py")
"""What of this package no part depends on."""
COMMON = ("editors/__init__.py", "editors/base.py")
"""What of the editors' folder belongs to no single method."""


def program_digest(method: str = BASE) -> str:
    """Digest of the code of this package that a part of `method` may depend on.

    Comments and docstrings do not count, nor do the files of other methods: a long benchmark goes on where it was although
    one method has been mended.
    """
    own = EDITORS[method].__module__.rsplit(".", 1)[-1] if method != BASE else ""
    editors = {*COMMON, f"editors/{own}.py"}
    names = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    mine = [n for n in names if n not in DRAWING and (not n.startswith("editors/") or n in editors)]
    return json_digest([[name, _code(PACKAGE / name)] for name in mine])


class _Bare(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Takes docstrings out: they are statements that do nothing."""
        return None if isinstance(node.value, ast.Constant) else node


def _code(path: Path) -> str:
    return ast.dump(_Bare().visit(ast.parse(path.read_text(encoding="utf-8"))))
