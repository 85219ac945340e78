"""Shards: every image once; the same after a stop; the folder's pixels; writing that is killed; damage that is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from itertools import groupby, pairwise, product

import pytest
import torch
import webdataset
from PIL import Image

from conftest import REPO, SHARED_DATA, assert_same
from isonet import load_cfg
from isonet.data import build, build_loader
from isonet.data.shards.index import read_index
from isonet.data.shards.order import ShardOrder, drawn_from_buffer
from isonet.errors import DataError, UserError, run_cli
from isonet.files.checkpoint import read_checkpoint
from isonet.shares import Share
from isonet.tools import shards as tool
from isonet.training.run import run_training


def command(*args):
    tool.main(tool.parse_args([str(arg) for arg in args]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 training and 10 validation pictures of 80 x 60 pixels in three classes, and their shards of 4."""
    root = tmp_path_factory.mktemp("data") / "mine"
    for i, image in enumerate(torch.randint(0, 256, (33, 60, 80, 3), dtype=torch.uint8)):
        place = root / ("train" if i < 23 else "val") / f"class {i % 3}" / "deep"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place / f"{i}.v2.{('jpg', 'JPEG', 'png')[i % 3]}")
    command("write", root, "--images-per-shard", 4)
    return root


def loader(folder, split="train", share=None, **more):
    opts = {"DATASET.ROOT": str(folder.parent), "DATASET.NAME": folder.name, "DATASET.NUM_CLASSES": 3,
            "DATASET.IMAGE_SIZE": 80, "DATASET.NUM_WORKERS": 0, "SOLVER.TRAIN_BATCH_SIZE": 3,
            "SOLVER.TEST_BATCH_SIZE": 3, "DATASET.SHUFFLE_BUFFER": 5, "RUNTIME.INPUT": "shards",
            "SOLVER.DROP_LAST": False, **more}  # fmt: skip
    cfg = load_cfg(None, [item for pair in opts.items() for item in pair])
    return build_loader(cfg, split, share=share or Share())


def epoch(batches, number=1, skip=0):
    batches.set_epoch(number, skip)
    return [(x, y, batches.taken) for x, y in batches]


# The order


ORDERS = list(product((1, 2, 3, 7), (1, 2, 3, 5), (1, 4, 6, 64), (True, False)))


@pytest.mark.parametrize(("parts", "workers", "batch", "shuffle"), ORDERS)
def test_every_image_is_in_one_batch_of_one_worker_and_read_in_the_order_of_the_shards(parts, workers, batch, shuffle):
    sizes = [5, 5, 5, 2, 5, 1]
    shard_of = [shard for shard, size in enumerate(sizes) for _ in range(size)]
    seen, batches, readers = [], Counter(), Counter()
    for index in range(parts):
        order = ShardOrder(sizes, batch, shuffle, 4, 0, Share(index, parts), workers)
        for worker in range(workers):
            stream = order.stream(3, worker)
            assert sorted(stream.handed) == list(range(len(stream.numbers)))
            assert sum(stream.pieces) == len(stream.numbers)
            shards = [shard_of[n] for n in stream.numbers]
            assert len(set(shards)) == len([*groupby(shards)])  # one after the other, and each
            for one, after in pairwise(stream.numbers):  # from its beginning on
                assert one + 1 == after or shard_of[one] != shard_of[after]
            if not shuffle:
                assert stream.handed == sorted(stream.handed)
            readers.update(set(shards))
            seen += stream.numbers
            for i, size in enumerate(stream.pieces):
                batches[worker + i * workers] += size
    assert sorted(seen) == list(range(23))
    assert [batches[b] for b in sorted(batches)] == [min(batch, 23 - start) for start in range(0, 23, batch)]
    assert readers.total() <= len(sizes) + parts * workers - 1  # more than one reads a shard at the borders alone


