"""The config tree: published YAML files load, and errors are explained."""

from __future__ import annotations

import pytest

from conftest import REPO
from isonet import build_model, load_cfg
from isonet.config import default_cfg, flat, image_size, parse_cfg, read_written_cfg
from isonet.errors import ConfigError

PUBLISHED = """\
DATASET:
  ROOT: '/data/imagenet'
  NAME: 'ILSVRC2012'
  NUM_CLASSES: 1000
  NUM_WORKERS: 8
SOLVER:
  BASE_LR: 0.01
  LR_MILESTONES: [30, 60, 90]
  LR_GAMMA: 0.1
  WEIGHT_DECAY: 1e-4
  MOMENTUM: 0.9
  DAMPENING: False
  NESTEROV: False
  TRAIN_BATCH_SIZE: 128
  TEST_BATCH_SIZE: 200
  MAX_EPOCHS: 100
  WARMUP: True
  WARMUP_EPOCH: 5
  WARMUP_FACTOR: 0.2
ISON:
  DEPTH: 18
  ORTHO_COEFF: 1e-4
  HAS_BN: False
  HAS_ST: False
  SReLU: True
  DIRAC_INIT: True
  HAS_RES_MULTIPLIER: False
  RES_MULTIPLIER: 1.0
  DROPOUT: True
  DROPOUT_RATE: 0.1
  TRANS_FUN: 'basic_transform'
OUTPUT_DIR: './outputs/cls'
"""


