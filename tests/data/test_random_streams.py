"""Order and seeds of epochs."""

from __future__ import annotations

import pytest

from isonet.data.random_streams import EpochBatches, stream_seed
from isonet.shares import Share


def flat(batches):
    return [key for batch in batches for key in batch]


def test_every_image_comes_once_in_an_order_of_its_own_each_epoch():
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
def test_an_interrupted_epoch_goes_on_where_it_was(shuffle):
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
def test_processes_deal_out_the_same_batches(processes, skip):
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
    assert [len(pieces[-1]) for pieces in dealt][-1] == (5 // processes)  # the last batch holds 5: here some have none


def test_streams_do_not_share_seeds():
    assert stream_seed(1, 23) != stream_seed(12, 3)
    assert len({stream_seed(0, "augment", epoch, image) for epoch in range(50) for image in range(200)}) == 10_000
