"""Order and seeds of epochs."""

from __future__ import annotations

import pytest

from isonet.data.random_streams import EpochSampler, stream_seed


def test_every_image_comes_once_in_an_order_of_its_own_each_epoch():
    sampler = EpochSampler(100, shuffle=True, seed=0)
    orders = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {e for e, _ in keys} == {epoch}
        orders.append([index for _, index in keys])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))
    assert orders[0] != orders[1]
    sampler.set_epoch(1)
    assert [index for _, index in sampler] == orders[0]
    assert [index for _, index in EpochSampler(100, shuffle=False, seed=0)] == list(range(100))


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_interrupted_epoch_goes_on_where_it_was(shuffle):
    sampler = EpochSampler(10, shuffle, seed=0)
    sampler.set_epoch(3)
    whole = list(sampler)
    for skip in (0, 4, 10):
        sampler.set_epoch(3, skip)
        assert (list(sampler), len(sampler)) == (whole[skip:], 10 - skip)
    sampler.set_epoch(3)
    assert list(sampler) == whole
    with pytest.raises(ValueError, match="cannot skip 11 of 10 images"):
        sampler.set_epoch(3, 11)


def test_streams_do_not_share_seeds():
    assert stream_seed(1, 23) != stream_seed(12, 3)
    assert len({stream_seed(0, "augment", epoch, image) for epoch in range(50) for image in range(200)}) == 10_000
