"""The modules that the tools import before they print their help or report a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from conftest import REPO

DIGITS = str(REPO / "configs/digits_ISO20.yaml")
HEAVY = ["torch", "torchvision", "numpy", "matplotlib", "PIL"]
HELP = [[tool, "--help"] for tool in ("curves", "export", "isometry", "predict", "sweep")]
MISTAKES = [
    (["export", "--ckpt", "a.pt", "--format", "tflite"], "--format"),
    (["export", "--ckpt", "a.pt", "--format", "torch", "--opset", "17"], "--opset"),
    (["export", "--ckpt", "a.pt", "--format", "torch"], "a.pt"),
    (["export", "--ckpt", "zoo:IN1k-RIS018", "--format", "torch"], "did you mean zoo:IN1k-RISO18"),
    (["isometry"], "name a network"),
    (["isometry", "--cfg", "a.yaml"], "a.yaml"),
    (["isometry", "--compare", "a.pt", "SOLVER.BASE_RL", "1"], "did you mean SOLVER.BASE_LR"),
    (["predict", "--ckpt", "a.pt", "--top", "0", "a.png"], "--top"),
    (["predict", "--ckpt", "a.pt", "a.png"], "a.pt"),
    (["predict", "--ckpt", "a.pt", "--gpus", "first", "a.png"], "--gpus"),
    (["predict", "--ckpt", "a.pt", "a.png", "RUNTIME.AMPP", "bf16"], "did you mean RUNTIME.AMP"),
    (["sweep", "--cfg", "a.yaml"], "--output"),
    (["sweep", "--cfg", "a.yaml", "--output", "a", "--paralel"], "did you mean --parallel"),
    (["sweep", "--cfg", "a.yaml", "--output", "a", "SOLVER.BASE_LR", "1,2"], "a.yaml"),
    (["sweep", "--cfg", DIGITS, "--output", "a", "--gpus", "first"], "--gpus"),
    (["sweep", "--cfg", DIGITS, "--output", "a", "SOLVER.BASE_RL", "1,2"], "did you mean SOLVER.BASE_LR"),
    (["curves", "a", "--key", "loss"], "--key"),
    (["curves", "nothing"], "nothing"),
]

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
    """The exit code, standard output, standard error and heavy modules of every command, in one interpreter."""
    commands = [*HELP, *(command for command, _ in MISTAKES)]
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
    return dict(zip(map(" ".join, commands), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_shows_examples_and_needs_no_torch(answers, command):
    code, out, err, heavy = answers[" ".join(command)]
    assert (code, err, heavy) == (0, "", [])
    description, examples = out.split("examples:")
    assert f"usage: python -m isonet.tools.{command[0]} " in description
    assert f"python -m isonet.tools.{command[0]} " in examples


@pytest.mark.parametrize(("command", "words"), MISTAKES)
def test_a_mistake_is_one_line_and_needs_no_torch(answers, command, words):
    code, out, err, heavy = answers[" ".join(command)]
    assert (code, out, heavy) == (2, "", [])
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
