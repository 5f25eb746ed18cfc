"""Imports run one way, and every recipe stands."""

import ast
from pathlib import Path

import pytest
import torch

from grrcoca_cli.config import build_recipe, read_recipe, recipe_names
from grrcoca_cli.model.coca import CoCa

ROOT = Path(__file__).resolve().parents[1]

# Each layer may import itself and those in its set; `commands` and the two doors may import everything.
BASE = {"grrcoca_cli.errors", "grrcoca_cli"}
MAY_IMPORT = {
    "grrcoca_cli.errors": set(),
    "grrcoca_cli.console": BASE,
    "grrcoca_cli.signals": BASE,
    "grrcoca_cli.files": BASE,
    "grrcoca_cli.config": BASE,
    "grrcoca_cli.provenance": BASE | {"grrcoca_cli.files"},
    "grrcoca_cli.studies": BASE | {"grrcoca_cli.config"},
    "grrcoca_cli.model": BASE | {"grrcoca_cli.config"},
    "grrcoca_cli.data": BASE | {"grrcoca_cli.files"},
    "grrcoca_cli.evaluation": BASE,
    "medical": BASE | {"grrcoca_cli.data"},
    "grrcoca_cli.training": BASE
    | {f"grrcoca_cli.{name}" for name in ("model", "data", "config", "files", "console", "signals")},
}
DOORS = (
    "grrcoca_cli.commands",
    "grrcoca_cli.cli",
    "grrcoca_cli.captioner",
    "grrcoca_cli.__init__",
    "grrcoca_cli.__main__",
)


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "medical" else ".".join(parts[:2])


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # `from grrcoca_cli import __version__` is of the package, `from grrcoca_cli import errors` of a module.
            submodules = {f"{node.module}.{name.name}" for name in node.names}
            real = {name for name in submodules if (ROOT / f"{name.replace('.', '/')}.py").exists()}
            found |= real or {node.module}
    return {name for name in found if name.split(".")[0] in ("grrcoca_cli", "medical")}


def test_imports_run_one_way() -> None:
    wrong = []
    files = [*ROOT.glob("grrcoca_cli/**/*.py"), *ROOT.glob("medical/**/*.py")]
    assert len(files) > 30
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        layer = layer_of(module)
        if layer in DOORS:
            continue
        for imported in imports_of(path):
            target = layer_of(imported)
            if target != layer and target not in MAY_IMPORT[layer]:
                wrong.append(f"{module} imports {imported}")
    assert wrong == []


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds(name: str) -> None:
    tables = read_recipe(name)
    recipe = build_recipe(tables, name)
    with torch.device("meta"):
        model = CoCa(recipe.model)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6
    head = (ROOT / "recipes" / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")[0]
    launches = [line for line in head.splitlines() if line.startswith("#   grrcoca ")]
    assert len(launches) == 2
    assert f"{name}" in launches[0] or "--dataset" in launches[0]
    assert "--set" in launches[1]
    assert "ours" in head
