"""Reading shards: the images and labels of the folder, and one order for all ranks, workers and resumed runs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tarfile
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from sharded import command, epoch, loader, make_folder

from conftest import SHARED_DATA, assert_same
from isonet import load_cfg
from isonet.data import build
from isonet.data.folders import image_folder
from isonet.data.random_streams import EpochBatches, Windows, generator
from isonet.data.shards import source as shard_source
from isonet.data.shards.source import open_shards
from isonet.errors import CheckpointError, DataError
from isonet.files.checkpoint import read_checkpoint
from isonet.shares import Share
from isonet.training.run import run_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "mine")


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(build, "usable_cores", lambda: 2)


# The order


@pytest.mark.parametrize("least", [1, 5, 6, 11, 22, 23, 100])
def test_an_order_consists_of_windows_of_whole_shards_with_a_minimum_number_of_images(least):
    sizes = [5, 5, 5, 2, 5, 1]
    shard_of = np.repeat(range(6), sizes)
    orders = [Windows(sizes, least).order(generator(seed)).tolist() for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    for order in orders:
        assert sorted(order) == list(range(23))
        windows, images = [], []  # a window ends when it is large enough and its shards are complete
        for image in order:
            images.append(image)
            shards = {shard_of[i] for i in images}
            if len(images) >= least and sum(sizes[s] for s in shards) == len(images):
                windows.append(images)
                images = []
        assert windows or least > 23
        last = sum(windows[-1:], images)  # an incomplete last window is merged with the previous one
        assert sum(sizes[s] for s in {shard_of[i] for i in last}) == len(last)


def test_windows_mix_the_images_of_their_shards_and_differ_from_epoch_to_epoch():
    windows = Windows([50] * 20, 200)
    order = windows.order(generator(0))
    assert [len(set((order[i : i + 200] // 50).tolist())) for i in range(0, 1000, 200)] == [4] * 5
    mixed = [len(set((order[i : i + 10] // 50).tolist())) for i in range(0, 1000, 10)]
    assert sum(mixed) / len(mixed) > 3
    batches = EpochBatches(1000, 10, True, 0, windows=windows)
    orders = []
    for seed, number in product((0, 1), (1, 2)):
        batches.seed = seed
        batches.set_epoch(number)
        orders.append(tuple(batches.order().tolist()))
    assert len(set(orders)) == 4


def test_without_shuffling_the_order_equals_the_order_of_the_index():
    assert EpochBatches(23, 4, False, 0, windows=Windows([20, 3], 5)).order().tolist() == list(range(23))


@pytest.mark.parametrize(("ranks", "batch"), [*product((1, 2, 3, 7), (1, 4, 6, 64))])
def test_ranks_share_the_same_batches(ranks, batch):
    windows = Windows([5, 5, 5, 2, 5, 1], 6)
    whole = EpochBatches(23, batch, True, 0, windows=windows)
    parts = [EpochBatches(23, batch, True, 0, Share(rank, ranks), windows=windows) for rank in range(ranks)]
    for batches in (whole, *parts):
        batches.set_epoch(3)
    assert [[key for piece in pieces for key in piece] for pieces in zip(*parts, strict=True)] == list(whole)


def test_each_epoch_without_its_last_batch_leaves_out_different_images():
    batches = EpochBatches(23, 4, True, 0, drop_last=True, windows=Windows([23], 100))
    left_out = []
    for number in (1, 2, 3):
        batches.set_epoch(number)
        left_out.append(set(range(23)) - {image for batch in batches for _, image in batch})
    assert [len(images) for images in left_out] == [3, 3, 3]
    assert not set.intersection(*left_out)


# Images


@pytest.mark.parametrize("split", ["train", "val"])
def test_each_image_has_the_pixels_and_the_label_of_its_file(folder, split):
    """Training images are numbered in another order. Their names identify the files."""
    shards, files = open_shards(folder / "shards" / split), image_folder(folder, split)
    by_name = {str(path.relative_to(folder / split)).rpartition(".")[0].replace(" ", "_").replace("/", "_").replace(
        ".", "_"): place for place, path in enumerate(files.paths)}  # fmt: skip
    seen = set()
    for number in range(len(shards.labels)):
        data, name = shards.encoded(number)
        place = by_name[Path(name).stem.partition("-")[2]]
        seen.add(place)
        assert data == files.paths[place].read_bytes()
        assert shards.labels[number] == files.labels[place]
        assert torch.equal(shards.read_tensor(number), files.read_tensor(place))
        assert np.array_equal(shards.read(number), files.read(place))
    assert len(seen) == len(files.paths)
    assert shards.classes == files.classes


@pytest.mark.parametrize("decoder", ["pil", "torch"])
def test_evaluation_has_the_batches_of_the_folder(folder, decoder):
    a = loader(folder, "val", **{"RUNTIME.DECODER": decoder})
    b = loader(folder, "val", **{"RUNTIME.DECODER": decoder, "RUNTIME.INPUT": "workers"})
    assert a.classes == b.classes == ["class 0", "class 1", "class 2"]
    assert a.num_images == b.num_images == 10
    assert_same(epoch(a), epoch(b))


def test_small_images_are_kept_in_memory_as_with_the_folder(folder):
    small = {"DATASET.IMAGE_SIZE": 32}
    shards, files = loader(folder, "val", **small), loader(folder, "val", **small, **{"RUNTIME.INPUT": "auto"})
    assert type(shards) is type(files) is type(loader(folder, "val", **small, **{"RUNTIME.INPUT": "memory"}))
    assert_same(epoch(shards), epoch(files))
    assert {len(y) for _, y, _ in epoch(loader(folder, **small))} == {3, 2}


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_are_bit_identical_for_any_ranks_and_workers_and_after_a_stop(folder, drop_last):
    def batches(ranks, workers, number, skip=0):
        more = {"SOLVER.TRAIN_BATCH_SIZE": 6 // ranks, "SOLVER.DROP_LAST": drop_last, "DATASET.NUM_WORKERS": workers}
        loaders = [loader(folder, share=Share(rank, ranks), **more) for rank in range(ranks)]
        assert len({len(each) for each in loaders}) == 1
        pieces = zip(*[epoch(each, number, skip) for each in loaders], strict=True)
        return [(torch.cat([x for x, _, _ in p]), torch.cat([y for _, y, _ in p]), p[0][2]) for p in pieces]

    whole = {number: batches(1, 0, number) for number in (1, 2)}
    for number in (1, 2):
        sizes = [6, 6, 6] if drop_last else [6, 6, 6, 5]
        assert [len(y) for _, y, _ in whole[number]] == sizes
        assert [taken for *_, taken in whole[number]] == np.cumsum(sizes).tolist()
        images = torch.cat([x for x, _, _ in whole[number]])
        assert len({x.numpy().tobytes() for x in images}) == sum(sizes)
    if not drop_last:
        labels = Counter(torch.cat([y for _, y, _ in whole[1]]).tolist())
        assert labels == Counter(image_folder(folder, "train").labels)
    for ranks, workers, skip in [(2, 0, 0), (3, 1, 0), (2, 2, 6), (1, 2, 12), (3, 0, 18), (1, 0, 6)]:
        assert_same(batches(ranks, workers, 2, skip), whole[2][skip // 6 :])


def test_the_augmentation_of_an_image_does_not_depend_on_where_it_is_read(folder):
    def images(**more):
        return {x.numpy().tobytes() for x, _, _ in epoch(loader(folder, **more)) for x in x}

    first = images()
    assert first == images(**{"SOLVER.TRAIN_BATCH_SIZE": 1, "DATASET.SHUFFLE_BUFFER": 9})
    assert not first & images(**{"RUNTIME.SEED": 1})


def test_labels_follow_the_requested_classes(folder):
    classes = ["class 2", "class 1", "none", "class 0"]
    permuted = epoch(loader(folder, "val", classes=classes, **{"DATASET.NUM_CLASSES": 4}))
    for (_, ours, _), (_, plain, _) in zip(permuted, epoch(loader(folder, "val")), strict=True):
        assert torch.equal(ours, torch.tensor([3, 1, 0])[plain])
    with pytest.raises(DataError, match="class 2: not one of the 2 classes"):
        loader(folder, "val", classes=["class 0", "class 1"])


def test_shards_are_open_a_few_at_a_time_and_copies_open_their_own(folder, monkeypatch):
    monkeypatch.setattr(shard_source, "MAX_OPEN", 2)

    def number_open():
        return sum(os.path.realpath(f"/proc/self/fd/{fd}").endswith(".tar") for fd in os.listdir("/proc/self/fd"))

    before = number_open()
    source = open_shards(folder / "shards/train")
    images = [source.encoded(number) for number in range(23)]
    assert [source.encoded(number) for number in reversed(range(23))] == images[::-1]
    copy = pickle.loads(pickle.dumps(source))  # as a spawned process receives it
    assert number_open() == before + 2
    assert copy.encoded(5) == images[5]
    assert number_open() == before + 3
    del source
    assert number_open() == before + 1
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(copy.encoded, range(23)) == images
    assert copy.encoded(7) == images[7]
    del copy
    assert number_open() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_within_an_epoch_is_bit_identical(folder, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(build, "usable_cores", lambda: 2)
    monkeypatch.setattr(build, "MEMORY_LIMIT", 0)  # so that workers read the images
    opts = ["DATASET.ROOT", str(folder.parent), "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 3, "ISON.DEPTH", 8,
            "DATASET.IMAGE_SIZE", 32, "RUNTIME.INPUT", "shards", "DATASET.SHUFFLE_BUFFER", 5, "DATASET.NUM_WORKERS", 0,
            "SOLVER.TRAIN_BATCH_SIZE", 4, "RUNTIME.SAVE_EVERY", 2, "RUNTIME.KEEP", 20,
            "OUTPUT_DIR", str(tmp_path)]  # fmt: skip
    whole = run_training(load_cfg(None, [*opts, "SOLVER.MAX_EPOCHS", 2]), "whole")
    (part,) = whole.path.glob("epoch0001-step*4.pt")
    resumed = run_training(
        load_cfg(None, [*opts, "SOLVER.MAX_EPOCHS", 2, "DATASET.NUM_WORKERS", workers]), "resumed", resume=str(part)
    )
    assert_same(read_checkpoint(resumed.latest)["model"], read_checkpoint(whole.latest)["model"])
    assert resumed.metrics.read_text() == whole.metrics.read_text()


def test_a_checkpoint_within_an_epoch_of_the_former_order_is_refused(folder, tmp_path):
    opts = ["DATASET.ROOT", str(folder.parent), "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 3, "ISON.DEPTH", 8,
            "DATASET.IMAGE_SIZE", 32, "RUNTIME.INPUT", "shards", "SOLVER.TRAIN_BATCH_SIZE", 4, "RUNTIME.SAVE_EVERY", 2,
            "RUNTIME.KEEP", 20, "SOLVER.MAX_EPOCHS", 1, "OUTPUT_DIR", str(tmp_path)]  # fmt: skip
    whole = run_training(load_cfg(None, opts), "whole")
    (part,) = whole.path.glob("epoch0001-step*4.pt")
    state = read_checkpoint(part)
    state["layout"] = "1 processes of 1 workers, batches of 4, buffers of 5, 6 shards 0123abcd"
    torch.save(state, part)
    with pytest.raises(CheckpointError, match="order that this version no longer has"):
        run_training(load_cfg(None, opts), "other", resume=str(part))
    state = read_checkpoint(whole.latest)  # a checkpoint after a whole epoch is accepted
    state["layout"] = "1 processes of 1 workers"
    torch.save(state, whole.latest)
    assert run_training(load_cfg(None, opts), "other", resume=str(whole.latest)).metrics.exists()


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the images in ../shared/data are not here")
@pytest.mark.parametrize(
    ("archive", "count", "size"), [("imagenet-sample-val.tar", 70, 224), ("cifar10-jpg.tar.xz", 300, 32)]
)
def test_real_images_are_the_same_from_shards_and_from_the_folder(tmp_path, archive, count, size):
    members = []
    with tarfile.open(SHARED_DATA / archive) as tar:  # of a compressed archive, only the beginning is read
        for member in tar:
            parts = member.name.split("/")
            if member.isfile() and len(parts) == 4:
                place = tmp_path / "real/val" / parts[2]
                place.mkdir(parents=True, exist_ok=True)
                (place / parts[3]).write_bytes(tar.extractfile(member).read())
                members.append(member)
            if len(members) == count:
                break
    command("write", tmp_path / "real", "--images-per-shard", 64)
    opts = {"DATASET.NUM_CLASSES": 1000, "DATASET.IMAGE_SIZE": size, "SOLVER.TEST_BATCH_SIZE": 50}
    shards = epoch(loader(tmp_path / "real", "val", **opts))
    assert sum(len(y) for _, y, _ in shards) == count
    assert_same(shards, epoch(loader(tmp_path / "real", "val", **opts, **{"RUNTIME.INPUT": "auto"})))
