"""Files: writing so that a reader sees the old content or the new one, and reading lines by blocks."""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import os
import re
import secrets
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from l4s_gym.errors import L4SError

PathLike = str | os.PathLike[str]

_LONGEST_LINE: Final = 1 << 20


@contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
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


def read_error(path: PathLike, error: OSError) -> L4SError:
    """The error for a file that cannot be read."""
    return L4SError(f"{path}: cannot be read ({error.strerror or error}): check the path and its permissions")


@contextmanager
def open_compressed(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file, plain or compressed by gzip, bzip2, xz or zstandard (told by its first bytes)."""
    with ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        magic = file.read(6)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif magic[:3] == b"BZh":
            file = stack.enter_context(bz2.BZ2File(file))
        elif magic == b"\xfd7zXZ\x00":
            file = stack.enter_context(lzma.LZMAFile(file))
        elif magic[:4] == b"\x28\xb5\x2f\xfd":
            try:
                zstandard = importlib.import_module("zstandard")
            except ImportError:
                raise L4SError(f"{path}: is compressed by zstd: pip install zstandard, or decompress it") from None
            file = stack.enter_context(zstandard.ZstdDecompressor().stream_reader(file))
        yield file


def line_blocks(path: PathLike, size: int) -> Iterator[bytes]:
    """Read a file, plain or compressed, in blocks of whole lines, each line with its newline.

    Args:
        path: The file.
        size: Bytes read at a time.

    Raises:
        L4SError: The file cannot be read or decompressed.
    """
    try:
        with open_compressed(path) as file:
            rest = b""
            while data := file.read(size):
                head, newline, tail = (rest + data).rpartition(b"\n")
                rest = tail
                if newline:
                    yield head + newline
                if len(rest) > _LONGEST_LINE:  # not a text file: keep memory bounded
                    yield rest + b"\n"
                    rest = b""
            if rest:
                yield rest + b"\n"
    except OSError as error:
        raise read_error(path, error) from error
    except Exception as error:
        damage = (EOFError, lzma.LZMAError, zlib.error)  # zstandard has an exception of its own
        if isinstance(error, damage) or type(error).__name__ == "ZstdError":
            raise L4SError(f"{path}: the compressed file is damaged ({error}): fetch it again") from error
        raise


def order_rotation(paths: Sequence[PathLike]) -> list[Path]:
    """Put rotated logs in the order of time.

    newsyslog counts up (``messages.1.bz2`` is older than ``messages.0.bz2``, and ``messages`` is the
    newest) or appends the time (``messages.20240710T120000.bz2``, smaller is older). Logs of other names
    keep the order in which their names come first.
    """

    def key(path: Path) -> tuple[int, int, int]:
        match = re.fullmatch(r"(.+?)(?:\.(\d+)|\.(\d{8}T\d{4,6}))?(?:\.(?:gz|bz2|xz|zst))?", path.name)
        base, number, stamp = match.groups() if match else (path.name, None, None)
        group = groups.setdefault(path.parent / str(base), len(groups))
        if stamp is not None:
            return group, 0, int(stamp.replace("T", "").ljust(14, "0"))
        if number is not None:
            # A number this large is a date, not a count.
            return group, 0, int(number) if len(number) >= 6 else -int(number)
        return group, 1, 0

    groups: dict[Path, int] = {}
    return sorted(map(Path, paths), key=key)
