"""Invalid or absurd config files and overrides: each is refused in one sentence, or runs.

Hand-written cases run ``train.py``, and a few of them the other scripts and a shell. Hypothesis draws three hundred
mutations of the real files, the same ones every time. A mutation that is accepted runs a training step.
"""

from __future__ import annotations

import functools
import importlib
import os
import socket
import warnings
from collections import Counter

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import REPO, run_script
from isonet import build_model, load_cfg
from isonet.config import default_cfg, flat, image_size, parse_cfg
from isonet.config.file import MAX_BYTES, MAX_DEPTH
from isonet.errors import EXIT_USER_ERROR, ConfigError, printable, run_cli
from isonet.files.run_folder import run_folder
from isonet.models.build import assemble
from isonet.training import TrainStep, build_optimizer, learning_rate_at

DEEPEST = MAX_DEPTH - 1  # nested lists or nodes as the value of a top-level key
TOO_DEEP = ["line 1", f"nested more than {MAX_DEPTH} deep"]
EXECUTES = "open('executed', 'w').close()"

FILES = {  # name of the file, content, words in the message
    "python": ("a.py", f"{EXECUTES}\ncfg = dict()\n", ["a .yaml file", "executed"]),
    "no ending": ("config", "ISON:\n  DEPTH: 18\n", ["a .yaml file"]),
    "json": ("a.json", "{}", ["a .yaml file"]),
    "python object": ("a.yaml", f'ISON: !!python/object/apply:builtins.exec ["{EXECUTES}"]\n',
                      ["line 1", "tag !!python/object/apply:builtins.exec"]),
    "python name": ("a.yaml", "ISON:\n  DEPTH: !!python/name:os.system\n", ["line 2", "tag !!python/name:os.system"]),
    "python tuple": ("a.yaml", "SOLVER:\n  LR_MILESTONES: !!python/tuple [1]\n", ["tag !!python/tuple"]),
    "tag in a list": ("a.yaml", "SOLVER:\n  LR_MILESTONES: [!!python/name:os.system ]\n", ["line 2", "!!python/name"]),
    "tag of a key": ("a.yaml", "ISON:\n  !!python/name:os.system : 18\n", ["line 2", "!!python/name"]),
    "own tag": ("a.yaml", "ISON: !ison {DEPTH: 18}\n", ["tag !ison"]),
    "set": ("a.yaml", "SOLVER:\n  LR_MILESTONES: !!set {1, 2}\n", ["tag !!set"]),
    "binary": ("a.yaml", "OUTPUT_DIR: !!binary AAAA\n", ["tag !!binary"]),
    "impossible date": ("a.yaml", "ISON:\n  DEPTH: !!timestamp 2001-99-99\n", ["tag !!timestamp"]),
    "syntax": ("a.yaml", "ISON:\n  DEPTH: [\n", ["not valid YAML", "line 3"]),
    "colons": ("a.yaml", "ISON: DEPTH: 3\n", ["not valid YAML", "line 1", "colons"]),
    "tab": ("a.yaml", "ISON:\n\tDEPTH: 18\n", ["not valid YAML", "line 2"]),
    "escape": ("a.yaml", 'OUTPUT_DIR: "\\UFFFFFFFF"\n', ["not valid YAML", "escape"]),
    "version": ("a.yaml", f"%YAML 1.{'9' * 5000}\n---\nISON:\n", ["not valid YAML"]),
    "two documents": ("a.yaml", "ISON:\n---\nISON:\n", ["not valid YAML", "document"]),
    "unknown alias": ("a.yaml", "ISON:\n  DEPTH: *depth\n", ["alias 'depth'"]),
    "merge": ("a.yaml", "ISON:\n  <<: {DEPTH: 18}\n", ["line 2", "<<"]),
    "list": ("a.yaml", "- 1\n- 2\n", ["line 1", "KEY: VALUE"]),
    "number": ("a.yaml", "18\n", ["line 1", "KEY: VALUE"]),
    "latin": ("a.yaml", b"# 1\nOUTPUT_DIR: caf\xe9\n", ["line 2", "UTF-8"]),
    "utf-16": ("a.yaml", "ISON:\n".encode("utf-16"), ["UTF-8"]),
    "zeros": ("a.yaml", b"\0" * 1000, ["line 1", "'\\x00'"]),
    "escape sequence": ("a.yaml", b"ISON:\n  DEPTH: \x1b[2J18\n", ["line 2", "'\\x1b'"]),
    "picture": ("a.yaml", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ["UTF-8"]),
    "twice": ("a.yaml", "ISON:\n  DEPTH: 18\n  DEPTH: 34\n", ["line 3", "ISON.DEPTH", "twice"]),
    "node twice": ("a.yaml", "ISON:\n  DEPTH: 18\nISON:\n  HAS_BN: True\n", ["line 3", "ISON", "twice"]),
    "twice, dotted": ("a.yaml", "ISON.DEPTH: 18\nISON:\n  DEPTH: 34\n", ["line 3", "ISON.DEPTH", "twice"]),
    "twice, dotted below": ("a.yaml", "ISON:\n  DEPTH: 34\nISON.DEPTH: 18\n", ["line 3", "ISON.DEPTH", "twice"]),
    "unknown key": ("a.yaml", "ISON:\n  DETPH: 18\n", ["ISON.DETPH", "ISON.DEPTH?"]),
    "small letters": ("a.yaml", "ison:\n  depth: 18\n", ["ison.depth", "ISON.DEPTH?"]),
    "no node": ("a.yaml", "DEPTH: 18\n", ["unknown key DEPTH", "ISON.DEPTH?"]),
    "unknown node": ("a.yaml", "MODEL:\n  WIDTH: 18\n", ["unknown key MODEL.WIDTH"]),
    "key in a key": ("a.yaml", "ISON:\n  DEPTH:\n    A: 18\n", ["unknown key ISON.DEPTH.A", "ISON.DEPTH?"]),
    "number as key": ("a.yaml", "18: 18\n", ["unknown key 18"]),
    "list as key": ("a.yaml", "[1, 2]: 18\n", ["line 1", "a key is text"]),
    "node in a list": ("a.yaml", "SOLVER:\n  LR_MILESTONES: [30, {60: 1}]\n", ["line 2", "list"]),
    "control character in a key": ("a.yaml", '"\\e[2JISON": 18\n', ["unknown key"]),
    "value of a node": ("a.yaml", "ISON: 18\n", ["ISON holds keys", "ISON.DEPTH", "'18'"]),
    "empty list for a node": ("a.yaml", "ISON: []\n", ["ISON holds keys", "ISON.DEPTH"]),
    "empty value": ("a.yaml", "ISON:\n  DEPTH:\n", ["ISON.DEPTH", "a whole number", "nothing"]),
    "empty text": ("a.yaml", "OUTPUT_DIR: ~\n", ["OUTPUT_DIR", "text", "nothing"]),
    "octal": ("a.yaml", "ISON:\n  DEPTH: 020\n", ["ISON.DEPTH", "a whole number", "'020'"]),
    "time": ("a.yaml", "ISON:\n  DEPTH: 1:30\n", ["ISON.DEPTH", "a whole number", "'1:30'"]),
    "a range": ("a.yaml", "ISON:\n  DROPOUT_RATE: 1.5\n", ["ISON.DROPOUT_RATE", "between 0 and", "1.5"]),
    "half a character": ("a.yaml", 'OUTPUT_DIR: "\\ud800"\n', ["OUTPUT_DIR", "'\\ud800'"]),
    "name with a zero": ("a.yaml", 'DATASET:\n  NAME: "a\\0b"\n', ["DATASET.NAME", "'\\x00'"]),
    "list as a name": ("a.yaml", "DATASET:\n  NAME: [a, b]\n", ["DATASET.NAME", "text", "['a', 'b']"]),
    "alias to a list": ("a.yaml", "DATASET:\n  MEAN: &a [0.5, 0.5, 0.5]\n  STD: *a\n", ["line 3", "alias *a"]),
    "alias to a node": ("a.yaml", "ISON: &a {}\nSOLVER: *a\n", ["line 2", "alias *a"]),
    "alias to merge": ("a.yaml", "ISON: &a {}\nSOLVER:\n  <<: *a\n", ["line 3", "alias *a"]),
    "deepest list": ("a.yaml", f"ISON: {'[' * DEEPEST}{']' * DEEPEST}\n", ["ISON holds keys"]),
    "too deep a list": ("a.yaml", f"ISON: {'[' * (DEEPEST + 1)}{']' * (DEEPEST + 1)}\n", TOO_DEEP),
    "too deep a node": ("a.yaml", f"ISON: {'{a: ' * DEEPEST}{{}}{'}' * DEEPEST}\n", TOO_DEEP),
    "too many dashes": ("a.yaml", f"{'- ' * MAX_DEPTH}x\n", TOO_DEEP),
    "one too long": ("a.yaml", "#" * (MAX_BYTES + 1), ["100,000 bytes"]),
    "digits": ("a.yaml", f"ISON:\n  DEPTH: {'9' * 4002}\n", ["ISON.DEPTH", "a whole number"]),
    "long text": ("a.yaml", f"OUTPUT_DIR: {'x' * 4097}\n", ["OUTPUT_DIR", "4096 bytes"]),
    "long key": ("a.yaml", f"? {'x' * 2000}\n: 3\n", ["unknown key"]),
}  # fmt: skip

