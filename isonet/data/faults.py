"""Images that cannot be read: what is said of one, and whether a run stops at it or leaves it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isonet.errors import DataError, printable

WHOLE_BATCH = 8  # images; fewer, such as the last ones of an epoch, may all be bad by chance
STORAGE_GONE = "the storage has probably gone away: see to it, DATASET.ON_ERROR skip is for single bad files"


class ImageError(DataError):
    """An image file that cannot be read, through a fault of its own: such a one may be left out.

    reason: what is wrong with it, without its path.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = str(path), printable(reason)
        super().__init__(
            f"{printable(path)}: {self.reason}; mend or remove it, "
            "or let such images be left out with DATASET.ON_ERROR skip"
        )


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, on its way from a worker to the process that reports it.

    path, reason: of an ``ImageError``; empty where the fault is not the image's own.
    """

    index: int
    message: str
    path: str = ""
    reason: str = ""


def failure(index: int, error: DataError) -> Failure:
    """What became of image ``index``, as something that passes between processes."""
    if isinstance(error, ImageError):
        return Failure(index, str(error), error.path, error.reason)
    return Failure(index, str(error))


class LeftOut:
    """Stops at the first image that cannot be read or, to ``skip``, lists all of them.

    skipped: what was left out, each once however many epochs meet it: path to reason.
    """

    def __init__(self, num_images: int, skip: bool) -> None:
        self.num_images = num_images
        self.skip = skip
        self.skipped: dict[str, str] = {}

    def note(self, failures: Sequence[Failure], batch_size: int) -> None:
        """Take down the failures among the ``batch_size`` images of a batch, or raise ``DataError``."""
        for failed in failures:
            if not self.skip or not failed.path:
                raise DataError(failed.message)
            self.skipped.setdefault(failed.path, failed.reason)
        whole_batch = len(failures) == batch_size >= WHOLE_BATCH
        if failures and (whole_batch or len(self.skipped) == self.num_images):
            path, reason = printable(failures[0].path), failures[0].reason
            raise DataError(
                f"none of {len(failures)} images could be read, of which the first is {path}: {reason}; {STORAGE_GONE}"
                if whole_batch
                else f"none of the {self.num_images} images of the set could be read, the last of them {path}: {reason}"
            )
