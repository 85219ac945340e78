"""What the tools import before they print their help or report a wrong option: modules, not seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from conftest import REPO

HEAVY = ["torch", "torchvision", "numpy", "matplotlib", "PIL"]
HELP = {tool: [tool, "--help"] for tool in ("curves", "export", "isometry", "predict", "sweep")}
MISTAKES = {
    "--format": ["export", "--ckpt", "a.pt", "--format", "tflite"],
    "--opset": ["export", "--ckpt", "a.pt", "--format", "onnx", "--opset", "17"],
    "name a network": ["isometry"],
    "--top": ["predict", "--ckpt", "a.pt", "--top", "0", "a.png"],
    "--output": ["sweep", "--cfg", "a.yaml"],
    "did you mean --parallel": ["sweep", "--cfg", "a.yaml", "--output", "a", "--paralel"],
    "--key": ["curves", "a", "--key", "loss"],
    "no run nothing": ["curves", "nothing"],
}

RUN_ALL = """
import contextlib, io, json, runpy, sys

commands, heavy = json.loads(sys.argv[1])
answers = []
for tool, *arguments in commands:
    sys.argv = [tool, *arguments]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module(f"isonet.tools.{tool}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        answers.append([end.code, out.getvalue(), err.getvalue(), [name for name in heavy if name in sys.modules]])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Exit code, standard output, standard error and heavy modules of every command, from one interpreter."""
    commands = [*HELP.values(), *MISTAKES.values()]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps([commands, HEAVY])],
        cwd=tmp_path_factory.mktemp("empty"),
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(zip([*HELP, *MISTAKES], json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("tool", HELP)
def test_help_shows_examples_and_needs_no_torch(answers, tool):
    code, out, err, heavy = answers[tool]
    assert (code, err, heavy) == (0, "", [])
    description, examples = out.split("examples:")
    assert f"usage: python -m isonet.tools.{tool} " in description
    assert f"python -m isonet.tools.{tool} " in examples


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_needs_no_torch(answers, words):
    code, out, err, heavy = answers[words]
    assert (code, out, heavy) == (2, "", [])
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
