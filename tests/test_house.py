"""The rules of CONTRIBUTING that can be counted: files, lines and functions, and where private names are used."""

from __future__ import annotations

import ast
import re

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
def test_private_names_of_torch_are_used_in_one_module_alone(path):
    text = path.read_text(encoding="utf-8")
    private = re.findall(r"\b(?:torch|dist|F|nn)(?:\.\w+)*\._[a-z]\w*|from torch\S* import _\w+", text)
    assert not private or path.name == "private_torch.py", private
