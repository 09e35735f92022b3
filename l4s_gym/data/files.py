"""Writing files so that a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from l4s_gym.errors import L4SError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of ``path`` when the block ends.

    The bytes go to a temporary file in the same folder (a rename works within one file system only), are
    forced to the disk, and the file is renamed. After an exception ``path`` is as it was and the temporary
    file is gone. A symbolic link stays one: the file that it points to is replaced.

    Args:
        path: Where the file shall be.

    Yields:
        The open temporary file.

    Raises:
        L4SError: The folder does not exist, or may not be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        # Not `tempfile`: its files are readable by their owner only, and would stay so.
        file = open(temporary, "xb")  # noqa: SIM115
    except OSError as error:
        raise L4SError(f"{path}: cannot be written ({error.strerror}): create the folder or choose another") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except IsADirectoryError as error:
        raise L4SError(f"{path}: is a folder: name a file") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every system can open a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_error(path: str | os.PathLike[str], error: OSError) -> L4SError:
    """The error for a file that cannot be read."""
    return L4SError(f"{path}: cannot be read ({error.strerror or error}): check the path and its permissions")
