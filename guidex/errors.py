"""The two ways in which guidex says no. Both print their text alone, without a traceback."""


class GuidexError(Exception):
    """A failure while working (exit code 1): a corrupt file, a full disk, a folder in use."""

    exit_code = 1


class UsageError(GuidexError):
    """Something asked for that cannot be (exit code 2): an unknown key, a bad value, no such
    path."""

    exit_code = 2
