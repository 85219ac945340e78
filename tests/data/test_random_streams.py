"""The order and the seeds of epochs."""

from __future__ import annotations

import pytest

from isonet.data.random_streams import EpochBatches, stream_seed
from isonet.shares import Share


def flat(batches):
    return [key for batch in batches for key in batch]


def test_each_epoch_has_every_image_once_in_a_different_order():
    batches = EpochBatches(100, 8, shuffle=True, seed=0)
    orders = []
    for epoch in (1, 2):
        batches.set_epoch(epoch)
        keys = flat(batches)
        assert {e for e, _ in keys} == {epoch}
        orders.append([index for _, index in keys])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))
    assert orders[0] != orders[1]
    batches.set_epoch(1)
    assert [index for _, index in flat(batches)] == orders[0]
    assert [index for _, index in flat(EpochBatches(100, 8, shuffle=False, seed=0))] == list(range(100))


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_interrupted_epoch_continues_where_it_stopped(shuffle):
    batches = EpochBatches(10, 4, shuffle, seed=0)
    batches.set_epoch(3)
    whole = flat(batches)
    for skip, sizes in ((0, [4, 4, 2]), (4, [4, 2]), (10, [])):
        batches.set_epoch(3, skip)
        assert flat(batches) == whole[skip:]
        assert [len(batch) for batch in batches] == sizes
        assert len(batches) == len(sizes)
        assert [batches.taken(n) for n in range(len(sizes) + 1)] == [skip, *(sum(sizes[:n]) + skip for n in (1, 2, 3))][
            : len(sizes) + 1
        ]
    batches.set_epoch(3)
    assert flat(batches) == whole
    with pytest.raises(ValueError, match="cannot skip 11 of 10 images"):
        batches.set_epoch(3, 11)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("skip", [0, 12])
def test_processes_divide_the_same_batches(processes, skip):
    whole = EpochBatches(101, 12, shuffle=True, seed=0)
    parts = [EpochBatches(101, 12, True, 0, Share(rank, processes)) for rank in range(processes)]
    for batches in (whole, *parts):
        batches.set_epoch(2, skip)
    assert {len(part) for part in parts} == {len(whole)} == {(101 - skip + 11) // 12}
    dealt = list(zip(*parts, strict=True))
    assert [flat(pieces) for pieces in dealt] == list(whole)
    for pieces in dealt:
        sizes = [len(piece) for piece in pieces]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)
    assert [len(pieces[-1]) for pieces in dealt][-1] == (5 // processes)  # the last batch has 5 images


def test_an_epoch_of_cifar10_has_390_steps_of_128_images_and_leaves_out_others_each_time():
    """The same as torch's DataLoader with shuffle and drop_last: 50,000 images are 390 batches and 80 more images."""
    batches = EpochBatches(50_000, 128, shuffle=True, seed=0, drop_last=True)
    assert (len(batches), batches.epoch_images, batches.taken(390), batches.taken(400)) == (390, 49_920, 49_920, 49_920)
    left_out = []
    for epoch in (1, 2, 3):
        batches.set_epoch(epoch)
        found = [index for _, index in flat(batches)]
        assert [len(batch) for batch in batches] == [128] * 390
        assert len(set(found)) == len(found) == 49_920
        left_out.append(set(range(50_000)) - set(found))
    assert not set.intersection(*left_out)  # each image is used in at least one of three epochs
    halves = [EpochBatches(50_000, 128, True, 0, Share(rank, 2), drop_last=True) for rank in (0, 1)]
    for half in halves:
        half.set_epoch(3)
        assert [len(piece) for piece in half] == [64] * 390
    assert [index for pieces in zip(*halves, strict=True) for _, index in flat(pieces)] == found


@pytest.mark.parametrize(
    ("images", "batch", "sizes"), [(7, 8, [7]), (8, 8, [8]), (9, 8, [8]), (1, 1, [1]), (3, 2, [2])]
)
def test_a_set_smaller_than_a_batch_is_one_batch_and_a_larger_set_has_whole_batches(images, batch, sizes):
    batches = EpochBatches(images, batch, shuffle=True, seed=0, drop_last=True)
    assert [len(keys) for keys in batches] == sizes
    assert (len(batches), batches.epoch_images) == (len(sizes), sum(sizes))
    batches.set_epoch(2, skip=1)
    assert batches.epoch_steps == len(sizes)  # of the whole epoch


@pytest.mark.parametrize(
    ("skip", "batch", "sizes"),
    [
        (0, 4, [4, 4]),
        (4, 4, [4]),
        (8, 4, []),  # saved after the last whole batch of the epoch
        (11, 4, []),  # all images
        (8, 3, [3]),  # the global batch size changed within the epoch: the remaining images are divided again
        (3, 4, [4, 4]),
        (4, 5, [5]),
        (4, 16, [7]),  # no batch of 16 in the whole set
        (8, 11, []),  # one batch of 11 in the set, and none in the remaining images
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_remaining_images_of_an_interrupted_epoch_are_divided_into_whole_batches(skip, batch, sizes, shuffle):
    order = EpochBatches(11, 1, shuffle, seed=0)
    batches = EpochBatches(11, batch, shuffle, seed=0, drop_last=True)
    order.set_epoch(2)
    batches.set_epoch(2, skip)
    assert [len(keys) for keys in batches] == sizes
    assert len(batches) == len(sizes)
    assert batches.epoch_images == batches.taken(len(sizes)) == skip + sum(sizes)
    assert flat(batches) == flat(order)[skip : skip + sum(sizes)]


def test_streams_do_not_share_seeds():
    assert stream_seed(1, 23) != stream_seed(12, 3)
    assert len({stream_seed(0, "augment", epoch, image) for epoch in range(50) for image in range(200)}) == 10_000
