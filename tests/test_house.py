"""The rules of CONTRIBUTING that can be counted: files, lines and functions, and the use of private names."""

from __future__ import annotations

import ast

import pytest

from conftest import REPO

FILES = sorted((REPO / "isonet").rglob("*.py"))
TRAINING = [path for path in FILES if path.parent.name == "training"]


def test_training_has_at_most_14_files():
    assert 1 < len(TRAINING) <= 14


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_a_file_has_at_most_250_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.name)
def test_a_function_of_training_has_at_most_50_lines(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_private_names_of_torch_are_used_in_only_one_module(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    of_torch = [(alias.asname or alias.name, alias.name) for node in imported if node.module.startswith("torch")
                for alias in node.names]  # fmt: skip
    roots = {"torch", "dist", *(name for name, _ in of_torch)}
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and root_of(node) in roots]
    private = [name for name in (*(node.attr for node in used), *(name for _, name in of_torch)) if is_private(name)]
    assert not private or path.name == "private_torch.py", private


def root_of(node):
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_private(name):
    return name.startswith("_") and not name.startswith("__")
