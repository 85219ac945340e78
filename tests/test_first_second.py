"""The first second: the imports before an error is reported, and the imports of scripts that need few modules.

The tests check modules, not seconds: ``import torch`` takes longer than everything else before an error.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import isonet
from conftest import REPO

DIGITS = str(REPO / "configs/digits_ISO20.yaml")
CIFAR = str(REPO / "configs/cifar10_ISO110.yaml")
FOLDERS = str(REPO / "configs/self_ISO29.yaml")

HEAVY = ["torch", "torchvision", "numpy", "PIL", "matplotlib"]
# Runs scripts one after another, as __main__, and prints each script's exit code and the loaded heavy modules
RUN = f"""
import json, runpy, sys
outcomes = []
for script, *args in json.loads(sys.argv[1]):
    sys.argv = [script, *args]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        outcomes.append([end.code or 0, [name for name in {HEAVY!r} if name in sys.modules]])
print(json.dumps(outcomes))
"""
COMMANDS = {
    "help of train.py": ["train.py", "--help"],
    "help of test.py": ["test.py", "--help"],
    "help of flopscount_iso.py": ["flopscount_iso.py", "--help"],
    "unknown option": ["train.py", "--cfg", DIGITS, "--overwite"],
    "missing option": ["test.py", "--cfg", DIGITS],
    "wrong GPUs": ["train.py", "--cfg", DIGITS, "--gpus", "first"],
    "unknown key": ["train.py", "--cfg", DIGITS, "SOLVER.BASE_RL", "1"],
    "wrong type": ["train.py", "--cfg", DIGITS, "SOLVER.BASE_LR", "fast"],
    "out of range": ["train.py", "--cfg", DIGITS, "SOLVER.BASE_LR", "-1"],
    "contradiction": ["train.py", "--cfg", DIGITS, "ISON.RES_MULTIPLIER", "0", "ISON.HAS_RES_MULTIPLIER", "True"],
    "no such depth": ["train.py", "--cfg", DIGITS, "ISON.DEPTH", "9"],
    "missing config": ["train.py", "--cfg", "gone.yaml"],
    "missing images": ["train.py", "--cfg", FOLDERS],
    "missing CIFAR": ["train.py", "--cfg", CIFAR],
    "nothing to resume": ["train.py", "--cfg", DIGITS, "--resume"],
    "missing checkpoint to resume": ["train.py", "--cfg", DIGITS, "--resume", "gone.pt"],
    "missing checkpoint to start from": ["train.py", "--cfg", DIGITS, "MODEL.INIT_FROM", "gone.pt"],
    "run that exists": ["train.py", "--cfg", DIGITS, "--output", "mine"],
    "bad name of a run": ["train.py", "--cfg", DIGITS, "--output", "a/b"],
    "missing checkpoint": ["test.py", "--ckpt", "gone.pt"],
    "typo in the zoo": ["test.py", "--ckpt", "zoo:IN1k-ISO19"],
    "missing folder for figures": ["test.py", "--ckpt", "gone.pt", "--json", "gone/x.json"],
    "unknown key for a checkpoint": ["test.py", "--ckpt", "gone.pt", "ISON.DETPH", "18"],
    "no such depth to count": ["flopscount_iso.py", "--cfg", DIGITS, "ISON.DEPTH", "9"],
}


def run(code: str, *args: str, cwd=REPO) -> str:
    env = {"PYTHONPATH": str(REPO), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The exit code and heavy modules after each command. One interpreter runs all commands, so modules accumulate."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "outputs/cls/digits/mine").mkdir(parents=True)
    (folder / "outputs/cls/digits/mine/latest.pt").touch()
    commands = [[str(REPO / script), *args] for script, *args in COMMANDS.values()]
    printed = run(RUN, json.dumps(commands), cwd=folder)
    return dict(zip(COMMANDS, json.loads(printed.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("case", COMMANDS)
def test_help_and_mistakes_need_no_torch(case, outcomes):
    assert outcomes[case] == [0 if case.startswith("help") else 2, []]


def test_counting_needs_only_torch():
    """Counting imports no image library, and neither torch's compiler nor its algebra, as slow to import as torch."""
    code = f"import runpy, sys; sys.argv = ['flopscount_iso.py', '--cfg', {DIGITS!r}]\ntry: "
    code += "runpy.run_path('flopscount_iso.py', run_name='__main__')\nexcept SystemExit: print(*sys.modules)"
    loaded = run(code).splitlines()[-1].split()
    assert "torch" in loaded
    unwanted = {"torchvision", "torch._dynamo", "torch._inductor", "sympy", "PIL", "matplotlib", "isonet.data"}
    assert not unwanted & set(loaded)


def test_the_package_imports_nothing_heavy():
    assert run(f"import sys, isonet; print(*({set(HEAVY)!r} & set(sys.modules)))").split() == []


@pytest.mark.parametrize("name", isonet.__all__)
def test_every_public_name_is_there(name):
    value = getattr(isonet, name)
    assert value.__name__ == name
    assert value.__module__.startswith("isonet.")
    assert name in dir(isonet)


def test_other_attributes_of_the_package():
    assert isonet.ortho.kernel_penalty  # submodules, without importing them by name
    with pytest.raises(AttributeError, match="nothing"):
        isonet.nothing  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        from isonet import nothing  # noqa: F401