OVERRIDES = {  # KEY VALUE pairs, words in the message
    "no value": (["ISON.DEPTH"], ["'ISON.DEPTH'", "no value"]),
    "unknown": (["SOLVER.BASE_RL", "0.1"], ["command line", "SOLVER.BASE_RL", "SOLVER.BASE_LR?"]),
    "empty": (["", "1"], ["unknown key"]),
    "dots": (["...", "1"], ["unknown key"]),
    "attribute": (["__class__", "1"], ["unknown key __class__"]),
    "node": (["SOLVER", "1"], ["SOLVER holds keys"]),
    "node, empty": (["SOLVER", ""], ["SOLVER holds keys"]),
    "text": (["ISON.DEPTH", "deep"], ["command line", "ISON.DEPTH", "a whole number", "'deep'"]),
    "fraction": (["ISON.DEPTH", "20.5"], ["a whole number"]),
    "bool as a number": (["ISON.DEPTH", "True"], ["a whole number"]),
    "number as a bool": (["ISON.HAS_BN", "1"], ["True or False"]),
    "expression": (["ISON.DEPTH", "__import__('os').getpid()"], ["a whole number"]),
    "product": (["ISON.DEPTH", "2*10"], ["a whole number"]),
    "two signs": (["ISON.DEPTH", "+-20"], ["a whole number"]),
    "parentheses": (["SOLVER.LR_MILESTONES", "((30))"], ["a list", "a whole number"]),
    "one digit too many": (["ISON.DEPTH", "9" * 401], ["a whole number"]),
    "many digits": (["ISON.DEPTH", "9" * 300], ["ISON.DEPTH", "between 1 and 10000", "999"]),
    "nan": (["SOLVER.BASE_LR", "nan"], ["SOLVER.BASE_LR", "between", "nan"]),
    "infinite": (["SOLVER.BASE_LR", "1e999"], ["SOLVER.BASE_LR", "between", "inf"]),
    "negative rate": (["SOLVER.BASE_LR", "-0.1"], ["SOLVER.BASE_LR", "between 0", "-0.1"]),
    "negative decay": (["SOLVER.WEIGHT_DECAY", "-1"], ["SOLVER.WEIGHT_DECAY", "between 0"]),
    "dropout": (["ISON.DROPOUT_RATE", "1.5"], ["ISON.DROPOUT_RATE", "between 0"]),
    "batch 0": (["SOLVER.TRAIN_BATCH_SIZE", "0"], ["SOLVER.TRAIN_BATCH_SIZE", "between 1"]),
    "batch": (["SOLVER.TRAIN_BATCH_SIZE", "1" + "0" * 30], ["SOLVER.TRAIN_BATCH_SIZE", "between 1"]),
    "classes": (["DATASET.NUM_CLASSES", "1000000000000"], ["DATASET.NUM_CLASSES", "between 1"]),
    "workers": (["DATASET.NUM_WORKERS", "1000000000"], ["DATASET.NUM_WORKERS", "between 0"]),
    "epochs": (["SOLVER.MAX_EPOCHS", "1" + "0" * 30], ["SOLVER.MAX_EPOCHS", "between 1"]),
    "warm-up": (["SOLVER.WARMUP_EPOCH", "0"], ["SOLVER.WARMUP_EPOCH", "between 1"]),
    "keep": (["RUNTIME.KEEP", "0"], ["RUNTIME.KEEP", "between 1"]),
    "save": (["RUNTIME.SAVE_EVERY", "1" + "0" * 20], ["RUNTIME.SAVE_EVERY", "between 0"]),
    "seed": (["RUNTIME.SEED", "9223372036854775808"], ["RUNTIME.SEED", "between 0"]),
    "amp": (["RUNTIME.AMP", "fp8"], ["RUNTIME.AMP", "off, bf16, fp16", "'fp8'"]),
    "milestones": (["SOLVER.LR_MILESTONES", "[30, 10]"], ["SOLVER.LR_MILESTONES", "rising", "[30, 10]"]),
    "milestones twice": (["SOLVER.LR_MILESTONES", "[30, 30]"], ["rising"]),
    "early milestone": (["SOLVER.LR_MILESTONES", "[-1, 30]"], ["SOLVER.LR_MILESTONES", "between 0", "-1"]),
    "late milestone": (["SOLVER.LR_MILESTONES", f"[{10**30}]"], ["SOLVER.LR_MILESTONES", "between 0"]),
    "many milestones": (["SOLVER.LR_MILESTONES", str(list(range(5000)))], ["1000 epochs", "5000"]),
    "lists in lists": (["SOLVER.LR_MILESTONES", "[[1], 2]"], ["a list", "a whole number"]),
    "mean": (["DATASET.MEAN", "[123.7, 116.3, 103.5]"], ["DATASET.MEAN", "between 0 and 1", "123.7"]),
    "mean nan": (["DATASET.MEAN", "[0.5, nan, 0.5]"], ["DATASET.MEAN", "between", "nan"]),
    "one mean": (["DATASET.MEAN", "[0.5]"], ["DATASET.MEAN", "three values"]),
    "std 0": (["DATASET.STD", "[0.2, 0.2, 0]"], ["DATASET.STD", "between", "0.0"]),
    "size": (["DATASET.IMAGE_SIZE", "4"], ["DATASET.IMAGE_SIZE", "0", "at least 5"]),
    "negative size": (["DATASET.IMAGE_SIZE", "-32"], ["DATASET.IMAGE_SIZE", "between 0"]),
    "huge size": (["DATASET.IMAGE_SIZE", "1000000"], ["DATASET.IMAGE_SIZE", "between 0"]),
    "parent": (["DATASET.NAME", "../secret"], ["DATASET.NAME", "one folder"]),
    "dot dot": (["DATASET.NAME", ".."], ["DATASET.NAME", "one folder"]),
    "long name": (["DATASET.NAME", "x" * 300], ["DATASET.NAME", "255 bytes"]),
    "long name in bytes": (["DATASET.NAME", "\u00e9" * 200], ["DATASET.NAME", "255 bytes"]),
    "long part": (["OUTPUT_DIR", f"runs/{'x' * 300}"], ["OUTPUT_DIR", "255 bytes"]),
    "long path": (["DATASET.ROOT", "x/" * 3000], ["DATASET.ROOT", "4096 bytes"]),
    "escape sequence": (["OUTPUT_DIR", "\x1b[2Jout"], ["OUTPUT_DIR", "'\\x1b'"]),
    "line break": (["OUTPUT_DIR", "a\nb"], ["OUTPUT_DIR", "'\\n'"]),
    "not UTF-8": (["DATASET.ROOT", os.fsdecode(b"caf\xe9")], ["DATASET.ROOT", "'\\udce9'"]),
    "depth 0": (["ISON.DEPTH", "0"], ["ISON.DEPTH", "between 1"]),
    "depth": (["ISON.DEPTH", "100000000"], ["ISON.DEPTH", "between 1"]),
    "contradiction": (["SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0"], ["SOLVER.NESTEROV", "SOLVER.MOMENTUM"]),
    "held images": (["RUNTIME.INPUT", "memory", "DATASET.IMAGE_SIZE", "224"], ["RUNTIME.INPUT", "64", "224"]),
    "counted twice": (["RUNTIME.CHECKPOINT_ACTIVATIONS", "True", "ISON.HAS_BN", "True"], ["ISON.HAS_BN", "twice"]),
    "no such network": (["DATASET.IMAGE_SIZE", "32", "ISON.DEPTH", "21"], ["ISON.DEPTH", "21", "20 and 26"]),
    "no such big network": (["DATASET.IMAGE_SIZE", "224", "ISON.DEPTH", "20"], ["ISON.DEPTH", "20", "18, 34"]),
    "no such branch": (["ISON.TRANS_FUN", "eval"], ["ISON.TRANS_FUN", "'eval'", "basic_transform"]),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys, tally):
    """Run a script on a hostile config: ``refused(cfg, *opts)`` returns the message, after common checks."""
    monkeypatch.syspath_prepend(str(REPO))
    monkeypatch.chdir(tmp_path)

    def _refused(cfg, *opts, script="train"):
        module = importlib.import_module(script)
        before = sorted(tmp_path.rglob("*"))
        code = run_cli(module.main, module.parse_args(["--cfg", str(cfg), *opts]))
        out, err = capsys.readouterr()
        assert (code, out) == (EXIT_USER_ERROR, "")
        assert sorted(tmp_path.rglob("*")) == before, "something was executed or written"
        tally("refused")
        return one_line(err)

    return _refused


