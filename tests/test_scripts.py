"""The three scripts as a user runs them: the README's commands in order, and mistakes."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from dataclasses import dataclass

import pytest
from PIL import Image

from conftest import REFERENCE, REPO, SHARED_DATA, TINY, run_script
from isonet.errors import run_cli

DIGITS = REPO / "configs/digits_ISO20.yaml"
QUICK = TINY[4:]  # depth 8, one epoch


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``run(script, *args)`` runs a script from an empty folder in this process, which saves the import of torch."""
    monkeypatch.chdir(tmp_path)

    def _run(script, *args):
        monkeypatch.setattr("sys.argv", [str(REPO / script)])
        module = runpy.run_path(str(REPO / script), run_name="script")
        try:
            code = run_cli(module["main"], module["parse_args"]([str(arg) for arg in args]))
        except SystemExit as end:
            code = end.code
        return Done(code, *capsys.readouterr())

    return _run


def test_train_resume_test_and_flops_on_digits(tmp_path, run):
    trained = run_script("train.py", "--cfg", DIGITS, "--gpus", "1,2", "--output", "mine.pt", *QUICK, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "outputs/cls/digits/mine.pt"
    for warnings, text in ((trained.stderr, trained.stdout), [(folder / "log.txt").read_text()] * 2):
        assert warnings.count("--gpus 1,2") == 1  # there is no GPU
        assert "outputs/cls/digits/mine.pt" in text
    assert "\r" not in trained.stdout + trained.stderr  # no progress bar if the output is a file

    again = run("train.py", "--cfg", DIGITS, "--output", "mine.pt", *QUICK)
    assert_one_message(again.returncode, again.stderr, ["--resume", "--overwrite"])

    more = ["--resume", *QUICK[:-1], 2]  # an override directly after --resume
    resumed = run("train.py", "--cfg", DIGITS, "--output", "mine.pt", *more)
    assert resumed.returncode == 0, resumed.stderr
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [row["epoch"] for row in rows] == [1, 2]

    by_name = run_script("test.py", "--cfg", DIGITS, "--ckpt", "mine.pt", "--json", "r.json", *QUICK, cwd=tmp_path)
    assert by_name.returncode == 0, by_name.stderr
    figures = json.loads((tmp_path / "r.json").read_text())
    assert set(figures) == {"top1", "top5", "loss", "images", "images_per_second", "labels"}
    assert figures["images"] == 360
    best = max(rows, key=lambda row: row["top1"])
    assert figures["top1"] == pytest.approx(best["top1"])
    assert figures["loss"] == pytest.approx(best["val_loss"], rel=1e-5)
    assert by_name.stdout.rstrip().endswith("outputs/cls/digits/mine.pt/best.pt")

    without_cfg = run("test.py", "--ckpt", folder)
    assert without_cfg.returncode == 0, without_cfg.stderr
    assert f"top-1 {best['top1']:.2f} %" in without_cfg.stdout

    counted = run("flopscount_iso.py", "--cfg", DIGITS, "--gpus", "0,1", "--output", "mine.pt")
    assert counted.returncode == 0, counted.stderr
    flops = json.loads((folder / "flops.json").read_text())
    assert {"params", "macs", "flops", "penalty_macs", "stages"} <= set(flops)
    assert (folder / "flops.txt").read_text() in counted.stdout
    assert (folder / "latest.pt").exists()


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the images in ../shared/data are not here")
def test_a_folder_of_real_images_through_self_iso29(tmp_path, run):
    """The commands of the README train and evaluate on a few real CIFAR-10 images per class."""
    import tarfile

    wanted = {f"{i:04d}.jpg" for i in range(20)}
    with tarfile.open(SHARED_DATA / "cifar10-jpg.tar.xz") as archive:
        for member in archive:
            if member.isfile() and member.name.rsplit("/", 1)[1] in wanted:
                archive.extract(member, tmp_path / "data", filter="data")
    (tmp_path / "data" / "cifar10-jpg").rename(tmp_path / "data" / "self")
    cfg = REPO / "configs/self_ISO29.yaml"
    trained = run("train.py", "--cfg", cfg, "--output", "a", "SOLVER.MAX_EPOCHS", 1)
    assert trained.returncode == 0, trained.stderr
    tested = run("test.py", "--cfg", cfg, "--ckpt", "a")
    assert tested.returncode == 0, tested.stderr
    assert "200 images" in tested.stdout


def test_a_published_checkpoint_on_a_folder_of_images(tmp_path, run):
    for name in ("a", "b"):
        (tmp_path / "data/self/val" / name).mkdir(parents=True)
        Image.effect_noise((40, 40), 50).save(tmp_path / "data/self/val" / name / "1.png")
    shutil.copy(REFERENCE / "cifar10_ISO20.pt", tmp_path / "ISO20.pt")
    opts = ["ISON.DEPTH", 20, "ISON.TRANS_FUN", "basic_transform"]
    tested = run("test.py", "--cfg", REPO / "configs/self_ISO29.yaml", "--ckpt", "ISO20.pt", *opts)
    assert tested.returncode == 0, tested.stderr
    assert "warning: data/self/val: 2 classes" in tested.stderr  # the network has 10
    assert "2 images" in tested.stdout


@pytest.mark.parametrize(
    ("script", "args", "words"),
    [
        ("train.py", ["--cfg", "gone.yaml"], ["gone.yaml"]),
        ("train.py", ["--cfg", DIGITS, "SOLVER.BASE_RL", "1"], ["SOLVER.BASE_RL", "SOLVER.BASE_LR?"]),
        ("train.py", ["--cfg", DIGITS, "SOLVER.BASE_LR", "-1e-3"], ["SOLVER.BASE_LR", "between 0"]),
        ("train.py", ["--cfg", DIGITS, "--gpus", "first"], ["--gpus", "'first'"]),
        ("train.py", ["--cfg", DIGITS, "--gpus", "1,1"], ["--gpus", "distinct"]),
        ("train.py", ["--cfg", REPO / "configs/cifar10_ISO110.yaml"], ["CIFAR10", "DATASET.DOWNLOAD True"]),
        ("train.py", ["--cfg", REPO / "configs/self_ISO29.yaml"], ["data/self/train", "<class>", "DATASET.ROOT"]),
        ("test.py", ["--ckpt", "gone.pt"], ["gone.pt"]),
        ("test.py", ["--ckpt", "zoo:IN1k-ISO19"], ["zoo:IN1k-ISO18?"]),
        ("test.py", ["--ckpt", REFERENCE / "cifar10_ISO20.pt", "ISON.DROPOUT"], ["ISON.DROPOUT", "no value"]),
        ("test.py", ["--ckpt", REFERENCE / "cifar10_ISO20.pt"], ["config", "--cfg"]),
        (
            "test.py",
            ["--cfg", DIGITS, "--ckpt", REFERENCE / "cifar10_RISO20.pt"],
            ["unexpected", "ISON.HAS_ST True in"],
        ),
        ("test.py", ["--ckpt", "RISO18.pt"], ["zoo:IN1k-RISO18 ", "MODEL_ZOO.md"]),
        ("test.py", ["--weights", "a.pt"], ["--ckpt CKPT"]),
        ("test.py", ["--ckpt", "a", "--device", "cpu"], ["--gpus IDS"]),
        ("train.py", ["--config", DIGITS], ["--cfg FILE"]),
        ("train.py", ["--cfg", DIGITS, "--opts", "ISON.DEPTH", "8"], ["KEY VALUE"]),
        ("train.py", ["--cfg", DIGITS, "--lr", "0.1"], ["SOLVER.BASE_LR"]),
        ("train.py", ["--cfg", DIGITS, "--SOLVER.BASE_LR", "0.1"], ["write SOLVER.BASE_LR"]),
        ("train.py", ["--cfg", DIGITS, "--no-cuda"], ["CUDA_VISIBLE_DEVICES"]),
        ("train.py", ["--cfg", DIGITS, "-b", "64"], ["SOLVER.TRAIN_BATCH_SIZE"]),
        ("train.py", ["--cfg", DIGITS, "--num_classes=3"], ["DATASET.NUM_CLASSES"]),
        ("train.py", ["--cfg", DIGITS, "--pretrained", "a.pt"], ["MODEL.INIT_FROM"]),
        ("train.py", ["--cfg", DIGITS, "--gpus", "0", "--gpus", "1"], ["--gpus", "twice"]),
        ("train.py", ["--cfg", DIGITS, "--gpus", "0", "1", "ISON.DEPTH", "8"], ["'1' is not a key"]),
        ("train.py", ["--cfg", DIGITS, "SOLVER.IMS_PER_BATCH", "8"], ["SOLVER.TRAIN_BATCH_SIZE?"]),
        ("flopscount_iso.py", ["--cfg", DIGITS, "ISON.DEPTH", "9"], ["ISON.DEPTH", "6n+2"]),
        ("train.py", [], ["--cfg", "train.py --help"]),
        ("train.py", ["--cfg", DIGITS, "--overwite"], ["--overwite", "--overwrite?"]),
        ("train.py", ["--cfg", DIGITS, "--resume", "--overwrite"], ["--resume", "--overwrite"]),
        ("train.py", ["--cfg", DIGITS, "--output", ""], ["--output"]),
        ("train.py", ["--cfg", DIGITS, "--output", "x" * 300], ["--output"]),
        ("train.py", ["--cfg", DIGITS, "--resume", "y" * 5000], ["--resume"]),
        ("train.py", ["--cfg", DIGITS, "ISON.DEPTH=8"], ["without ="]),
        ("train.py", ["--cfg", DIGITS, "MODEL.INIT_FROM", "gone.pt"], ["gone.pt"]),
        ("test.py", ["--ckpt", "mine"], ["mine", "--cfg"]),
        ("test.py", ["--ckpt", "x.pt", "--json", "gone/x.json"], ["--json gone/x.json", "folder"]),
    ],
)
def test_a_mistake_gives_one_message_and_exit_code_2(tmp_path, script, args, words, run):
    done = run(script, *args)
    assert_one_message(done.returncode, done.stderr, words)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("script", ["train.py", "test.py", "flopscount_iso.py"])
def test_a_mistake_in_a_shell_gives_one_message(tmp_path, script):
    more = ["--ckpt", "a.pt"] if script == "test.py" else []
    result = run_script(script, "--cfg", "gone.yaml", *more, cwd=tmp_path)
    assert_one_message(result.returncode, result.stderr, ["gone.yaml"])


def assert_one_message(code, message, words):
    assert code == 2
    (line,) = message.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


def test_overrides_of_a_checkpoint_may_contradict_the_defaults(run):
    """Padding requires small images. The default images are large, but the checkpoint's config is not known yet."""
    done = run("test.py", "--ckpt", REFERENCE / "cifar10_ISO20.pt", "DATASET.PADDING", 2, "ISON.DEPTH", 20)
    assert_one_message(done.returncode, done.stderr, ["config", "--cfg"])


def test_resume_before_overrides_leaves_them_in_their_order():
    import train

    args = train.parse_args(
        ["--cfg", "a", "SOLVER.MAX_EPOCHS", "3", "--resume", "SOLVER.BASE_LR", "-1e-3", "--output", "b"]
    )
    assert args.opts == ["SOLVER.MAX_EPOCHS", "3", "SOLVER.BASE_LR", " -1e-3"]
    assert (args.resume, args.output) == ("", "b")
    assert train.parse_args(["--cfg", "a", "--resume", "some.pt", "ISON.DEPTH", "8"]).resume == "some.pt"


def test_debug_shows_the_traceback(run):
    done = run("flopscount_iso.py", "--cfg", "gone.yaml", "--debug")
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert done.returncode == 2


@pytest.mark.parametrize("script", ["train.py", "test.py", "flopscount_iso.py"])
def test_help_explains_every_option_with_an_example(script, run):
    described, examples = run(script, "--help").stdout.split("examples:")
    assert f"python {script} --cfg" in examples
    positional, options = described.split("positional arguments:")[1].split("options:")
    entries = [positional, *re.split(r"\n  (?=-)", options)[1:]]
    assert {"--cfg", "--gpus", "--debug"} <= {entry.split()[0] for entry in entries}
    for entry in entries:
        assert "e.g." in entry or entry.startswith("-h, --help"), entry
