"""Shards on disk: writing after a kill, indexing shards of any tool, and errors that name the damage."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import torch
import webdataset
import webdataset.writer
from PIL import Image
from sharded import command, epoch, loader, make_folder, png, write_tar

from conftest import REPO
from isonet.data import build
from isonet.data.formats import IMG_EXTENSIONS
from isonet.data.shards.index import read_index
from isonet.data.shards.source import open_shards
from isonet.errors import DataError, UserError, run_cli
from isonet.files.storage import FolderLock
from isonet.tools import shards as tool


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "mine")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder to damage, with the same times of its files."""
    return shutil.copytree(folder, tmp_path / "mine")


def contents(place):
    return {path.name: path.read_bytes() for path in place.iterdir()}


# Writing


def test_other_programs_can_read_and_check_shards(folder):
    """webdataset reads and writes the same shards, and sha256sum checks them."""
    urls = [str(path) for path in sorted((folder / "shards/val").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"][:9] for sample in samples] == [f"{i:09d}" for i in range(10)]
    files = sorted((folder / "val").rglob("*.v2.*"))
    for sample, file in zip(samples, files, strict=True):
        assert sample[file.suffix[1:].lower()] == file.read_bytes()
        assert int(sample["cls"]) == int(file.parts[-3][-1])
    again = io.BytesIO()
    writer = webdataset.writer.TarWriter(again, user="", group="", mtime=0, encoder=False)
    for sample in samples[:4]:
        writer.write({key: value for key, value in sample.items() if key == "__key__" or not key.startswith("_")})
    writer.close()
    assert again.getvalue() == (folder / "shards/val/000000.tar").read_bytes()
    for split in ("train", "val"):
        sums = (folder / "shards" / split / "SHA256SUMS").read_text()
        assert {line.split()[1] for line in sums.splitlines()} == set(os.listdir(folder / "shards" / split)) - {
            "SHA256SUMS"
        }
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder / "shards" / split, check=True)


def test_every_kind_of_image_is_written_and_indexed(tmp_path):
    for extension in (*IMG_EXTENSIONS, ".JPEG"):
        place = tmp_path / "kinds/val/a" / f"1{extension}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new({".pgm": "L", ".pbm": "1"}.get(extension, "RGB"), (8, 8), 99).save(place)
    command("write", tmp_path / "kinds")
    source = open_shards(tmp_path / "kinds/shards/val")
    assert len(source.labels) == len(IMG_EXTENSIONS) + 1
    assert all(source.read(number).size == (8, 8) for number in range(len(source.labels)))


def test_training_shards_are_shuffled_and_validation_is_sorted(folder):
    train, val = (open_shards(folder / "shards" / split).labels.tolist() for split in ("train", "val"))
    assert val == sorted(val)
    assert train != sorted(train)
    assert sorted(train) == [0] * 8 + [1] * 8 + [2] * 7


def killed_while_writing(words, when):
    """Run the command in a separate process, and kill it with SIGKILL when ``when`` returns true."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the parent's threads do not exist in this process
        try:
            command(*words)
        finally:
            os._exit(0)
    while not when():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("options", [pytest.param([], marks=pytest.mark.torture), ["--short-side", 40]], ids=str)
def test_writing_continues_after_a_kill_with_the_same_bytes(tmp_path, torture, options):
    for i in range(300):  # enough images that the process is killed before the end
        place = tmp_path / "many/train" / f"class {i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(png(i % 256))
    write = ["write", tmp_path / "many", "--split", "train", "--images-per-shard", 1, *options, "--output"]
    command(*write, tmp_path / "whole")
    whole = contents(tmp_path / "whole/train")
    for count in range(0, 280, 20) if torture else (0, 120):
        out = tmp_path / f"killed{count}"
        killed_while_writing([*write, out], lambda place=out / "train", count=count:
                             len(list(place.glob("*.tar"))) >= count and (place / "plan.json").exists())  # fmt: skip
        there = set(contents(out / "train"))
        assert "index.json" not in there
        assert len([name for name in there if name.endswith(".tar")]) < 300
        for unfinished in (lambda out=out: read_index(out / "train"), lambda out=out: command("index", out)):
            with pytest.raises(DataError, match=r"not complete.* write.*images a shard"):
                unfinished()
        whole_there = {path.name: path.stat().st_ino for path in (out / "train").glob("*.tar")}
        command(*write, out)
        assert contents(out / "train") == whole
        again = {name for name, inode in whole_there.items() if (out / "train" / name).stat().st_ino != inode}
        assert not again


def test_a_complete_set_is_not_rewritten_and_another_is_not_mixed_with_it(folder, tmp_path):
    write = ["write", folder, "--split", "val", "--output", tmp_path, "--images-per-shard"]

    def times():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "val").glob("*.tar")}

    command(*write, 4)
    before = times()
    command(*write, 4)
    assert before == times()
    with pytest.raises(DataError, match=r"options \(4 images .* now 3 images .*--overwrite"):
        command(*write, 3)
    command(*write, 3, "--overwrite")
    assert len(read_index(tmp_path / "val").shards) == 4
    (tmp_path / "val/000001.tar").unlink()
    good = (tmp_path / "val/000002.tar").read_bytes()
    (tmp_path / "val/000002.tar").write_bytes(good[:-1])
    command(*write, 3)
    with pytest.raises(UserError, match="1 files are damaged"):
        command("verify", tmp_path)
    (tmp_path / "val/000002.tar").unlink()
    command(*write, 3)
    command("verify", tmp_path)
    assert (tmp_path / "val/000002.tar").read_bytes() == good


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=str)
@pytest.mark.parametrize("name", ["index.json", "plan.json", "SHA256SUMS", "index.bin", "000000.tar", "n01440764.tar"])
def test_files_of_other_programs_are_never_replaced(folder, tmp_path, name, overwrite):
    write = ["write", folder, "--split", "val", "--output", tmp_path, "--images-per-shard", 4, *overwrite]
    for own in (False, True) if name.startswith("n") else (False,):
        if own:
            (tmp_path / "val" / name).unlink()
            command(*write)
        (tmp_path / "val").mkdir(exist_ok=True)
        (tmp_path / "val" / name).write_text("[1]")
        before = contents(tmp_path / "val")
        with pytest.raises(DataError, match=f"{name} was not written.*--output"):
            command(*write)
        assert contents(tmp_path / "val") == before


def test_indexing_replaces_no_index_of_another_program_and_keeps_other_checksums(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"0")])
    (tmp_path / "classes.txt").write_text("owl\n")
    (tmp_path / "SHA256SUMS").write_text("0123  classes.txt\n4567  gone.txt\n")
    (tmp_path / "index.json").write_text('{"wids_version": 1, "shardlist": []}')
    with pytest.raises(DataError, match=r"index.json was written by another program"):
        command("index", tmp_path)
    assert json.loads((tmp_path / "index.json").read_text()) == {"wids_version": 1, "shardlist": []}
    (tmp_path / "index.json").unlink()
    command("index", tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert sorted(line.split()[1] for line in lines) == ["a.tar", "classes.txt", "index.bin", "index.json"]
    assert "0123  classes.txt" in lines


def test_a_changed_folder_is_not_mixed_with_what_was_written(copy):
    command("write", copy, "--split", "val", "--images-per-shard", 4)  # the same files with the same times
    next((copy / "val").rglob("*.png")).touch()
    with pytest.raises(DataError, match=r"other images \(by name, size or time\)"):
        command("write", copy, "--split", "val", "--images-per-shard", 4)


def test_two_cannot_write_at_once(folder, tmp_path):
    (tmp_path / "val").mkdir()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with FolderLock(tmp_path / "val"):
            os.write(write, b"x")
            signal.pause()
    try:
        os.read(read, 1)
        for words in (["write", folder, "--split", "val", "--output", tmp_path], ["index", tmp_path]):
            with pytest.raises(UserError, match="in use by"):
                command(*words)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# Shards of other tools


@pytest.fixture
def foreign(tmp_path):
    """Two tar files as hubs publish them: with labels in .cls or .json, folders, other members and links."""
    link = tarfile.TarInfo("sub/9.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    train = tmp_path / "hub/shards/train"
    write_tar(train / "imagenet-train-0000.tar", [
        ("__meta__/x.png", png(99)), ("sub/1.png", png(1)), ("sub/1.cls", b"2\n"), ("sub/1.seg.txt", b"-"),
        ("sub/2.json", b'{"label": 0, "cls": 7}'), ("sub/2.PNG", png(2)), link, ("sub/3.cls", b"1"),
        ("sub/3.png", png(3)),
    ])  # fmt: skip
    write_tar(train / "imagenet-train-0001.tar", [
        ("4.webp", png(4)), ("4.json", b'{"cls": 1}'), ("a/very/long" * 12 + "/5.png", png(5)),
        ("a/very/long" * 12 + "/5.cls", b"0"),
    ], format=tarfile.PAX_FORMAT)  # fmt: skip
    return tmp_path / "hub"


def samples_of_webdataset(place):
    """Return the pixels' bytes and the label of each sample, as webdataset reads them."""
    samples = webdataset.WebDataset([str(p) for p in sorted(place.glob("*.tar"))], shardshuffle=False)
    for sample in samples:
        (image,) = [sample[key] for key in ("jpg", "jpeg", "png", "webp") if key in sample]
        fields = json.loads(sample.get("json", b"{}"))
        yield image, int(sample.get("cls", fields.get("label", fields.get("cls"))))


def test_tars_of_other_tools_are_indexed_and_read_as_webdataset_reads_them(foreign, capsys):
    place = foreign / "shards/train"
    command("index", foreign)
    assert "5 images of 3 classes in 2 shards" in capsys.readouterr().out
    source = open_shards(place)
    ours = [(source.encoded(number)[0], label) for number, label in enumerate(source.labels.tolist())]
    assert ours == list(samples_of_webdataset(place)) == [(png(i), label) for i, label in enumerate([2, 0, 1, 1, 0], 1)]
    assert source.classes == ["0", "1", "2"]
    images = {round(float(x.mean()) * 255) for x, _, _ in epoch(loader(foreign, **{
        "DATASET.MEAN": [0.0] * 3, "DATASET.STD": [1.0] * 3, "SOLVER.TRAIN_BATCH_SIZE": 1}))}  # fmt: skip
    assert images == {1, 2, 3, 4, 5}
    command("verify", foreign)
    assert "5 images" in capsys.readouterr().out


def test_classes_of_other_tools_have_names_if_a_file_lists_them(foreign, tmp_path):
    place, names = foreign / "shards/train", tmp_path / "names.txt"
    names.write_text("crane\nowl\nswan\nwren\n")
    command("index", place, "--classes", names)
    assert read_index(place).classes == ["crane", "owl", "swan", "wren"]
    command("index", place)  # keeps the names
    assert read_index(place).classes[1] == "owl"
    (place / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match="damaged"):
        command("verify", place)
    command("index", place)
    assert read_index(place).classes == ["a", "b", "c"]
    for text, words in (("a\nb\n", "label 2.*2 classes"), ("a\nb\na\n", "line 3"), ("a\n\nb\n", "line 2")):
        names.write_text(text)
        with pytest.raises(DataError, match=words):
            command("index", place, "--classes", names)


def test_odd_samples_are_counted_with_an_example(tmp_path, caplog, capsys):
    hard_link = tarfile.TarInfo("again.png")  # tar stores the second name of a file as a link
    hard_link.type, hard_link.linkname = tarfile.LNKTYPE, "good.png"
    write_tar(tmp_path / "odd.tar", [
        ("photo.v1.png", png(1)), ("photo.v1.cls", b"0"), ("photo.v2.png", png(2)), ("photo.v2.cls", b"1"),
        ("alone.cls", b"1"), ("text.json", b'{"label": "dog"}'), ("text.png", png(3)), ("bare.png", png(4)),
        ("good.png", png(5)), ("good.cls", b"1"), ("none", b""), hard_link, ("._good.png", b"of macOS"),
    ])  # fmt: skip
    command("index", tmp_path)
    source = open_shards(tmp_path)
    assert [(source.encoded(i)[0], label) for i, label in enumerate(source.labels)] == [(png(1), 0), (png(5), 1)]
    (photo,) = [m for m in caplog.messages if "photo" in m.rpartition("e.g.")[2]]
    assert "1 samples" in photo
    assert "v1.png, v2.png" in photo
    (ignored,) = [m for m in caplog.messages if "alone in odd.tar" in m]
    assert "3 samples" in ignored
    (no_file,) = [m for m in caplog.messages if "none in odd.tar" in m]
    assert "2 samples" in no_file
    first = next(iter(webdataset.WebDataset([str(tmp_path / "odd.tar")], shardshuffle=False)))
    assert sorted(key for key in first if key[0] != "_") == ["v1.cls", "v1.png", "v2.cls", "v2.png"]


def unusable(name, words, *members):
    return pytest.param(name, members, words, id=words)


@pytest.mark.parametrize(("name", "members", "words"), [
    unusable("a.tar", "no sample", ("1.txt", b"")),
    unusable("a.tar", "two members 1.png", ("1.png", png(1)), ("1.PNG", png(1)), ("1.cls", b"0")),
    unusable("a.tar.gz", "no shards.*gunzip", ("1.png", png(1)), ("1.cls", b"0")),
])  # fmt: skip
def test_a_folder_that_cannot_be_indexed_is_refused(tmp_path, name, members, words):
    write_tar(tmp_path / name, members)
    with pytest.raises(DataError, match=words):
        command("index", tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_a_compressed_tar_without_its_extension_and_a_file_that_is_not_a_tar_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(DataError, match=r"a.tar: cannot be read as a tar.*compressed"):
        command("index", tmp_path)
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match=r"a.tar: cannot be read as a tar"):
        command("index", tmp_path)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DataError, match="no shards"):
        command("index", tmp_path)