def one_line(err: str) -> str:
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()  # so the message is also one line
    assert "Traceback" not in err
    assert len(err) < 700, len(err)
    return err


def write(folder, case):
    name, content, words = FILES[case]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name, words


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_file(case, refused, tmp_path):
    name, words = write(tmp_path, case)
    message = refused(tmp_path / name)
    assert all(word in message for word in [name, *words]), message


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_hostile_override(case, refused):
    opts, words = OVERRIDES[case]
    basic = [] if "ISON.TRANS_FUN" in opts else ["ISON.TRANS_FUN", "basic_transform"]
    message = refused(REPO / "configs/self_ISO29.yaml", *basic, *opts)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("case", ["python object", "latin", "twice", "digits", "too deep a list"])
def test_a_hostile_file_to_count(case, refused, tmp_path):
    name, words = write(tmp_path, case)
    message = refused(tmp_path / name, script="flopscount_iso")
    assert all(word in message for word in [name, *words]), message


@pytest.mark.parametrize("case", ["expression", "many digits", "not UTF-8", "contradiction", "no such network"])
def test_a_hostile_override_to_count(case, refused):
    opts, words = OVERRIDES[case]
    message = refused(
        REPO / "configs/self_ISO29.yaml", "ISON.TRANS_FUN", "basic_transform", *opts, script="flopscount_iso"
    )
    assert all(word in message for word in words), message


