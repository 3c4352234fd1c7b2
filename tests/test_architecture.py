"""The rules of the house: who imports whom, how long a file is, what ``--help`` loads, what is public."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("vlmdata", "vlmtrain", "vlmeval")
MAY_IMPORT = {
    "vlmdata": {"vlmdata"},
    "vlmtrain": {"vlmtrain", "vlmdata"},
    "vlmeval": {"vlmeval", "vlmdata"},
}
DOORS = {"vlmeval/models/local.py": {"vlmtrain"}, "vlmtrain/evaluate.py": {"vlmeval"}}
NEVER_IN_DATA = {"torch", "transformers", "peft", "trl"}
LEAVES = {
    "vlmdata/sources": {f"vlmdata.{m}" for m in ("errors", "fields", "marks", "reasons", "records", "source")},
    "vlmdata/exports": {"vlmdata.marks", "vlmdata.target"},
    "vlmtrain/families": {f"vlmtrain.{m}" for m in ("budgets", "chat", "family", "positions")} | {"vlmdata.errors"},
}
HEAVY = ("torch", "transformers", "datasets", "pandas", "PIL", "numpy", "trl", "peft")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALL_FILES = sorted([*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} line {node.lineno}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows_between_packages(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imported(path)}
    assert tops & set(PACKAGES) <= MAY_IMPORT[package] | DOORS.get(name_of(path), set())
    if package == "vlmdata":
        assert not tops & NEVER_IN_DATA


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_leaves_see_the_vocabulary_only(path: Path) -> None:
    allowed = LEAVES.get(str(path.parent.relative_to(ROOT)))
    if allowed is None or path.name == "__init__.py":
        pytest.skip("not a leaf with a fixed vocabulary")
    ours = {name for name in imported(path) if name.split(".")[0] in PACKAGES}
    assert ours <= allowed


@pytest.mark.parametrize("path", ALL_FILES, ids=name_of)
def test_files_and_functions_are_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            # Decorators and signature of a command are its options, not its logic.
            assert (node.end_lineno or 0) - node.body[0].lineno < 70, f"{node.name} is too long"


def test_no_room_without_a_name() -> None:
    bad = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert not [name_of(path) for path in ALL_FILES if path.name in bad]


def test_no_two_test_files_of_one_name() -> None:
    """pytest imports them by their bare names."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_are_sorted_and_complete(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    declared = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    if path.name == "__init__.py" and not declared and not defined:
        return
    (names,) = declared
    assert names == sorted(names), "__all__ is not sorted"
    assert defined <= set(names), f"public and not in __all__: {sorted(defined - set(names))}"
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    bound = {target.id for target in assigned if isinstance(target, ast.Name)}
    bound |= {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    bound |= {alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert set(names) <= defined | bound, f"in __all__ and not there: {sorted(set(names) - defined - bound)}"


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        found.append(path)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                walk(child, (*path, name))

    for package in PACKAGES:
        walk(importlib.import_module(f"{package}.cli").main, (package,))
    return found


def command_at(path: tuple[str, ...]) -> click.Command:
    command: click.Command = importlib.import_module(f"{path[0]}.cli").main
    for name in path[1:]:
        assert isinstance(command, click.Group)
        child = command.get_command(click.Context(command), name)
        assert child is not None
        command = child
    return command


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    command = command_at(path)
    assert command.help, "no help"
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert all(option.help for option in options), [o.name for o in options if not o.help]
    # vlmeval vqa has the most: what every task takes, and how answers are read, which changes their score.
    assert len(options) <= 35
    if len(path) > 1:
        assert " ".join(path) in (ROOT / "README.md").read_text(), "the README does not name it"


def test_help_is_light() -> None:
    """One process shows the help of every command; none of the heavy packages is loaded at any point."""
    code = f"""
import contextlib, importlib, io, json, sys
found = {{}}
for path in {commands()!r}:
    main = importlib.import_module(path[0] + ".cli").main
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main([*path[1:], "--help"], prog_name=path[0], standalone_mode=False)
        except SystemExit:
            pass
    found[" ".join(path)] = [out.getvalue()[:6], sorted(set({HEAVY!r}) & set(sys.modules))]
print(json.dumps(found))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert len(found) == len(commands())
    for command, (start, heavy) in found.items():
        assert start == "Usage:", command
        assert not heavy, f"{command} --help loads {heavy}"


def test_the_repository_names_no_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.])/(?:root|work|home)/\w")
    bad = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".cfg", ".toml", ".yaml", ".sh", ".txt", ".json"} and path.exists():
            if name != name_of(Path(__file__)) and pattern.search(path.read_text()):
                bad.append(name)
    assert not bad
