"""The two ways in which guidex says no. Both print their text alone, without a traceback."""


class GuidexError(Exception):
    """A failure while working (exit code 1): a corrupt file, a full disk, a folder in use."""

    exit_code = 1


class UsageError(GuidexError):
    """Something asked for that cannot be (exit code 2): an unknown key, a bad value, no such
    path."""

    exit_code = 2


def printable(text: str, most: int = 120) -> str:
    """A text from outside, fit for a message: short, and without control characters."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:most])


def reason_of(error: BaseException) -> str:
    """An exception as a few words on one printable line, and never advice to load pickles."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "pickle" in text or "Python objects" in text:
        return "it holds Python objects, which are never loaded, or is damaged"
    return printable(text, 200)
