"""Files that are there whole or not at all, and their names as text."""

import contextlib
import os
import pathlib
import tempfile


def shown(text) -> str:
    """Return a path or a name as text that can be written, though it is no UTF-8.

    The bytes that are none stand as `\\xe9`.

    Example:

    >>> import os
    >>> from keras_lkca.files import shown
    >>> shown(os.fsdecode(b"caf\\xe9.png")) == "caf" + chr(92) + "xe9.png"
    True
    """
    raw = str(text).encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def atomic(path):
    """Give a temporary path to write to, which becomes `path` on success.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_lkca.files import atomic
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with atomic(path) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> path.read_text()
    'whole'
    """
    path = pathlib.Path(path)
    # In the same folder, to be renamed in one step; with the same ending, which
    # tells Keras and matplotlib the format.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)