@pytest.fixture
def write(tmp_path):
    def _write(text, name="some.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def test_a_published_yaml_loads_unchanged(write):
    cfg = load_cfg(write(PUBLISHED))
    assert cfg.SOLVER.WEIGHT_DECAY == cfg.ISON.ORTHO_COEFF == 1e-4  # YAML parses 1e-4 as text
    assert cfg.SOLVER.LR_MILESTONES == [30, 60, 90]
    assert cfg.DATASET.ROOT == "/data/imagenet"


def test_the_defaults_are_the_published_ones():
    cfg = flat(load_cfg())
    published = {
        "SOLVER.BASE_LR": 0.05, "SOLVER.WEIGHT_DECAY": 1e-4, "SOLVER.MOMENTUM": 0.9, "SOLVER.MAX_EPOCHS": 100,
        "ISON.DEPTH": 34, "ISON.ORTHO_COEFF": 1e-4, "ISON.SReLU": True, "ISON.HAS_BN": False,
        "DATASET.NAME": "ILSVRC2012", "OUTPUT_DIR": "./outputs/cls",
    }  # fmt: skip
    assert {key: cfg[key] for key in published} == published


def test_overrides_take_precedence_over_the_file_and_may_be_text_or_values(write):
    path = write("ISON:\n  DEPTH: 18\n  DROPOUT: True\n")
    cfg = load_cfg(path, ["ISON.DROPOUT", "False", "SOLVER.BASE_LR", "1e-2", "SOLVER.LR_MILESTONES", "[1, 2]"])
    assert (cfg.ISON.DEPTH, cfg.ISON.DROPOUT, cfg.SOLVER.BASE_LR) == (18, False, 0.01)
    assert cfg.SOLVER.LR_MILESTONES == [1, 2]
    cfg = load_cfg(
        None, ["ISON.DROPOUT", "true", "SOLVER.BASE_LR", 1, "DATASET.NAME", "2024", "SOLVER.LR_MILESTONES", (3,)]
    )
    assert (cfg.ISON.DROPOUT, cfg.DATASET.NAME, cfg.SOLVER.LR_MILESTONES) == (True, "2024", [3])
    assert isinstance(cfg.SOLVER.BASE_LR, float)


def test_a_config_is_frozen_and_not_shared():
    cfg = load_cfg()
    with pytest.raises(AttributeError):
        cfg.ISON.DEPTH = 18
    assert default_cfg().ISON is not default_cfg().ISON


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["SOLVER.BASE_RL", 0.1], ["SOLVER.BASE_RL", "did you mean SOLVER.BASE_LR"]),
        (["SOLVER", 3], ["SOLVER holds keys, such as SOLVER.BASE_LR"]),
        (["ISON.DEPTH"], ["'ISON.DEPTH' has no value"]),
        (["ISON.DEPTH", "deep"], ["ISON.DEPTH", "a whole number", "'deep'"]),
        (["ISON.DEPTH", 20.5], ["a whole number"]),
        (["ISON.DEPTH", True], ["a whole number"]),
        (["ISON.HAS_BN", 1], ["True or False"]),
        (["SOLVER.BASE_LR", "fast"], ["a number"]),
        (["SOLVER.BASE_LR", -0.1], ["between 0", "-0.1"]),
        (["SOLVER.BASE_LR", "nan"], ["SOLVER.BASE_LR"]),
        (["SOLVER.LR_MILESTONES", 30], ["SOLVER.LR_MILESTONES takes a list"]),
        (["SOLVER.LR_MILESTONES", "[30, 10]"], ["rising order"]),
        (["SOLVER.TRAIN_BATCH_SIZE", 0], ["between 1 and"]),
        (["ISON.DROPOUT_RATE", 1.5], ["ISON.DROPOUT_RATE"]),
        (["SOLVER.SCHEDULE", "linear", "SOLVER.WARMUP", True, "SOLVER.MAX_EPOCHS", 3], ["WARMUP_EPOCH 5", "of 3"]),
        (["ISON.ORTHOGONAL_CONV", True, "ISON.DELTA_ORTHOGONAL", True], ["ISON.ORTHOGONAL_CONV", "one of them False"]),
        (["RUNTIME.CHECKPOINT_ACTIVATIONS", True, "RUNTIME.COMPILE", True], ["does not go with RUNTIME.COMPILE"]),
        (["DATASET.PADDING", 2], ["DATASET.PADDING", "224: use -1"]),
        (["ISON.DIRAC_INIT", False, "ISON.DELTA_ORTHOGONAL", True], ["ISON.DIRAC_INIT must be True"]),
        (["ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.0], ["ISON.HAS_ST"]),
        (["SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0], ["SOLVER.MOMENTUM above 0"]),
        (["DATASET.STD", "[0.2, 0.2]"], ["three values"]),
        (["DATASET.STD", "[0.2, 0.2, 0]"], ["DATASET.STD", "between 0.0001"]),
        (["DATASET.NAME", "../secret"], ["one folder"]),
    ],
)
def test_an_invalid_value_is_explained(opts, words):
    with pytest.raises(ConfigError) as error:
        load_cfg(None, opts)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "ISON: [", ["not valid YAML"]),
        ("a.yaml", "- 1\n- 2\n", ["line 1", "expected KEY: VALUE"]),
        ("a.yaml", b"ISON:\n  DEPTH: \xff\xfe\n", ["UTF-8"]),
        ("a.yaml", "ISON: !!python/object/apply:os.system ['true']\n", ["tag !!python", "makes an object"]),
        ("a.yaml", "ISON:\n  DETPH: 18\n", ["a.yaml", "ISON.DETPH", "ISON.DEPTH"]),
        ("a.py", "raise SystemExit('executed')\n", ["nor executed"]),
    ],
)
def test_an_invalid_file_is_explained(write, name, content, words):
    with pytest.raises(ConfigError) as error:
        load_cfg(write(content, name))
    assert all(word in str(error.value) for word in words), error.value


def test_the_error_for_a_missing_file_suggests_a_similar_name():
    with pytest.raises(
        ConfigError, match=r"cifar10_ISO11.yaml: no such config file; did you mean .*cifar10_ISO110.yaml"
    ):
        load_cfg(REPO / "configs" / "cifar10_ISO11.yaml")