def _folder(path):
    path.mkdir()


def _socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # a relative path: the full path may be too long for a socket


SPECIAL = {
    "folder": (_folder, ["a folder"]),
    "socket": (_socket, ["a socket"]),
    "device": (lambda path: path.symlink_to("/dev/null"), ["a device"]),
    "pipe": (os.mkfifo, ["a pipe"]),  # no process writes to it, so reading it would wait forever
    "link to itself": (lambda path: path.symlink_to(path), ["cannot be read", "Too many levels"]),
    "link to nothing": (lambda path: path.symlink_to("nothing"), ["no such config file"]),
    "missing": (lambda path: None, ["no such config file"]),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_a_path_that_is_not_a_file(case, refused, tmp_path):
    make, words = SPECIAL[case]
    make(tmp_path / "a.yaml")
    message = refused("a.yaml")
    assert all(word in message for word in ["a.yaml", *words]), message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission(refused, tmp_path):
    path = tmp_path / "a.yaml"
    path.touch(mode=0)
    assert "Permission denied" in refused(path)


@pytest.mark.parametrize("name", ["a\0.yaml", "x" * 300 + ".yaml", "x/" * 5000 + "a.yaml", "no/such/folder/a.yaml", ""])
def test_a_name_that_no_file_has(name, tally):
    with pytest.raises(ConfigError) as error:
        load_cfg(name)
    one_line(f"error: {printable(error.value)}\n")
    tally("refused")


@pytest.mark.parametrize(
    ("script", "case"), [("train.py", "python"), ("test.py", "python object"), ("flopscount_iso.py", "latin")]
)
def test_the_scripts_as_a_user_runs_them(script, case, tmp_path, tally):
    name, words = write(tmp_path, case)
    rest = ["--ckpt", "none.pt"] if script == "test.py" else []
    done = run_script(script, "--cfg", name, *rest, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (EXIT_USER_ERROR, "")
    assert all(word in one_line(done.stderr) for word in words), done.stderr
    assert [file.name for file in tmp_path.iterdir()] == [name]
    tally("refused")


ODD_AND_RIGHT = {
    "byte order mark": ("\ufeffISON:\n  DEPTH: 18\n", "ISON.DEPTH", 18),
    "node without keys": ("ISON:\n  # DEPTH: 18\nSOLVER: {}\n", "ISON.DEPTH", 34),
    "dotted": ("ISON.DEPTH: 18\n", "ISON.DEPTH", 18),
    "number used again": ("SOLVER:\n  MAX_EPOCHS: &n 7\n  WARMUP_EPOCH: *n\n", "SOLVER.WARMUP_EPOCH", 7),
    "windows": ("ISON:\r\n  DEPTH: 18\r\n", "ISON.DEPTH", 18),
    "flow": ("{ISON: {DEPTH: 18}}", "ISON.DEPTH", 18),
    "quoted": ("ISON:\n  DEPTH: '18'\n", "ISON.DEPTH", 18),
    "plain tag": ("ISON:\n  DEPTH: !!int 18\n", "ISON.DEPTH", 18),
    "yes": ("ISON:\n  HAS_BN: yes\n", "ISON.HAS_BN", True),
    "off": ("RUNTIME:\n  AMP: off\n", "RUNTIME.AMP", "off"),
    "list over lines": ("SOLVER:\n  LR_MILESTONES:\n  - 1\n  - 2\n", "SOLVER.LR_MILESTONES", [1, 2]),
    "list of words": ("MODEL:\n  FREEZE: [stem, 's1']\n", "MODEL.FREEZE", ["stem", "s1"]),
    "empty list": ("SOLVER:\n  LR_MILESTONES: []\n", "SOLVER.LR_MILESTONES", []),
    "number": ("DATASET:\n  NAME: 2024\n", "DATASET.NAME", "2024"),
    "date": ("DATASET:\n  NAME: 2024-01-31\n", "DATASET.NAME", "2024-01-31"),
    "equals sign": ("DATASET:\n  NAME: =\n", "DATASET.NAME", "="),
    "other letters": ("OUTPUT_DIR: \u7d50\u679c/\u0142\n", "OUTPUT_DIR", "\u7d50\u679c/\u0142"),
    "underscore": ("SOLVER:\n  TRAIN_BATCH_SIZE: 1_000\n", "SOLVER.TRAIN_BATCH_SIZE", 1000),
    "plus": ("SOLVER:\n  BASE_LR: +1.5E-2\n", "SOLVER.BASE_LR", 0.015),
    "whole number": ("SOLVER:\n  BASE_LR: 1\n", "SOLVER.BASE_LR", 1.0),
    "as long as may be": ("#" * MAX_BYTES, "ISON.DEPTH", 34),
    "longest path": (f"OUTPUT_DIR: {'x' * 255}/{'y' * 255}\n", "OUTPUT_DIR", f"{'x' * 255}/{'y' * 255}"),
}


@pytest.mark.parametrize("case", ODD_AND_RIGHT)
def test_unusual_but_valid_files(case, tmp_path, tally):
    text, key, value = ODD_AND_RIGHT[case]
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode())
    cfg = load_cfg(path)
    read = flat(cfg)[key]
    assert (read, type(read)) == (value, type(value))
    assert flat(parse_cfg(cfg.dump(), "a checkpoint")) == flat(cfg)
    tally("survived")


@pytest.mark.parametrize("text", [None, {"ISON": 3}, 18, "ISON: ["])
def test_the_config_of_a_hostile_checkpoint(text, tally):
    with pytest.raises(ConfigError, match="a checkpoint: "):
        parse_cfg(text, "a checkpoint")
    tally("refused")


FROM_PYTHON = {
    "numbers": [3, 4],
    "no key": [None, 4],
    "list as key": [["ISON.DEPTH"], 18],
    "number as a name": ["DATASET.NAME", 2024],
    "huge int": ["ISON.DEPTH", 10**5000],
    "huge float": ["SOLVER.BASE_LR", 10**5000],
    "huge int in a list": ["SOLVER.LR_MILESTONES", [10**5000]],
    "long list": ["ISON.DEPTH", [list(range(100))] * 100],
    "object": ["OUTPUT_DIR", object()],
    "tensor": ["DATASET.MEAN", torch.zeros(3, 3, 3)],
    "huge int, no value": [10**5000],
}


@pytest.mark.parametrize("case", FROM_PYTHON)
def test_hostile_values_from_python(case, tally):
    with pytest.raises(ConfigError) as error:
        load_cfg(None, FROM_PYTHON[case])
    one_line(f"error: {printable(error.value)}\n")
    tally("refused")


# Mutations

CONFIGS = {path.name: path.read_bytes() for path in sorted((REPO / "configs").glob("*.yaml"))}
DEFAULTS = flat(default_cfg())
KEYS = list(DEFAULTS)
HEAVY = 5_000_000  # parameters; larger networks, and images larger than 64 pixels, run without data

any_text = st.text(st.characters(), max_size=12)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.integers(0, 40).map(lambda digits: 10**digits),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.floats(0, 2),
    any_text,
    st.sampled_from(["", "off", "bf16", "memory", "torch", "skip", "CIFAR10", "digits", "bottleneck_transform", "True",
                     "1e-4", "1e400", "0x14", "[1, 2]", "nan", "~", "..", "a/b", "x" * 5000]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=3), max_leaves=6
)