def as_the_former_version_left_it(place):
    """Write the index of the former version, which has classes and checksums but no offsets."""
    head = json.loads((place / "index.json").read_text())
    sums = dict(reversed(line.split()) for line in (place / "SHA256SUMS").read_text().splitlines())
    shards = [{**shard, "sha256": sums[shard["name"]]} for shard in head["shards"]]
    (place / "index.json").write_text(json.dumps({**head, "format": "isonet shards 1", "shards": shards}))
    (place / "index.bin").unlink()
    (place / "SHA256SUMS").write_text("".join(f"{sums[s['name']]}  {s['name']}\n" for s in shards))


@pytest.mark.parametrize("way", ["index", "write"])
def test_shards_of_the_former_version_receive_a_new_index(copy, way):
    place = copy / "shards/val"
    whole = contents(place)
    as_the_former_version_left_it(place)
    for use in (lambda: loader(copy, "val"), lambda: command("verify", copy)):
        with pytest.raises(DataError, match=r"isonet shards 1.*isonet.tools.shards index"):
            use()
    command("index", place) if way == "index" else command("write", copy, "--split", "val", "--images-per-shard", 4)
    assert contents(place) == whole


# Damage


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def empty(path):
    path.write_bytes(b"")


def gone(path):
    path.unlink()


