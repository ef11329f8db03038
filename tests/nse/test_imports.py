"""Dependencies point one way: flows -> nse, flows -> ledger. The source says so, lazy imports included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "nse": {"prefect", "sqlalchemy", "alembic", "dvc", "ledger", "flows", "fastapi", "typer", "demo"},
    "ledger": {"torch", "transformers", "safetensors", "prefect", "nse", "flows", "fastapi", "typer", "demo"},
}
MODULES = sorted(p.relative_to(ROOT) for package in FORBIDDEN for p in (ROOT / package).rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """Every module that a source imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module or ""
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def test_both_packages_are_walked() -> None:
    assert {m.parts[0] for m in MODULES} == {"nse", "ledger"}
    assert len(MODULES) > 30


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_nothing_that_its_package_does_not_know(module: Path) -> None:
    found = list(imported((ROOT / module).read_text(encoding="utf-8")))
    assert not {name.split(".")[0] for name in found} & FORBIDDEN[module.parts[0]]
    assert "." not in found, "relative import"


def test_the_walk_sees_imports_of_every_kind() -> None:
    source = "import a.b as c\ndef f():\n    from d.e import g\n    importlib.import_module('h.i')\nfrom . import j\n"
    assert sorted(imported(source)) == [".", "a.b", "d.e", "h.i"]


def test_no_editor_imports_another() -> None:
    editors = {p.stem for p in (ROOT / "nse" / "editors").glob("*.py")} - {"__init__", "base"}
    assert "nse" in editors
    for editor in editors:
        names = set(imported((ROOT / "nse" / "editors" / f"{editor}.py").read_text(encoding="utf-8")))
        assert not {f"nse.editors.{other}" for other in editors - {editor}} & names


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] == "nse"], ids=str)
def test_no_device_is_named_and_no_model_type_outside_its_table(module: Path) -> None:
    strings = {
        n.value
        for n in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8")))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    assert "cuda" not in strings
    if module.name != "architecture.py":
        assert not {"gpt2", "llama"} & strings