PLAUSIBLE = {
    bool: st.booleans(),
    int: st.integers(0, 64) | st.sampled_from([8, 14, 18, 20, 29, 50, 101, 110, 128, 224, 10_000]),
    float: st.floats(0, 1) | st.floats(0, 1e6) | st.integers(0, 2),
    str: st.sampled_from(["off", "fp16", "bf16", "auto", "workers", "pil", "skip", "CIFAR100", "digits", "mine", "a b",
                          "basic_transform", "bottleneck_transform", "\u7d50\u679c", "2024", "../x"]),
    list: st.lists(st.integers(0, 300), max_size=4).map(sorted) | st.lists(st.floats(0, 1), min_size=3, max_size=3),
}  # fmt: skip


@st.composite
def new_value(draw, key):
    """A value that is usually of the kind that ``key`` accepts, and otherwise of any kind."""
    return draw(PLAUSIBLE[type(DEFAULTS[key])] if key in DEFAULTS and draw(st.integers(0, 4)) else values)


@st.composite
def changed_text(draw):
    """A real file after one to three typing errors."""
    data = draw(st.sampled_from(list(CONFIGS.values())))
    for _ in range(draw(st.integers(1, 3))):
        data = draw(st.sampled_from(SLIPS))(draw, data)
    return data, []


