"""Images that cannot be read: the error that names one, and what a loader does about it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from isonet.errors import DataError, printable

log = logging.getLogger("isonet")

WHOLE_BATCH = 8  # images; if all images of a larger batch are unreadable, the storage is to blame
TRIES = 64  # images that are read for one that cannot be read, until the storage is to blame
_LOGGED = 10  # unreadable images that a loader logs as it meets them

OnError = Literal["stop", "leave out", "replace"]


class ImageError(DataError):
    """An image that cannot be read because of a fault of its own, so that a run can do without it.

    path: its file. reason: what is wrong with it, without the path.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = str(path), printable(reason)
        super().__init__(self.path, self.reason)  # the arguments with which pickle rebuilds it

    def __str__(self) -> str:
        return (
            f"{printable(self.path)}: {self.reason}; repair or remove it, "
            "or let the run do without such images with DATASET.ON_ERROR skip"
        )


class Unreadable:
    """Raises the first error of an image or, unless ``on_error`` is "stop", records the image.

    skipped: path and reason of each recorded image, however many epochs read it.
    """

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.skipped: dict[str, str] = {}

    def note(self, errors: Sequence[DataError], read: int, unread: int) -> None:
        """Record the errors of a batch that has ``read`` images and lacks ``unread``.

        Raises ``DataError`` for an error that is not an image's own, and if the storage seems to have gone: not one
        image of a batch of ``WHOLE_BATCH`` or more could be read, or no replacement for an image.
        """
        for error in errors:
            if self.on_error == "stop" or not isinstance(error, ImageError):
                raise DataError(str(error))  # a new one: in ``errors`` it would keep the loader alive, in a cycle
            if error.path not in self.skipped:
                self.skipped[error.path] = error.reason
                if len(self.skipped) <= _LOGGED:
                    log.warning("%s: %s (DATASET.ON_ERROR skip)", printable(error.path), error.reason)
        if unread and (self.on_error == "replace" or (read == 0 and unread >= WHOLE_BATCH)):
            example = printable(next(reversed(self.skipped)))
            raise DataError(
                f"too many images in a row cannot be read, e.g. {example}; the storage has probably gone away: check "
                "it; DATASET.ON_ERROR skip is for single bad files"
            )