def noise(path):
    path.write_bytes(os.urandom(path.stat().st_size))


def bad_header(path):
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        at = archive.getmembers()[5].offset
    data[at + 148 : at + 156] = b"0000000\0"  # the checksum of the header
    path.write_bytes(data)


def swapped(path):
    path.write_bytes((path.parent / "000002.tar").read_bytes())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [cut, empty, gone, noise, bad_header, swapped])
def test_a_damaged_shard_stops_a_run_even_where_bad_images_are_skipped(copy, damage, workers, capsys, monkeypatch):
    monkeypatch.setattr(build, "usable_cores", lambda: 2)
    batches = loader(copy, "val", **{"DATASET.ON_ERROR": "skip", "DATASET.NUM_WORKERS": workers})
    damage(copy / "shards/val/000001.tar")
    with pytest.raises(DataError, match=r"000001.tar: cannot be read.*verify"):
        epoch(batches)
    if workers:
        return
    with pytest.raises(UserError, match=r"1 files are damaged"):
        command("verify", copy / "shards")
    assert "000001.tar" in capsys.readouterr().out


def relabelled(place):
    """Change a label in a tar, so that it differs from the index, and update the checksum of the tar."""
    path = place / "000001.tar"
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        member = archive.getmembers()[0]
    path.write_bytes(data[: member.offset_data] + b"2" + data[member.offset_data + 1 :])
    resum(place)


