"""Files and folders: atomic writing, so that a reader sees the old or the new content, and reading lines by blocks."""

from __future__ import annotations

import bz2
import errno
import fcntl
import gzip
import hashlib
import importlib
import io
import lzma
import os
import re
import secrets
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from l4s_gym.errors import L4SError

PathLike = str | os.PathLike[str]

_LONGEST_LINE: Final = 1 << 20
_BUFFER: Final = 1 << 18
_T = TypeVar("_T")
_R = TypeVar("_R")


def sha256(path: PathLike) -> str:
    """Return the SHA-256 digest of a file, read by blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    except OSError as error:
        raise _named(path, error) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    _sync_folder(target.parent)


@contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder for this process until the block ends.

    Args:
        folder: An existing folder; a file `lock` is made in it.
        refusal: The error where another process holds it.

    Raises:
        L4SError: `refusal`.
    """
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise L4SError(refusal) from error
        yield


@contextmanager
def atomic_folder(
    path: PathLike, *, overwrite: bool = True, keep: Callable[[str], bool] | None = None
) -> Iterator[Path]:
    """Make a folder that takes the place of ``path`` when the block ends, by `put_in_place`.

    After an exception ``path`` is as it was and the temporary folder is gone. A symbolic link stays one: the folder
    that it points to is replaced.

    Args:
        path: Final place of the folder; missing parent folders are made.
        overwrite: As of `put_in_place`.
        keep: As of `put_in_place`.

    Yields:
        The temporary folder, beside its place.

    Raises:
        L4SError: The folder cannot be made, or not put in its place.
    """
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            new.mkdir(parents=True)
        except OSError as error:
            raise _folder_error(path, error) from error
        try:
            yield new
        except OSError as error:
            raise _named(path, error) from error
        put_in_place(new, target, overwrite=overwrite, keep=keep)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def put_in_place(new: Path, target: Path, *, overwrite: bool = True, keep: Callable[[str], bool] | None = None) -> None:
    """Move a finished folder to its place, its files forced to the disk before.

    Whoever opens the folder has the old one or the new one, never parts of both; for a moment, between two renames, it
    does not exist. After an exception the old one is as it was.

    Args:
        new: The folder, in the same file system.
        target: Its place.
        overwrite: Whether a folder that is there is replaced.
        keep: Given the name of a file in the old folder that the new one lacks: whether the new one
            gets it too.

    Raises:
        L4SError: It cannot be done.
    """
    old = new.with_name(f"{new.name}.{secrets.token_hex(3)}.old")
    try:
        if keep is not None and target.is_dir():
            _carry(target, new, keep)
        _sync_tree(new)
        try:
            if overwrite and target.exists():
                os.rename(target, old)
            os.rename(new, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise
    except OSError as error:
        raise _folder_error(target, error) from error
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _named(path: PathLike, error: OSError) -> Exception:
    """Return an error that names the path if the disk takes no more data; return other errors as they are."""
    if error.filename is not None or error.errno not in _DISK:
        return error
    return L4SError(f"{path}: cannot be written ({error.strerror}): free some space, or choose another place")


_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def _folder_error(path: PathLike, error: OSError) -> L4SError:
    remedy = "free some space, choose another folder, or look whether another process has made it"
    return L4SError(f"{path}: cannot be written ({error.strerror or error}): {remedy}")


def _carry(old: Path, new: Path, keep: Callable[[str], bool]) -> None:
    """Copy what is kept of the old folder into the new one; the old one stays as it is."""
    there = set(os.listdir(new))

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name in there or not keep(name)] if Path(folder) == old else []

    shutil.copytree(old, new, symlinks=True, ignore=ignore, copy_function=link_or_copy, dirs_exist_ok=True)


def link_or_copy(source: PathLike, target: PathLike) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        _sync_folder(Path(place))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every system can open a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_error(path: PathLike, error: OSError) -> L4SError:
    """Return the error for a file that cannot be read."""
    return L4SError(f"{path}: cannot be read ({error.strerror or error}): check the path and its permissions")


class Meter:
    """Reports the share of the bytes of some files that was read.

    Args:
        paths: The files.
        progress: Called with the share; None: no reports.
    """

    def __init__(self, paths: Sequence[PathLike], progress: Callable[[float], None] | None) -> None:
        self._progress = progress
        self._total = 0
        self._read = 0
        for path in paths:
            with suppress(OSError):  # the reader of the file reports what is wrong with it
                self._total += os.path.getsize(path)

    def add(self, count: int) -> None:
        """Count bytes."""
        self._read += count
        if self._progress is not None and self._total:
            self._progress(min(self._read / self._total, 1.0))