def _of_lines(change):
    def slip(draw, data):
        lines = data.splitlines(keepends=True) or [b"\n"]
        change(lines, draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1)))
        return b"".join(lines)

    return slip


def _swap(lines, i, j):
    lines[i], lines[j] = lines[j], lines[i]


def _replace(draw, data, width, size):
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.binary(min_size=size, max_size=size)) + data[at + width :]


def _type_a_character(draw, data):
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.sampled_from([*b"0159.-:#[]{},*&!|>%@'\"\\\t\n eE_~<"])).to_bytes(1, "big") + data[at:]


def _change_digit(draw, data):
    digits = [i for i, byte in enumerate(data) if byte in b"0123456789"]
    if not digits:
        return data
    at = draw(st.sampled_from(digits))
    return data[:at] + draw(st.sampled_from([b"", b"0", b"9", b"99", b"-1", b".", b"e9", b"x"])) + data[at + 1 :]


SLIPS = [
    _of_lines(lambda lines, i, _: lines.pop(i)),
    _of_lines(lambda lines, i, j: lines.insert(j, lines[i])),
    _of_lines(_swap),
    _of_lines(lambda lines, i, j: lines.__setitem__(i, b" " * (1 + j % 3) + lines[i])),
    _of_lines(lambda lines, i, _: lines.__setitem__(i, lines[i].lstrip(b" "))),
    _of_lines(lambda lines, i, _: lines.__setitem__(i, b"# " + lines[i])),
    _of_lines(lambda lines, i, _: lines.__setitem__(slice(i + 1, None), [])),
    functools.partial(_replace, width=1, size=1),
    functools.partial(_replace, width=0, size=2),
    functools.partial(_replace, width=3, size=0),
    _type_a_character,
    _change_digit,
    _change_digit,
]


