"""The error for an image that cannot be read, and what a loader does about such images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from isonet.errors import DataError, printable

log = logging.getLogger("isonet")

WHOLE_BATCH = 8  # images; if all images of a batch of this size or more are unreadable, the storage is at fault
TRIES = 64  # images that are read in place of an unreadable one before the storage is at fault
_LOGGED = 10  # unreadable images that a loader logs when it reaches them

OnError = Literal["stop", "leave out", "replace"]


class ImageError(DataError):
    """Raised if an image cannot be read because of a fault in the image itself, so that a run can continue without it.

    path: the image's file. reason: the fault, without the path.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = str(path), printable(reason)
        super().__init__(self.path, self.reason)  # pickle rebuilds the error from these arguments

    def __str__(self) -> str:
        return (
            f"{printable(self.path)}: {self.reason}; repair or remove it, "
            "or let the run continue without such images with DATASET.ON_ERROR skip"
        )


class Unreadable:
    """Records images that cannot be read or, if ``on_error`` is "stop", raises the first error.

    skipped: the reason for each recorded image, by its path. An image occurs once, however many epochs read it.
    """

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.skipped: dict[str, str] = {}

    def note(self, errors: Sequence[DataError], read: int, unread: int) -> None:
        """Record the errors of a batch that has ``read`` images and lacks ``unread``.

        Raises ``DataError`` for an error whose cause is not in the image. Also raises it if the storage seems to be
        gone: if a batch of ``WHOLE_BATCH`` or more images has none that can be read, or an image has no replacement.
        """
        for error in errors:
            if self.on_error == "stop" or not isinstance(error, ImageError):
                raise DataError(str(error))  # the old error would keep the loader alive, in a reference cycle
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
