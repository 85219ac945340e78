"""Reading shards: the images of a worker's batches, in their order, each read once."""

from __future__ import annotations

import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from isonet.data.decode import decode_image, decode_tensor
from isonet.data.faults import Failure, failure
from isonet.data.shards.index import INDEX, ShardIndex, number_of
from isonet.data.shards.order import ShardOrder
from isonet.data.workers import Augment
from isonet.errors import DataError, printable

_VERIFY = "python -m isonet.tools.shards verify FOLDER tells what is damaged"


@dataclass(frozen=True)
class Sample:
    """An image as it lies in a shard: its number, the bytes of its file under the name ``name``, its label."""

    number: int
    name: Path
    data: bytes
    label: int


class ShardImages(Dataset):
    """Images of a batch by [(epoch, number of the batch)]: augmented, as bytes, with their labels.

    Numbers that follow each other, as a worker is asked for them, go on reading where it is; any other begins
    anew. labels: for each label in the shards the one to give. as_tensor: decode with torchvision.
    """

    def __init__(
        self, folder: Path, index: ShardIndex, order: ShardOrder, augment: Augment, labels: list[int], as_tensor: bool
    ) -> None:
        self.folder = folder
        self.index = index
        self.order = order
        self.augment = augment
        self.labels = labels
        self.decode = decode_tensor if as_tensor else decode_image
        self._next = (0, 0)  # epoch and number of the batch that comes next out of
        self._batches: Iterator[list[Sample]] | None = None

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Tensor, int] | Failure]:
        ((epoch, number),) = keys
        if self._batches is None or self._next != (epoch, number):
            self._batches = self._read(epoch, number)
        self._next = (epoch, number + self.order.workers)
        try:
            samples = next(self._batches)
        except DataError as error:
            self._batches = None
            return [failure(0, error)]  # without a path: nobody leaves out a shard
        return [self._image(sample, epoch) for sample in samples]

    def _image(self, sample: Sample, epoch: int) -> tuple[Tensor, int] | Failure:
        try:
            image = self.decode(sample.data, sample.name)
        except DataError as error:
            return failure(sample.number, error)
        return self.augment(image, epoch, sample.number), self.labels[sample.label]

    def _read(self, epoch: int, number: int) -> Iterator[list[Sample]]:
        """The worker's batches from ``number`` on. What the batches before it took is not read."""
        stream = self.order.stream(epoch, number % self.order.workers)
        done = number // self.order.workers
        coming = stream.handed[sum(stream.pieces[:done]) :]
        samples = self._samples([stream.numbers[position] for position in sorted(coming)])
        handed = iter(coming)
        held: dict[int, Sample] = {}
        for size in stream.pieces[done:]:
            batch = []
            for position in islice(handed, size):
                wanted = stream.numbers[position]
                while wanted not in held:
                    sample = next(samples)
                    held[sample.number] = sample
                batch.append(held.pop(wanted))
            yield batch

    def _samples(self, numbers: Sequence[int]) -> Iterator[Sample]:
        """The images of these numbers, which lie one shard after the other."""
        first = self.index.first_numbers
        for i, group in groupby(numbers, key=lambda number: bisect_right(first, number) - 1):
            for sample in read_shard(self.folder / self.index.shards[i].name, list(group)):
                if sample.label >= len(self.labels):
                    raise DataError(
                        f"{printable(sample.name)}: its label is {sample.label}, but {INDEX} names "
                        f"{len(self.labels)} classes; {_VERIFY}"
                    )
                yield sample


def read_shard(path: Path, numbers: Sequence[int]) -> Iterator[Sample]:
    """The images of a shard that have these numbers, which rise. Raises ``DataError`` where one is not there."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    wanted = set(numbers)
    expected = iter(numbers)
    try:
        with path.open("rb") as file:
            source = [{"url": str(path), "stream": file}]
            members = tar_file_expander(source, select_files=lambda name: number_of(name) in wanted)
            for parts in islice(group_by_keys(members), len(numbers)):
                sample = _sample(path, parts)
                if sample.number != next(expected):
                    raise ValueError(f"image {sample.number} comes out of turn")
                yield sample
    except FileNotFoundError:
        raise DataError(f"{printable(path)}: is not there any more; {_VERIFY}") from None
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        why = getattr(error, "strerror", None) or (error.args[0] if error.args else type(error).__name__)
        raise DataError(f"{printable(path)}: cannot be read ({printable(why)}); {_VERIFY}") from None
    if (missing := next(expected, None)) is not None:
        raise DataError(f"{printable(path)}: ends before image {missing}; {_VERIFY}")


def _sample(path: Path, parts: dict) -> Sample:
    """What the library found under one key: by extension, and its own remarks between underscores."""
    key = parts["__key__"]
    found = [ext for ext in parts if not ext.startswith("__") and ext != "cls"]
    if len(found) != 1 or not parts.get("cls", b"").isdigit():
        raise ValueError(f"{key} is not one image and its label")
    return Sample(number_of(key), path / f"{key}.{found[0]}", parts[found[0]], int(parts["cls"]))