@st.composite
def changed_tree(draw):
    """A real file with one to three of its values replaced, added, renamed or removed."""
    tree = yaml.safe_load(draw(st.sampled_from(list(CONFIGS.values()))))
    for _ in range(draw(st.integers(1, 3))):
        node = draw(st.sampled_from([tree, *(branch for branch in tree.values() if isinstance(branch, dict))]))
        kind = draw(st.sampled_from(["add", "add", "replace", "replace", "rename", "remove"]))
        if kind == "add":
            key = draw(st.sampled_from(KEYS))
            name, _, leaf = key.rpartition(".")
            branch = tree.setdefault(name, {}) if name else tree
            if isinstance(branch, dict):  # not a dictionary if it was replaced
                branch[leaf] = draw(new_value(key))
        elif not node:
            continue
        elif kind == "replace":
            key = draw(st.sampled_from(list(node)))
            name = next((f"{name}.{key}" for name, branch in tree.items() if branch is node), key)
            node[key] = draw(new_value(name))
        elif kind == "rename":
            key = draw(st.sampled_from(list(node)))
            at = draw(st.integers(0, len(key)))
            node[key[:at] + draw(st.characters()) + key[at + 1 :]] = node.pop(key)
        else:
            del node[draw(st.sampled_from(list(node)))]
    return yaml.safe_dump(tree).encode(), []


