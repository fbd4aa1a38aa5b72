"""Every error a user can cause, as one tree:

    BitError
    |-- ConfigError          a flag or argument is out of range, contradictory or has no effect
    |-- DataError            the data set cannot be found, understood or read
    |   |-- ImageError       one image cannot be decoded (carries the file's name and the reason)
    |   `-- UnreadableImages some images of a set cannot be decoded (carries the whole list)
    |-- WeightsError         a weight file is missing, damaged, or does not match its architecture
    |   |-- UnknownModel     no model of that name
    |   `-- DownloadError    the network, the server or the integrity check said no
    |-- RunError             a run folder or another output cannot be created, resumed or written
    |   `-- LostProcess      another process of the same training has ended or cannot be reached
    `-- TrainingError        training cannot go on (loss is not finite, out of memory at one image)

A message says what happened, where (the file, the flag) and what to do. Broken internal invariants are `assert`s, not these.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence


class BitError(Exception):
    """Base of every error the user can act on; the command line prints it without a traceback."""


class ConfigError(BitError):
    """A flag or argument is out of range, contradictory or without effect."""


class DataError(BitError):
    """A data set cannot be found, understood or read."""


class ImageError(DataError):
    """One image cannot be decoded."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # Worker processes send exceptions by pickle, which would otherwise call __init__ with the joined message.
        return type(self), (self.name, self.reason)


class UnreadableImages(DataError):
    """Some images of a data set cannot be decoded; `images` lists each with its reason."""

    def __init__(
        self,
        images: Sequence[ImageError],
        total: int,
        advice: str = "Repair or remove them, or pass --skip-bad-images to go on without them.",
    ) -> None:
        shown = "\n".join("  " + str(image).replace("\n", "\\n") for image in images[:10])
        more = f"\n  ... and {len(images) - 10} more" if len(images) > 10 else ""
        super().__init__(f"{len(images)} of {total} images cannot be read:\n{shown}{more}\n{advice}")
        self.images, self.total = list(images), total


class WeightsError(BitError):
    """A weight file is missing, damaged, or does not match its architecture."""


class UnknownModel(WeightsError):
    """No model has that name."""

    def __init__(self, name: str, known: Collection[str]) -> None:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"No model or file named {name!r}.{hint} `bit models` lists all {len(known)}.")


class DownloadError(WeightsError):
    """The network, the server or the integrity check said no."""


class RunError(BitError):
    """A run folder or another output cannot be created, resumed or written."""


class LostProcess(RunError):
    """Another process of the same training has ended or cannot be reached."""

    passing = True


def passing(error: BaseException | None) -> bool:
    """Whether the same command at once may do better, so that torchrun is to start the processes again: the error, or what it comes
    of, says so of itself (`passing`), or is the network's."""
    while error is not None:
        if getattr(error, "passing", False) or isinstance(error, ConnectionError | TimeoutError):
            return True
        error = error.__cause__
    return False


class TrainingError(BitError):
    """Training cannot go on."""