def moved(place):
    """Change an offset in the index, so that it differs from the tar, and update the checksum of the index."""
    data = bytearray((place / "index.bin").read_bytes())
    data[1] ^= 2
    (place / "index.bin").write_bytes(data)
    resum(place)


def resum(place):
    names = ["index.bin", "index.json", *(path.name for path in place.glob("*.tar"))]
    done = subprocess.run(["sha256sum", *names], cwd=place, capture_output=True, check=True)
    (place / "SHA256SUMS").write_bytes(done.stdout)


def flipped_index(place):
    text = (place / "index.json").read_text()
    (place / "index.json").write_text(text.replace("class 1", "klass 1"))


def extra(place):
    shutil.copy(place / "000000.tar", place / "000009.tar")


@pytest.mark.parametrize("damage", [relabelled, moved, flipped_index, extra])
def test_verify_compares_the_index_with_the_tars(copy, damage, capsys):
    command("verify", copy)
    damage(copy / "shards/val")
    with pytest.raises(UserError, match="1 files are damaged"):
        command("verify", copy)
    assert "damaged: " in capsys.readouterr().out


def test_a_bad_image_in_a_shard_is_named_and_can_be_skipped(copy):
    bad = next((copy / "val/class 1").rglob("*.JPEG"))
    bad.write_bytes(bad.read_bytes()[:700])
    command("write", copy, "--split", "val", "--overwrite", "--images-per-shard", 4)
    name = rf"0000\d+.tar/\d{{9}}-class_1_deep_{bad.name.split('.')[0]}_v2.jpeg"
    with pytest.raises(DataError, match=name):
        epoch(loader(copy, "val"))
    batches = loader(copy, "val", **{"DATASET.ON_ERROR": "skip"})
    assert sum(len(y) for _, y, _ in epoch(batches)) == 9
    assert len(batches.skipped) == 1


