"""What can be wrong with the files of a model. Each text names the file and says what to do next."""

from __future__ import annotations


class WeightsError(Exception):
    """The operator can fix it."""


class FilesMissing(WeightsError):
    """Checkpoints that are needed are not in the weights folder."""


class WrongFile(WeightsError):
    """A file is not what its name says: cut short, changed, another version, or no checkpoint at all."""


class UntrustedFile(WeightsError):
    """A file that could hold code, of which nobody has said what its hash must be."""


class FetchFailed(WeightsError):
    """A download did not come to its end. Trying again goes on where it stopped."""


class TryLater(FetchFailed):
    """Nothing has to be changed here: the same command may succeed in a while."""


class AccessDenied(FetchFailed):
    """The Hub wants a token, or a licence accepted."""


class NotEnoughRoom(FetchFailed):
    """The disk cannot hold what would be fetched; nothing was."""


class FetchInProgress(TryLater):
    """Another process is fetching into the same folder."""
