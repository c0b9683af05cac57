"""Who may import whom: the house's plan in docs/architecture.md, enforced."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "chatbaker"
BASE = {"errors", "log", "rundir", "recipe", "jsonl", "made"}
MODULES = sorted(PACKAGE.rglob("*.py"))

ALLOWED = {
    "text": BASE,
    "tokens": BASE,
    "model": BASE,
    "report": BASE,
    "train": BASE | {"tokens", "model", "dist", "gpus"},
    "infer": BASE | {"tokens", "model", "export"},
    "export": BASE | {"tokens", "model"},
    "evals": BASE | {"tokens", "model", "infer", "dist"},
    "chat": BASE | {"tokens", "model", "infer"},
    "made": {"made"},
    "cli": BASE | {"stages", "bake", "chat", "infer", "tokens", "report", "plan"},
    "bake": BASE | {"stages"},
    "stages": BASE,
    "plan": BASE | {"gpus", "model"},
    "gpus": BASE,
    "dist": BASE,
    "__main__": {"cli"},
    "__init__": set(),
    "recipe": {"errors"},
    "rundir": {"errors"},
    "log": {"errors"},
    "errors": set(),
    "jsonl": {"errors", "rundir"},
}


def imports(path: Path) -> set[tuple[str, bool]]:
    """(imported chatbaker room, whether at the top of the module)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module] if node.module != "chatbaker" else [f"chatbaker.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "chatbaker" and len(parts) > 1:
                found.add((parts[1], node in tree.body))
            elif parts[0] != "chatbaker":
                found.add((f"!{parts[0]}", node in tree.body))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_plan(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0]
    allowed = ALLOWED[room] | {room}
    for name, _ in imports(path):
        if not name.startswith("!") and not name.startswith("__"):
            assert name in allowed, f"{room} may not import {name}"


@pytest.mark.parametrize("name", ["cli", "bake", "stages", "recipe", "rundir", "log", "errors", "jsonl", "gpus"])
def test_the_base_never_imports_torch(name):
    assert not {"!torch", "!transformers", "!numpy", "!openai"} & {n for n, _ in imports(PACKAGE / f"{name}.py")}


def test_nobody_imports_train():
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] != "train":
            assert "train" not in {name for name, _ in imports(path)}, path
