"""The three scripts as a user runs them: the README's commands one after the other, and mistakes."""

from __future__ import annotations

import gc
import json
import re
import runpy
import shutil

import pytest
from PIL import Image

from conftest import REFERENCE, REPO, SHARED_DATA, TINY, run_script
from isonet.errors import run_cli

DIGITS = REPO / "configs/digits_ISO20.yaml"
QUICK = TINY[4:]  # depth 8, one epoch


def test_train_resume_test_and_flops_on_digits(tmp_path):
    trained = run_script("train.py", "--cfg", DIGITS, "--gpus", "1,2", "--output", "mine.pt", *QUICK, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    warning = "no CUDA device is visible: --gpus 1,2 is ignored"
    folder = tmp_path / "outputs/cls/digits/mine.pt"
    assert warning in trained.stdout
    assert warning in (folder / "log.txt").read_text()
    assert "run in outputs/cls/digits/mine.pt" in trained.stdout
    assert "\r" not in trained.stdout + trained.stderr  # no bar where the output is a file

    again = run_script("train.py", "--cfg", DIGITS, "--output", "mine.pt", *QUICK, cwd=tmp_path)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr

    more = ["--resume", *QUICK[:-1], 2]  # an override right behind --resume
    resumed = run_script("train.py", "--cfg", DIGITS, "--output", "mine.pt", *more, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [row["epoch"] for row in rows] == [1, 2]

    by_name = run_script("test.py", "--cfg", DIGITS, "--ckpt", "mine.pt", "--json", "r.json", *QUICK, cwd=tmp_path)
    assert by_name.returncode == 0, by_name.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found) == {"top1", "top5", "loss", "images", "images_per_second"}
    assert found["images"] == 360
    best = max(rows, key=lambda row: row["top1"])
    assert found["top1"] == pytest.approx(best["top1"])
    assert found["loss"] == pytest.approx(best["val_loss"], rel=1e-5)
    assert by_name.stdout.rstrip().endswith("outputs/cls/digits/mine.pt/best.pt")

    without_cfg = run_script("test.py", "--ckpt", folder, cwd=tmp_path)
    assert without_cfg.returncode == 0, without_cfg.stderr
    assert f"top-1 {best['top1']:.2f} %" in without_cfg.stdout

    counted = run_script("flopscount_iso.py", "--cfg", DIGITS, "--gpus", "0,1", "--output", "mine.pt", cwd=tmp_path)
    assert counted.returncode == 0, counted.stderr
    flops = json.loads((folder / "flops.json").read_text())
    assert {"params", "macs", "flops", "penalty_macs", "stages"} <= set(flops)
    assert (folder / "latest.pt").exists()


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the images in ../shared/data are not here")
def test_a_folder_of_real_images_through_self_iso29(tmp_path):
    """A few real CIFAR-10 pictures per class, trained and evaluated by the commands of the README."""
    import tarfile

    wanted = {f"{i:04d}.jpg" for i in range(20)}
    with tarfile.open(SHARED_DATA / "cifar10-jpg.tar.xz") as archive:
        for member in archive:
            if member.isfile() and member.name.rsplit("/", 1)[1] in wanted:
                archive.extract(member, tmp_path / "data", filter="data")
    (tmp_path / "data" / "cifar10-jpg").rename(tmp_path / "data" / "self")
    cfg = REPO / "configs/self_ISO29.yaml"
    trained = run_script("train.py", "--cfg", cfg, "--output", "a", "SOLVER.MAX_EPOCHS", 1, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    tested = run_script("test.py", "--cfg", cfg, "--ckpt", "a", cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert "200 images" in tested.stdout


def test_a_published_checkpoint_on_a_folder_of_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data/self/val" / name).mkdir(parents=True)
        Image.effect_noise((40, 40), 50).save(tmp_path / "data/self/val" / name / "1.png")
    shutil.copy(REFERENCE / "cifar10_ISO20.pt", tmp_path / "ISO20.pt")
    opts = ["ISON.DEPTH", 20, "ISON.TRANS_FUN", "basic_transform"]
    tested = run_script("test.py", "--cfg", REPO / "configs/self_ISO29.yaml", "--ckpt", "ISO20.pt", *opts, cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert "2 classes for a network of 10" in tested.stdout
    assert "2 images" in tested.stdout


@pytest.mark.parametrize(
    ("script", "args", "words"),
    [
        ("train.py", ["--cfg", "gone.yaml"], ["gone.yaml: no such config file"]),
        ("train.py", ["--cfg", DIGITS, "SOLVER.BASE_RL", "1"], ["did you mean SOLVER.BASE_LR"]),
        ("train.py", ["--cfg", DIGITS, "--gpus", "first"], ["--gpus takes ids"]),
        ("train.py", ["--cfg", REPO / "configs/cifar10_ISO110.yaml"], ["CIFAR10 is missing", "DATASET.DOWNLOAD True"]),
        ("test.py", ["--ckpt", "gone.pt"], ["no checkpoint gone.pt"]),
        ("test.py", ["--ckpt", REFERENCE / "cifar10_ISO20.pt", "ISON.DROPOUT"], ["has no value"]),
        ("test.py", ["--ckpt", REFERENCE / "cifar10_ISO20.pt"], ["carries no config", "--cfg"]),
        ("test.py", ["--cfg", DIGITS, "--ckpt", REFERENCE / "cifar10_RISO20.pt"], ["another network", "unexpected"]),
        ("flopscount_iso.py", ["--cfg", DIGITS, "ISON.DEPTH", "9"], ["6n+2"]),
        ("train.py", [], ["required: --cfg", "train.py --help"]),
        (
            "train.py",
            ["--cfg", DIGITS, "--overwite"],
            ["--overwite; did you mean --overwrite?"],
        ),
        ("train.py", ["--cfg", DIGITS, "SOLVER.BASE_LR", "-1e-3"], ["SOLVER.BASE_LR must be between 0"]),
        ("train.py", ["--cfg", DIGITS, "--output", ""], ["--output names one folder"]),
        ("train.py", ["--cfg", DIGITS, "--output", "x" * 300], ["--output names one folder"]),
        ("train.py", ["--cfg", DIGITS, "--resume", "y" * 5000], ["--resume", "cannot be looked for"]),
        ("train.py", ["--cfg", DIGITS, "ISON.DEPTH=8"], ["without ="]),
        ("test.py", ["--ckpt", "mine"], ["the name of a run takes --cfg"]),
        ("test.py", ["--ckpt", "x.pt", "--json", "gone/x.json"], ["--json gone/x.json: there is no such folder"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(tmp_path, script, args, words, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(REPO / script)])
    before = gc.isenabled()
    main = runpy.run_path(str(REPO / script), run_name="script")  # a process of its own takes four seconds
    gc.enable() if before else gc.disable()
    try:
        code = run_cli(main["main"], main["parse_args"]([str(arg) for arg in args]))
    except SystemExit as ended:
        code = ended.code
    assert_one_message(code, capsys.readouterr().err, words)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("script", ["train.py", "test.py", "flopscount_iso.py"])
def test_a_mistake_is_one_message_from_a_shell_too(tmp_path, script):
    more = ["--ckpt", "a.pt"] if script == "test.py" else []
    result = run_script(script, "--cfg", "gone.yaml", *more, cwd=tmp_path)
    assert_one_message(result.returncode, result.stderr, ["gone.yaml: no such config file"])


def assert_one_message(code, told, words):
    assert code == 2
    (line,) = told.splitlines()
    assert line.startswith("error: ")
    assert all(word in told for word in words), told


def test_resume_before_overrides_leaves_them_in_their_order():
    import train

    args = train.parse_args(
        ["--cfg", "a", "SOLVER.MAX_EPOCHS", "3", "--resume", "SOLVER.BASE_LR", "-1e-3", "--output", "b"]
    )
    assert args.opts == ["SOLVER.MAX_EPOCHS", "3", "SOLVER.BASE_LR", " -1e-3"]
    assert (args.resume, args.output) == ("", "b")
    assert train.parse_args(["--cfg", "a", "--resume", "some.pt", "ISON.DEPTH", "8"]).resume == "some.pt"


def test_debug_shows_the_traceback(tmp_path):
    result = run_script("flopscount_iso.py", "--cfg", "gone.yaml", "--debug", cwd=tmp_path)
    assert "Traceback" in result.stderr
    assert result.returncode == 2


@pytest.mark.parametrize("script", ["train.py", "test.py", "flopscount_iso.py"])
def test_help_explains_every_option_with_an_example(script):
    described, examples = run_script(script, "--help", cwd=REPO).stdout.split("examples:")
    assert f"python {script} --cfg" in examples
    positional, options = described.split("positional arguments:")[1].split("options:")
    entries = [positional, *re.split(r"\n  (?=-)", options)[1:]]
    assert {"--cfg", "--gpus", "--debug"} <= {entry.split()[0] for entry in entries}
    for entry in entries:
        assert "e.g." in entry or entry.startswith("-h, --help"), entry