def head(**changes):
    return json.dumps({"format": "isonet shards 2", "source": "", "options": "", "classes": ["a"],
                       "shards": [{"name": "0.tar", "images": 1, "bytes": 2048}], **changes}).encode()  # fmt: skip


def shard(**changes):
    return head(shards=[{"name": "0.tar", "images": 1, "bytes": 2048, **changes}])


ROW = (512).to_bytes(8, "little") + (7).to_bytes(4, "little") + bytes(4)
INDEXES = [
    (b"", ROW), (b"{}", ROW), (b"[]", ROW), (b"null", ROW), (b"\xff", ROW), (b"[", ROW), (head(format="x"), ROW),
    (head(shards=[]), b""), (head(classes=[1]), ROW), (head(classes=["a", "a"]), ROW), (head(classes=[]), ROW),
    (shard(name="../../etc/0.tar"), ROW), (shard(name="/0.tar"), ROW), (shard(name=".0.tar"), ROW),
    (shard(images=-1), ROW), (shard(images=True), ROW), (shard(images=2), ROW), (shard(bytes=518), ROW),
    (head(), b""), (head(), ROW[:-1]), (head(), ROW * 2), (head(), b"\xff\1" + ROW[2:]), (head(), bytes(16)),
    (head(), b"\xff" * 8 + ROW[8:]), (head(), ROW[:12] + b"\1\0\0\0"), (head(), ROW[:8] + b"\xff" * 4 + bytes(4)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "rows"), INDEXES, ids=range(len(INDEXES)))
def test_an_inconsistent_index_is_refused(tmp_path, text, rows):
    (tmp_path / "index.json").write_bytes(head())
    (tmp_path / "index.bin").write_bytes(ROW)
    assert len(read_index(tmp_path).rows) == 1
    (tmp_path / "index.json").write_bytes(text)
    (tmp_path / "index.bin").write_bytes(rows)
    with pytest.raises(DataError, match="is not an index of shards") as error:
        read_index(tmp_path)
    assert str(error.value).isprintable()


def test_missing_files_are_named_with_the_command_that_creates_them(folder, tmp_path):
    with pytest.raises(DataError, match=r"no shards.*isonet.tools.shards write"):
        loader(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/shards").symlink_to(folder / "shards")
    with pytest.raises(DataError, match=r"no such folder.* RUNTIME.INPUT shards"):
        loader(tmp_path / "mine", **{"RUNTIME.INPUT": "auto"})
    write_tar(tmp_path / "others/shards/train/0.tar", [("1.png", png(1)), ("1.cls", b"0")])
    with pytest.raises(DataError, match=r"no index.*isonet.tools.shards index"):
        loader(tmp_path / "others")


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    for args, word in (
        (["write", tmp_path / "nothing"], "train/"),
        (["write", folder, "--images-per-shard", 0], "--images-per-shard"),
        (["write", folder, "--short-side", 0], "--short-side"),
        (["write", folder, "--short-side", 40, "--quality", 101], "--quality"),
        (["write", folder, "--quality", 80], "--short-side"),
        (["verify", tmp_path / "nothing"], "no shards"),
        (["index", tmp_path / "nothing"], "nothing"),
        (["index", folder / "shards", "--classes", tmp_path / "nothing"], "nothing"),
        (["wrong"], "invalid choice"),
    ):
        try:
            code = run_cli(tool.main, tool.parse_args([*map(str, args)]))
        except SystemExit as ended:
            code = ended.code
        message = capsys.readouterr().err
        assert code == 2
        assert message.startswith("error: ")
        assert word in message
        assert message.count("\n") == 1


def test_help_and_a_wrong_option_import_nothing_of_the_data():
    """Imports of ``isonet.tools.cli`` do not count."""
    script = (
        "import sys, isonet.tools.cli; before = set(sys.modules); import isonet.tools.shards as tool\n"
        "for words in (['--help'], ['index', '--wrong']):\n"
        "  try: tool.parse_args(words)\n"
        "  except SystemExit as end: print(end.code, *(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    for line, code in zip([done.stdout.splitlines()[-2], done.stdout.splitlines()[-1]], "02", strict=True):
        first, *new = line.split()
        assert first == code
        assert "isonet.tools.shards" in new
        assert not [name for name in new if name.split(".")[0] in ("torch", "numpy", "PIL", "tqdm") or "data" in name]
