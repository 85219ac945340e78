"""Where runs are stored, and what --ckpt accepts."""

from __future__ import annotations

import pytest

from isonet import load_cfg
from isonet.errors import CheckpointError, ConfigError
from isonet.files.run_folder import find_checkpoint, run_folder


@pytest.fixture
def cfg(tmp_path):
    return load_cfg(None, ["OUTPUT_DIR", str(tmp_path / "out"), "DATASET.NAME", "CIFAR10"])


def test_a_run_is_stored_below_output_dir_and_data_set(cfg, tmp_path):
    assert run_folder(cfg, "cifar10_ISO110.pt").path == tmp_path / "out" / "CIFAR10" / "cifar10_ISO110.pt"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_an_output_is_one_name(cfg, name):
    with pytest.raises(ConfigError, match="--output"):
        run_folder(cfg, name)


def test_ckpt_is_a_file_a_folder_or_a_run_of_this_config(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_folder(cfg, "mine.pt")
    folder.path.mkdir(parents=True)
    folder.latest.touch()
    assert find_checkpoint(cfg, "mine.pt") == folder.latest  # the run has no best checkpoint yet
    folder.best.touch()
    assert find_checkpoint(cfg, "mine.pt") == folder.best
    assert find_checkpoint(cfg, str(folder.path)) == folder.best
    assert find_checkpoint(cfg, str(folder.latest)) == folder.latest
    (tmp_path / "mine.pt").touch()
    assert str(find_checkpoint(cfg, "mine.pt")) == "mine.pt"  # a file takes precedence over a run of the same name


def test_the_error_for_a_missing_ckpt_names_the_places_searched(cfg):
    with pytest.raises(CheckpointError, match=r"no checkpoint gone.pt: .* is at gone.pt nor at .*out/CIFAR10/gone.pt"):
        find_checkpoint(cfg, "gone.pt")


def test_the_error_for_a_missing_ckpt_names_what_is_near(cfg):
    folder = run_folder(cfg, "mine")
    folder.path.mkdir(parents=True)
    folder.best.touch()
    for wrong, right in ((folder.path.parent, folder.path), (f"{folder.path}s", folder.path),
                         (folder.path / "bets.pt", folder.best)):  # fmt: skip
        with pytest.raises(CheckpointError, match=f"did you mean {right}\\?"):
            find_checkpoint(None, str(wrong))


def test_clearing_a_run_removes_only_its_files(cfg):
    folder = run_folder(cfg, "a")
    folder.path.mkdir(parents=True)
    (folder.path / "flops.json").touch()
    assert not folder.holds_a_run()
    folder.metrics.touch()
    assert folder.holds_a_run()
    folder.clear()
    assert [file.name for file in folder.path.iterdir()] == ["flops.json"]