@st.composite
def overridden(draw):
    """A real file, and one to three overrides."""
    opts = []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(KEYS))
        value = draw(new_value(key))
        opts += [key, draw(st.sampled_from([value, str(value)]))]
    return draw(st.sampled_from(list(CONFIGS.values()))), opts


def test_mutations_of_the_real_configs(tmp_path, tally, torture):
    path = tmp_path / "mutant.yaml"
    found = Counter()

    @settings(
        max_examples=3000 if torture else 150,
        derandomize=True,  # the same mutants everywhere
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(changed_text(), changed_tree(), overridden()))
    def try_one(mutant):
        data, opts = mutant
        path.write_bytes(data)
        found[_outcome(path, opts)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning on a terminal is a second line
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        try_one()
    tally("refused", found["refused"])
    tally("survived", found["survived"])
    assert found.total() >= (3000 if torture else 150)
    assert min(found["refused"], found["survived"]) >= found.total() // 5, (
        found
    )  # otherwise the mutants are too harmless or too wild


def _outcome(path, opts) -> str:
    """Return "refused" on ``ConfigError`` before data is read, or "survived" after a step. Other outcomes fail."""
    try:
        cfg = load_cfg(path, opts)
        with torch.device("meta"):
            model = assemble(cfg)
    except ConfigError as error:
        message = printable(error)
        assert message
        assert message.isprintable()
        assert len(message) < 500, message
        return "refused"
    assert flat(parse_cfg(cfg.dump(), "a checkpoint")) == flat(cfg)
    run_folder(cfg, "run").path.exists()  # the system accepts the name
    for epoch in (1, cfg.SOLVER.WARMUP_EPOCH, cfg.SOLVER.MAX_EPOCHS):
        assert learning_rate_at(cfg, epoch, 8) >= 0
    size, classes = image_size(cfg), cfg.DATASET.NUM_CLASSES
    if size > 64 or sum(p.numel() for p in model.parameters()) > HEAVY:
        memory = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
        model.load_state_dict(memory, assign=True)
        logits = model.eval()(torch.empty(0, 3, size, size))  # shapes without data
    else:
        torch.manual_seed(cfg.RUNTIME.SEED)
        model = build_model(cfg)
        step = TrainStep(model, model, build_optimizer(model, cfg), cfg.ISON.ORTHO_COEFF)
        logits = step(torch.randn(2, 3, size, size), torch.tensor([0, classes - 1])).logits
    assert logits.shape[1:] == (classes,)
    return "survived"
