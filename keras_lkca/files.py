"""Outputs that are there whole or not at all."""

import contextlib
import os
import pathlib
import tempfile


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
