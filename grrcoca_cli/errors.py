"""The errors a user can cause, each with its exit code. The message says what, where, and what to do next."""

from copy import copy
from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """What a shell or a scheduler learns from a finished command; 1, a traceback, is a bug of ours."""

    OK = 0
    USAGE = 2
    SOME_INPUTS_FAILED = 3
    TOO_MANY_BAD_SAMPLES = 4
    OUT_OF_RESOURCES = 5
    NON_FINITE_LOSS = 6
    CHECKPOINT_REFUSED = 7
    RUN_FOLDER_IN_USE = 8
    STOPPED_AND_SAVED = 75
    INTERRUPTED = 130


class GrrcocaError(Exception):
    """Base of every error that is shown as one line, without a traceback."""

    exit_code = ExitCode.USAGE


class UsageError(GrrcocaError):
    """A flag, a recipe or a path that cannot be used as given."""


class RunDiffers(UsageError):
    """A run folder holds a run of other settings or data; arguments: a clause that says so, and the differences."""

    def __str__(self) -> str:
        return self.advising("choose another --out, repeat its settings, or give --resume force to use the new ones")

    def advising(self, advice: str) -> str:
        """The error with other advice, for a command that runs the folder for the user."""
        what, differences = self.args
        return "\n  ".join([f"{what}: {advice}", *differences])


class NoSuchSplit(UsageError):
    """A data set that is sound and has no split of the name asked for."""


class HasNoSplits(NoSuchSplit):
    """A data set that is sound and has no splits at all: training and validation are cut by hash."""


class UnreadableImage(GrrcocaError):
    """One file that gives no pixels.

    Attributes:
        kind: A short, fixed, lower-case phrase to count by (``"truncated"``, ``"not an image"``); never a value
            out of the file.
    """

    exit_code = ExitCode.SOME_INPUTS_FAILED

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind

    def of(self, name: str) -> Self:
        """This error with the name of its file before its text."""
        named = copy(self)
        named.args = (f"{name}: {self}",)
        return named


class NotAnImage(UnreadableImage):
    """A file that by its content is neither DICOM nor a picture: skipped in a folder, refused when named."""


class TooManyBadSamples(GrrcocaError):
    """More unreadable samples than ``data.max_bad_fraction`` allows."""

    exit_code = ExitCode.TOO_MANY_BAD_SAMPLES


class OutOfResources(GrrcocaError):
    """No memory or no disk left."""

    exit_code = ExitCode.OUT_OF_RESOURCES


class LostProcess(GrrcocaError):
    """Another process of a run under torchrun died or hangs."""

    exit_code = ExitCode.OUT_OF_RESOURCES


class NonFiniteLoss(GrrcocaError):
    """A loss that is NaN or infinite; the weights before the step are kept."""

    exit_code = ExitCode.NON_FINITE_LOSS


class CheckpointRefused(GrrcocaError):
    """A checkpoint that is damaged, unsafe or of another format."""

    exit_code = ExitCode.CHECKPOINT_REFUSED


class RunFolderInUse(GrrcocaError):
    """Another process holds the lock of a run folder."""

    exit_code = ExitCode.RUN_FOLDER_IN_USE


class StoppedAndSaved(GrrcocaError):
    """A signal ended the work after everything was saved: the same command goes on from here."""

    exit_code = ExitCode.STOPPED_AND_SAVED