@pytest.mark.parametrize(("parts", "workers", "batch"), product((1, 2, 3), (1, 2, 5), (1, 4, 6, 23, 64)))
def test_an_epoch_without_its_last_batch_is_whole_batches_of_images_drawn_from_all_shards(parts, workers, batch):
    def numbers(epoch):
        """Those of each batch, over all processes."""
        found = {}
        for index in range(parts):
            order = ShardOrder([5, 5, 5, 2, 5, 1], batch, True, 4, 0, Share(index, parts), workers, drop_last=True)
            for worker in range(workers):
                stream = order.stream(epoch, worker)
                assert sorted(stream.handed) == list(range(len(stream.numbers))) == list(range(sum(stream.pieces)))
                handed = iter(stream.handed)
                for i, size in enumerate(stream.pieces):
                    piece = [stream.numbers[next(handed)] for _ in range(size)]
                    found.setdefault(worker + i * workers, []).extend(piece)
        return [found[number] for number in sorted(found)]

    images = 23 - 23 % batch if batch <= 23 else 23  # smaller than a batch, the set is one
    taken = []
    for epoch in range(1, 9):
        batches = numbers(epoch)
        assert [len(each) for each in batches] == [min(batch, images)] * -(-images // batch)
        taken.append(set().union(*batches))
        assert len(taken[-1]) == images
    assert set.union(*taken) == set(range(23))
    if images < 23:
        left_out = [sorted(set(range(23)) - each) for each in taken]
        assert len({tuple(each) for each in left_out}) > 4  # other images in other epochs
        alone = ShardOrder([5, 5, 5, 2, 5, 1], batch, True, 4, 0, drop_last=True).stream(1, 0)
        assert set(alone.numbers) == taken[0]  # and the same for any number of processes and workers


def test_of_a_single_shard_an_epoch_leaves_out_other_images_than_the_one_before():
    order = ShardOrder([23], 4, True, 100, 0, drop_last=True)
    left_out = [set(range(23)) - set(order.stream(epoch, 0).numbers) for epoch in (1, 2, 3)]
    assert [len(each) for each in left_out] == [3, 3, 3]
    assert not set.intersection(*left_out)


def test_the_order_follows_from_seed_and_epoch_and_mixes_shards():
    def handed(seed=0, number=1, buffer=100):
        stream = ShardOrder([50] * 20, 10, True, buffer, seed).stream(number, 0)
        return [stream.numbers[i] for i in stream.handed]

    assert handed() == handed()
    assert len({tuple(handed(seed, number)) for seed in (0, 1) for number in (1, 2)}) == 4
    assert handed(buffer=1) == ShardOrder([50] * 20, 10, True, 1, 0).stream(1, 0).numbers
    batches = [handed()[i : i + 10] for i in range(0, 1000, 10)]
    from_shards = sum(len({n // 50 for n in batch}) for batch in batches) / len(batches)
    assert from_shards > 2.5  # with 100 of 50 each in the buffer some three shards are mixed in a batch


def test_a_buffer_hands_out_like_one_that_is_filled_and_drawn_from_by_hand():
    count, buffer = 200, 16
    handed = drawn_from_buffer(count, buffer, torch.Generator().manual_seed(3))
    assert sorted(handed) == list(range(count))
    for step, position in enumerate(handed):
        assert position < step + buffer  # it had come in by then
    assert max(step - position for step, position in enumerate(handed)) > buffer  # and may stay for long
    ranks = [handed.index(i) for i in range(count)]
    assert 0.5 * buffer < sum(abs(r - i) for i, r in enumerate(ranks)) / count < 2 * buffer


# Reading


@pytest.mark.parametrize("decoder", ["pil", "torch"])
def test_validation_has_the_pixels_and_labels_of_the_folder(folder, decoder):
    a = loader(folder, "val", **{"RUNTIME.DECODER": decoder})
    b = loader(folder, "val", **{"RUNTIME.DECODER": decoder, "RUNTIME.INPUT": "workers"})
    assert a.classes == b.classes == ["class 0", "class 1", "class 2"]
    assert a.num_images == b.num_images == 10
    assert_same(epoch(a), epoch(b))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_processes_read_every_training_image_once_and_have_equally_many_batches(folder, parts, workers, monkeypatch):
    monkeypatch.setattr(build, "_cores", lambda: 2)
    loaders = [loader(folder, share=Share(i, parts), **{"DATASET.NUM_WORKERS": workers}) for i in range(parts)]
    still = loader(folder, "train", **{"RUNTIME.INPUT": "workers", "RUNTIME.SEED": 0})
    labels = Counter(torch.cat([y for _, y, _ in epoch(still)]).tolist())
    for number in (1, 2):
        epochs = [epoch(each, number) for each in loaders]
        batch = 3 * parts
        assert [len(e) for e in epochs] == [len(each) for each in loaders] == [-(-23 // batch)] * parts
        totals = [sum(len(e[b][1]) for e in epochs) for b in range(-(-23 // batch))]
        assert totals == [min(batch, 23 - start) for start in range(0, 23, batch)]
        assert [taken for _, _, taken in epochs[0]] == [min(23, (b + 1) * batch) for b in range(len(totals))]
        pixels = torch.cat([x for e in epochs for x, _, _ in e])
        assert len({x.numpy().tobytes() for x in pixels}) == 23
        assert Counter(torch.cat([y for e in epochs for _, y, _ in e]).tolist()) == labels
    assert_same(epoch(loaders[-1], 2), epochs[-1])
    for skip in (0, batch, 23 - 23 % batch, 23):
        assert_same(epoch(loaders[-1], 2, skip), epochs[-1][skip // batch if skip < 23 else len(totals) :])


@pytest.mark.parametrize(("parts", "workers"), [(1, 0), (2, 0), (2, 2), (3, 1)])
def test_without_the_last_batch_processes_read_whole_batches_and_go_on_to_the_bit(folder, parts, workers, monkeypatch):
    monkeypatch.setattr(build, "_cores", lambda: 2)
    more = {"DATASET.NUM_WORKERS": workers, "SOLVER.DROP_LAST": True}
    loaders = [loader(folder, share=Share(i, parts), **more) for i in range(parts)]
    batch = 3 * parts
    steps = 23 // batch
    for number in (1, 2):
        epochs = [epoch(each, number) for each in loaders]
        assert [[len(y) for _, y, _ in e] for e in epochs] == [[3] * steps] * parts
        assert [taken for _, _, taken in epochs[0]] == [(b + 1) * batch for b in range(steps)]
        assert len({x.numpy().tobytes() for e in epochs for images, _, _ in e for x in images}) == steps * batch
    for skip in (0, batch, steps * batch, 23):  # the last two: an epoch of which no step is left
        assert_same(epoch(loaders[-1], 2, skip), epochs[-1][skip // batch :])
        assert len(loaders[-1]) == max(0, steps - skip // batch)


@pytest.mark.parametrize(("batch", "expected"), [(1, [1] * 23), (6, [6] * 3), (23, [23]), (24, [23])])
@pytest.mark.parametrize("way", ["memory", "workers", "shards"])
def test_memory_workers_and_shards_have_the_same_steps(folder, way, batch, expected):
    more = {"RUNTIME.INPUT": way, "SOLVER.TRAIN_BATCH_SIZE": batch, "DATASET.IMAGE_SIZE": 32, "SOLVER.DROP_LAST": True}
    train = loader(folder, **more)
    assert len(train) == len(expected)
    assert train.epoch_images == sum(expected)
    assert train.num_images == 23
    assert [len(y) for _, y, _ in epoch(train)] == expected
    assert train.taken == train.epoch_images
    val = loader(folder, "val", **more)
    assert [len(y) for _, y, _ in epoch(val)] == [3, 3, 3, 1]  # every image


def test_an_image_is_augmented_alike_wherever_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(build, "_cores", lambda: 2)

    def images(parts, **more):
        shares = [loader(folder, share=Share(i, parts), **more) for i in range(parts)]
        return {x.numpy().tobytes() for each in shares for x, _, _ in epoch(each) for x in x}

    first = images(1)
    assert first == images(3, **{"DATASET.NUM_WORKERS": 2, "SOLVER.TRAIN_BATCH_SIZE": 1, "DATASET.SHUFFLE_BUFFER": 9})
    assert not first & images(1, **{"RUNTIME.SEED": 1})


def test_labels_are_those_of_the_classes_that_are_asked_for(folder):
    opts = ["DATASET.ROOT", str(folder.parent), "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 4,
            "DATASET.IMAGE_SIZE", 80, "RUNTIME.INPUT", "shards", "DATASET.NUM_WORKERS", 0]  # fmt: skip
    classes = ["class 2", "class 1", "none", "class 0"]
    found = build_loader(load_cfg(None, opts), "val", classes=classes)
    plain = torch.cat([y for _, y, _ in epoch(loader(folder, "val"))])
    assert torch.equal(torch.cat([y for _, y in found]), torch.tensor([3, 1, 0])[plain])
    with pytest.raises(DataError, match="class 2: not one of the 2 classes"):
        build_loader(load_cfg(None, opts), "val", classes=["class 0", "class 1"])


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_run_on_shards_goes_on_to_the_bit_and_says_when_it_cannot(folder, tmp_path, caplog, drop_last):
    opts = ["DATASET.ROOT", str(folder.parent), "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 3, "ISON.DEPTH", 8,
            "DATASET.IMAGE_SIZE", 32, "RUNTIME.INPUT", "shards", "DATASET.SHUFFLE_BUFFER", 5, "DATASET.NUM_WORKERS", 0,
            "SOLVER.TRAIN_BATCH_SIZE", 4, "RUNTIME.SAVE_EVERY", 2, "RUNTIME.KEEP", 20,
            "SOLVER.DROP_LAST", drop_last]  # fmt: skip
    two = load_cfg(None, [*opts, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_EPOCHS", 2])
    whole = run_training(two, "whole")
    (part,) = whole.path.glob("epoch0001-step*4.pt")
    state = read_checkpoint(part)
    assert state["part"]["taken"] == 16
    resumed = run_training(two, "resumed", resume=str(part))
    assert_same(read_checkpoint(resumed.latest)["model"], read_checkpoint(whole.latest)["model"])
    assert resumed.metrics.read_text() == whole.metrics.read_text()
    assert "some images come twice" not in caplog.text
    state["layout"] = state["layout"].replace("1 processes of 1 workers", "2 processes of 4 workers")
    torch.save(state, part)
    run_training(two, "other", resume=str(part))
    assert "the order of the shards (2 processes of 4 workers, batches of 4, buffers of 5, 6 shards " in caplog.text
    assert " -> 1 processes of 1 workers, batches of 4, " in caplog.text
    assert "until the end of the epoch some images come twice and others not at all" in caplog.text


# Writing


def test_others_can_read_them(folder):
    """By the library's own reader, and by sha256sum."""
    urls = [str(path) for path in sorted((folder / "shards/val").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"][:9] for sample in samples] == [f"{i:09d}" for i in range(10)]
    files = sorted((folder / "val").rglob("*.v2.*"))
    for sample, file in zip(samples, files, strict=True):
        assert sample[file.suffix[1:].lower()] == file.read_bytes()
        assert int(sample["cls"]) == int(file.parts[-3][-1])
    for split in ("train", "val"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder / "shards" / split, check=True)


def test_training_shards_are_shuffled_and_validation_is_sorted(folder):
    labels = {}
    for split in ("train", "val"):
        samples = webdataset.WebDataset(
            [str(path) for path in sorted((folder / "shards" / split).glob("*.tar"))], shardshuffle=False
        )
        labels[split] = [int(sample["cls"]) for sample in samples]
    assert labels["val"] == sorted(labels["val"])
    assert labels["train"] != sorted(labels["train"])
    assert sorted(labels["train"]) == sorted([0] * 8 + [1] * 8 + [2] * 7)


def contents(place):
    return {path.name: path.read_bytes() for path in place.iterdir()}


def killed_while_writing(folder, out, when):
    """Start the command, and kill -9 it when ``when`` says so of the folder that it writes."""
    args = [sys.executable, "-m", "isonet.tools.shards", "write", folder, "--split", "train", "--output", out]
    process = subprocess.Popen([*map(str, args), "--images-per-shard", "1"], cwd=REPO)
    try:
        while not when(out / "train"):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


def test_writing_goes_on_after_a_kill_with_the_same_bytes(folder, tmp_path, capsys, torture):
    many = tmp_path / "many"  # enough that a kill comes before the end
    for i in range(300):
        (many / "train" / f"class {i % 3}").mkdir(parents=True, exist_ok=True)
        source = folder / "train" / f"class {i % 3}" / "deep" / f"{i % 21}.v2.{('jpg', 'JPEG', 'png')[i % 3]}"
        (many / "train" / f"class {i % 3}" / f"{i}{source.suffix}").write_bytes(source.read_bytes())
    write = ["write", many, "--split", "train", "--images-per-shard", 1, "--output"]
    command(*write, tmp_path / "whole")
    whole = contents(tmp_path / "whole/train")
    for count in range(0, 280, 20 if torture else 120):
        out = tmp_path / f"killed{count}"
        killed_while_writing(many, out, lambda place, count=count: len(list(place.glob("*.tar"))) >= count > 0
                             or (count == 0 and (place / "plan.json").exists()))  # fmt: skip
        assert not (out / "train/index.json").exists()
        there = set(contents(out / "train"))
        assert len([name for name in there if name.endswith(".tar")]) < 300
        with pytest.raises(DataError, match=r"not complete|no shards"):
            read_index(out / "train")
        if (out / "train/SHA256SUMS").exists():  # what a kill may leave of a line
            with (out / "train/SHA256SUMS").open("a") as file:
                file.write("0123abc")
        capsys.readouterr()
        command(*write, out)
        assert ("are there already" in capsys.readouterr().out) == (count > 0)
        assert contents(out / "train") == whole


def test_a_whole_set_is_left_alone_and_another_is_not_mixed_with_it(folder, tmp_path):
    write = ["write", folder, "--split", "val", "--output", tmp_path, "--images-per-shard"]
    command(*write, 4)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "val").glob("*.tar")}
    command(*write, 4)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "val").glob("*.tar")}
    with pytest.raises(DataError, match=r"written otherwise \(4 images a shard, in order, now 3 images .*--overwrite"):
        command(*write, 3)
    command(*write, 3, "--overwrite")
    assert len(read_index(tmp_path / "val").shards) == 4
    (tmp_path / "val/000001.tar").unlink()
    good = (tmp_path / "val/000002.tar").read_bytes()
    (tmp_path / "val/000002.tar").write_bytes(good[:-1])
    command(*write, 3)
    command("verify", tmp_path)
    assert (tmp_path / "val/000002.tar").read_bytes() == good
    flipped = good[:2000] + bytes([good[2000] ^ 1]) + good[2001:]
    (tmp_path / "val/000002.tar").write_bytes(flipped)
    with pytest.raises(UserError, match=r"damage in .*, 1 files"):
        command("verify", tmp_path)
    command(*write, 3, "--overwrite")
    assert (tmp_path / "val/000002.tar").read_bytes() == good


def test_a_changed_folder_is_not_mixed_with_what_was_written(folder, tmp_path):
    copy = tmp_path / "mine"
    subprocess.run(["cp", "-a", folder, copy], check=True)
    command("write", copy, "--split", "val", "--images-per-shard", 4)  # the same files with the same times
    next((copy / "val").rglob("*.png")).touch()
    with pytest.raises(DataError, match="images that have changed"):
        command("write", copy, "--split", "val", "--images-per-shard", 4)


def test_a_split_that_is_not_complete_does_not_pass_for_whole(damaged, capsys):
    (damaged / "shards/val/index.json").unlink()
    with pytest.raises(DataError, match="shards/val: its shards are not complete"):
        command("verify", damaged / "shards")


def test_two_cannot_write_at_once(folder, tmp_path):
    (tmp_path / "val").mkdir()
    script = (
        "import sys; from pathlib import Path; from isonet.files.storage import FolderLock\n"
        f"with FolderLock(Path({str(tmp_path / 'val')!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True, cwd=REPO) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {other.pid}"):
            command("write", folder, "--split", "val", "--output", tmp_path)
        other.stdin.close()


# Damage


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the folder to damage."""
    subprocess.run(["cp", "-a", folder, tmp_path / "mine"], check=True)
    return tmp_path / "mine"


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])
    return "000001.tar: (cannot be read|ends before image)"


def empty(path):
    path.write_bytes(b"")
    return "000001.tar: cannot be read"


def gone(path):
    path.unlink()
    return "000001.tar: is not there any more"


def noise(path):
    path.write_bytes(os.urandom(path.stat().st_size))
    return "000001.tar: cannot be read"


def spoilt_header(path):
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        at = archive.getmembers()[4].offset
    data[at + 148 : at + 156] = b"0000000\0"  # its checksum
    path.write_bytes(data)
    return "000001.tar: ends before image"


def swapped(path):
    path.write_bytes((path.parent / "000000.tar").read_bytes())
    return "000001.tar: ends before image [4-7]"


def other_label(path):
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        member = archive.getmembers()[0]
    path.write_bytes(data[: member.offset_data] + b"7" + data[member.offset_data + 1 :])
    return "its label is 7, but index.json names 3 classes"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [cut, empty, gone, noise, spoilt_header, swapped, other_label])
def test_a_damaged_shard_stops_a_run_even_where_bad_images_are_left_out(damaged, damage, workers, capsys, monkeypatch):
    monkeypatch.setattr(build, "_cores", lambda: 2)
    batches = loader(damaged, "val", **{"DATASET.ON_ERROR": "skip", "DATASET.NUM_WORKERS": workers})
    message = damage(damaged / "shards/val/000001.tar")
    with pytest.raises(DataError, match=message):
        epoch(batches)
    with pytest.raises(UserError, match=r"damage in .*, 1 files"):
        command("verify", damaged / "shards")
    assert "000001.tar" in capsys.readouterr().out


def test_a_bad_image_in_a_shard_is_named_and_can_be_left_out(folder, tmp_path):
    subprocess.run(["cp", "-a", folder, tmp_path / "mine"], check=True)
    root = tmp_path / "mine"
    bad = next((root / "val/class 1").rglob("*.JPEG"))
    bad.write_bytes(bad.read_bytes()[:700])
    command("write", root, "--split", "val", "--overwrite", "--images-per-shard", 4)
    name = rf"0000\d+.tar/\d{{9}}-class_1_deep_{bad.name.split('.')[0]}_v2.jpeg"
    with pytest.raises(DataError, match=name):
        epoch(loader(root, "val"))
    batches = loader(root, "val", **{"DATASET.ON_ERROR": "skip"})
    assert sum(len(y) for _, y, _ in epoch(batches)) == 9
    assert len(batches.skipped) == 1


INDEXES = [b"", b"{}", b"[]", b"null", b"\xff", b'{"format": "isonet shards 1"}', b"[",
           b'{"format": "isonet shards 2", "source": "", "options": "", "classes": ["a"], "shards": []}',
           b'{"format": "isonet shards 1", "source": "", "options": "", "classes": ["a"], "shards": []}',
           b'{"format": "isonet shards 1", "source": "", "options": "", "classes": [1], "shards": '
           b'[{"name": "000000.tar", "images": 1, "bytes": 1, "sha256": ""}]}',
           b'{"format": "isonet shards 1", "source": "", "options": "", "classes": ["a"], "shards": '
           b'[{"name": "../../etc/000000.tar", "images": 1, "bytes": 1, "sha256": ""}]}',
           b'{"format": "isonet shards 1", "source": "", "options": "", "classes": ["a"], "shards": '
           b'[{"name": "000000.tar", "images": -1, "bytes": 1, "sha256": ""}]}']  # fmt: skip


@pytest.mark.parametrize("content", INDEXES, ids=range(len(INDEXES)))
def test_an_index_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(DataError, match="is no index of shards"):
        read_index(tmp_path)


def test_what_is_missing_is_said(folder, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no shards are there: make them with python -m isonet.tools.shards write"):
        loader(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/shards").symlink_to(folder / "shards")
    with pytest.raises(DataError, match=r"no such folder, but there are shards: RUNTIME.INPUT shards"):
        loader(tmp_path / "mine", **{"RUNTIME.INPUT": "auto"})
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UserError, match="pip install 'isonet\\[shards\\]'"):
        loader(folder)
    with pytest.raises(UserError, match="webdataset"):
        command("write", folder)


def test_the_command_from_a_shell(folder, tmp_path):
    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "isonet.tools.shards", *map(str, args)], cwd=REPO, capture_output=True, text=True
        )

    help_text = run("--help")
    assert help_text.returncode == 0
    assert "python -m isonet.tools.shards write data/ILSVRC2012" in help_text.stdout
    done = run("write", folder, "--output", tmp_path)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert f"{tmp_path}/train: 23 images in 1 shards" in done.stdout
    failed = run("verify", tmp_path / "nothing")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ")


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    for args, message in (
        (["write", tmp_path / "nothing"], "holds neither train/ nor val/"),
        (["write", folder, "--images-per-shard", 0], "must be between 1 and 100000"),
        (["verify", tmp_path / "nothing"], "no shards are there"),
        (["wrong"], "invalid choice"),
    ):
        try:
            code = run_cli(tool.main, tool.parse_args([*map(str, args)]))
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr().err
        assert code == 2
        assert told.startswith("error: ")
        assert message in told
        assert told.count("\n") == 1


# Real images


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the images in ../shared/data are not here")
@pytest.mark.parametrize(
    ("archive", "split", "count", "size"),
    [("imagenet-sample-val.tar", "val", 70, 224), ("cifar10-jpg.tar.xz", "val", 600, 32)],
)
def test_real_images_are_the_same_from_shards_and_from_the_folder(tmp_path, archive, split, count, size):
    with tarfile.open(SHARED_DATA / archive) as tar:  # of the compressed one its beginning
        found = 0
        for member in tar:
            parts = member.name.split("/")
            if member.isfile() and len(parts) == 4 and found < count and (parts[1] == split or size == 32):
                place = tmp_path / "real" / split / parts[2]
                place.mkdir(parents=True, exist_ok=True)
                (place / parts[3]).write_bytes(tar.extractfile(member).read())
                found += 1
            if found == count:
                break
    command("write", tmp_path / "real", "--images-per-shard", 64)
    opts = {"DATASET.NUM_CLASSES": 1000, "DATASET.IMAGE_SIZE": size, "SOLVER.TEST_BATCH_SIZE": 50}
    shards = epoch(loader(tmp_path / "real", split, **opts))
    assert sum(len(y) for _, y, _ in shards) == count
    assert_same(shards, epoch(loader(tmp_path / "real", split, **opts, **{"RUNTIME.INPUT": "workers"})))
    index = json.loads((tmp_path / "real/shards" / split / "index.json").read_text())
    assert [shard["images"] for shard in index["shards"]] == [64] * (count // 64) + [count % 64] * (count % 64 > 0)