def test_an_empty_file_gives_the_defaults(write):
    assert flat(load_cfg(write("# nothing\n"))) == flat(load_cfg())


def test_image_size():
    assert image_size(load_cfg()) == 224
    assert image_size(load_cfg(None, ["DATASET.NAME", "CIFAR10"])) == 32
    assert image_size(load_cfg(None, ["DATASET.NAME", "self", "DATASET.IMAGE_SIZE", 48])) == 48
    assert build_model(load_cfg(REPO / "configs/self_ISO29.yaml")).stem.conv.kernel_size == (3, 3)


def test_a_former_config_of_batch_norm_with_recomputing_loads_without_recomputing(tmp_path):
    """Former versions allowed both. Recomputing changes no number, so the run can be resumed and evaluated."""
    text = load_cfg(None, ["ISON.HAS_BN", True]).dump()
    assert "CHECKPOINT_ACTIVATIONS: false" in text
    former = text.replace("CHECKPOINT_ACTIVATIONS: false", "CHECKPOINT_ACTIVATIONS: true")
    (tmp_path / "config.yaml").write_text(former)
    for cfg in (parse_cfg(former, "a checkpoint"), read_written_cfg(tmp_path / "config.yaml")):
        assert cfg.ISON.HAS_BN
        assert not cfg.RUNTIME.CHECKPOINT_ACTIVATIONS
    with pytest.raises(ConfigError, match="CHECKPOINT_ACTIVATIONS"):
        load_cfg(tmp_path / "config.yaml")


def test_paths_are_expanded_where_a_user_writes_them_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.chdir(tmp_path)
    text = "DATASET: {ROOT: ~/data}\nOUTPUT_DIR: ${SCRATCH}/out\nMODEL: {INIT_FROM: $HOME/a.pt}\n"
    (tmp_path / "c.yaml").write_text(text)
    cfg = load_cfg("~/c.yaml")
    expanded = f"{tmp_path}/data", "/scratch/me/out", f"{tmp_path}/a.pt"
    assert expanded == (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.MODEL.INIT_FROM)
    assert str(tmp_path) == load_cfg(None, ["OUTPUT_DIR", "~", "DATASET.ROOT", "a~b"]).OUTPUT_DIR
    assert parse_cfg(text, "a checkpoint").DATASET.ROOT == "~/data"  # as written by a former version
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR.*'NOT_SET'"):
        load_cfg(None, ["OUTPUT_DIR", "$NOT_SET/out"])
    (tmp_path / "$NOT_SET").mkdir()
    assert load_cfg(None, ["OUTPUT_DIR", "$NOT_SET"]).OUTPUT_DIR == "$NOT_SET"  # a folder of this name exists


@pytest.mark.parametrize("key", ["_BASE_", "_base_", "defaults", "BASE", "__base__", "includes"])
def test_a_base_config_is_refused_with_what_to_do(tmp_path, key):
    (tmp_path / "c.yaml").write_text(f"{key}: [../base.yaml]\nISON: {{DEPTH: 20}}\n")
    with pytest.raises(ConfigError, match=f"{key}.*copy the keys"):
        load_cfg(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["ISON.DEPTH=8"], "write ISON.DEPTH 8"),
        (["+ISON.DEPTH=8", "SOLVER.MAX_EPOCHS=1"], "write ISON.DEPTH 8"),
        (["OPTIM.MAX_EPOCH", 3], "SOLVER.MAX_EPOCHS"),
        (["MODEL.WEIGHTS", "a.pt"], "MODEL.INIT_FROM"),
        (["OUT_DIR", "a"], "OUTPUT_DIR"),
        (["DATA_LOADER.NUM_WORKERS", 3], "DATASET.NUM_WORKERS"),
        (["RNG_SEED", 3], "RUNTIME.SEED"),
    ],
)
def test_what_other_projects_write_is_refused_with_what_to_write(opts, words):
    with pytest.raises(ConfigError, match=words):
        load_cfg(None, opts)