class _Metered(io.RawIOBase):
    """A file that counts what is read from it."""

    def __init__(self, file: io.FileIO, meter: Meter) -> None:
        self._file, self._meter = file, meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._meter.add(count or 0)
        return count or 0


def _arrow(path: PathLike) -> Any:
    """Import PyArrow, which reads zstandard."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise L4SError(f"{path}: is compressed by zstd: pip install 'l4s-gym[data]', or decompress it") from None


def printable(text: object, most: int = 200) -> str:
    """Return any text as a printable part of a one-line message."""
    return "".join(char if char.isprintable() else "?" for char in str(text)[:most])


@contextmanager
def open_compressed(path: PathLike, meter: Meter | None = None) -> Iterator[BinaryIO]:
    """Open a file, plain or compressed by gzip, bzip2, xz or zstandard (recognised by its first bytes).

    Args:
        path: The file.
        meter: Told how many bytes of the file are read.

    Raises:
        L4SError: The file is damaged, or PyArrow is needed for it and missing.
        OSError: The file cannot be read.
    """
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(open(path, "rb", buffering=0))
            counted: Any = raw if meter is None else _Metered(raw, meter)
            file: Any = stack.enter_context(io.BufferedReader(counted, _BUFFER))
            magic = file.peek(6)[:6]
            if magic[:2] == b"\x1f\x8b":
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            elif magic[:3] == b"BZh":
                file = stack.enter_context(bz2.BZ2File(file))
            elif magic == b"\xfd7zXZ\x00":
                file = stack.enter_context(lzma.LZMAFile(file))
            elif magic[:4] == b"\x28\xb5\x2f\xfd":
                file = stack.enter_context(_arrow(path).CompressedInputStream(file, "zstd"))
            yield file
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise L4SError(f"{path}: the compressed file is damaged ({error}): fetch it again") from error
    except OSError as error:
        if error.errno is None:  # an error of a decompressor, not of the system
            raise L4SError(f"{path}: the compressed file is damaged ({error}): fetch it again") from error
        raise


@contextmanager
def compressed_write(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file as `atomic_write` does, compressed if its name ends in .gz, .bz2, .xz or .zst."""
    with ExitStack() as stack:
        file: Any = stack.enter_context(atomic_write(path))
        suffix = Path(path).suffix.lower()
        if suffix == ".gz":
            # Equal content gives equal bytes: no time stamp, no name.
            file = stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0))
        elif suffix == ".bz2":
            file = stack.enter_context(bz2.BZ2File(file, "wb"))
        elif suffix == ".xz":
            file = stack.enter_context(lzma.LZMAFile(file, "wb"))
        elif suffix == ".zst":
            # Does not close the underlying file: `atomic_write` does.
            packer = _arrow(path).CompressedOutputStream(_KeepOpen(file), "zstd")
            file = stack.enter_context(packer)
        yield file


class _KeepOpen(io.RawIOBase):
    """Passes on writes, but does not close the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


def line_blocks(path: PathLike, size: int, meter: Meter | None = None) -> Iterator[bytes]:
    """Read a file, plain or compressed, in blocks of whole lines, each line with its newline.

    Args:
        path: The file.
        size: Bytes read at a time; a block has at most as many, and those of one line more.
        meter: Told how many bytes of the file are read.

    Raises:
        L4SError: The file cannot be read or decompressed.
    """
    try:
        with open_compressed(path, meter) as file:
            rest = b""
            while data := file.read(size):
                cut = data.rfind(b"\n") + 1
                if cut:
                    yield rest + data[:cut]
                    rest = data[cut:]
                else:
                    rest += data
                if len(rest) > _LONGEST_LINE:  # not a text file: keep memory bounded
                    yield rest + b"\n"
                    rest = b""
            if rest:
                yield rest + b"\n"
    except OSError as error:
        raise read_error(path, error) from error


def map_ahead(function: Callable[[_T], _R], items: Iterable[_T], workers: int = 2) -> Iterator[_R]:
    """Map a function in the order of the items, some ahead in threads (useful if the function releases the GIL).

    The items are taken in the caller's thread.
    """
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[_R]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


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
