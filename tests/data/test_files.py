"""Folders that take the place of others: as a whole or not at all, whatever fails and whoever reads."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import L4SError
from l4s_gym.data.files import atomic_folder, put_in_place


def make(path: Path, text: str, **options: Any) -> None:
    with atomic_folder(path, **options) as new:
        (new / "deep").mkdir()
        (new / "deep" / "a").write_text(text)
        (new / "b").write_text(text)


def content(path: Path) -> dict[str, str]:
    return {str(each.relative_to(path)): each.read_text() for each in sorted(path.rglob("*")) if each.is_file()}


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    make(path, "old")
    (path / "more").write_text("goes")
    make(path, "new")
    assert content(path) == {"b": "new", "deep/a": "new"}
    assert os.listdir(path.parent) == ["folder"]
    (tmp_path / "link").symlink_to(path)
    make(tmp_path / "link", "linked")
    assert (tmp_path / "link").is_symlink()
    assert content(path) == {"b": "linked", "deep/a": "linked"}


@pytest.mark.parametrize("links", [True, False])
def test_what_is_kept(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a file system without hard links."""
    path = tmp_path / "folder"
    make(path, "old")
    (path / "logs" / "b").mkdir(parents=True)
    (path / "logs" / "b" / "b").write_text("kept")
    (path / "nowhere").symlink_to("/does/not/exist")
    (path / "checkpoint").write_text("goes")
    if not links:

        def refuse(*_: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    make(path, "new", keep=lambda name: name != "checkpoint")
    assert content(path) == {"b": "new", "deep/a": "new", "logs/b/b": "kept"}
    assert os.readlink(path / "nowhere") == "/does/not/exist"
    assert os.listdir(tmp_path) == ["folder"]


def test_without_overwrite_what_is_there_stays(tmp_path: Path) -> None:
    make(tmp_path / "folder", "old", overwrite=False)
    with pytest.raises(L4SError, match=r"folder: cannot be written .*another process has made it"):
        make(tmp_path / "folder", "new", overwrite=False)
    assert content(tmp_path / "folder") == {"b": "old", "deep/a": "old"}
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (os, "mkdir", 1),
        (os, "fsync", 1),
        (os, "fsync", 2),
        (os, "rename", 1),
        (os, "rename", 2),
        (shutil, "copytree", 1),
    ],
)
def test_a_failure_at_any_step_leaves_the_old_folder(
    module: Any, name: str, call: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    make(path, "old")
    (path / "logs").write_text("kept")
    original, calls = getattr(module, name), list[Any]()

    def fails(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise error
        return original(*args, **options)

    monkeypatch.setattr(module, name, fails)
    expected = L4SError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left on device" if expected is L4SError else None):
        make(path, "new", keep=lambda _: True)
    monkeypatch.undo()
    assert len(calls) >= call
    assert content(path) == {"b": "old", "deep/a": "old", "logs": "kept"}
    assert os.listdir(tmp_path) == ["folder"]


def test_a_failure_of_the_caller_leaves_the_old_folder(tmp_path: Path) -> None:
    make(tmp_path / "folder", "old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "folder") as new:
        (new / "b").write_text("half")
        raise ZeroDivisionError
    assert content(tmp_path / "folder") == {"b": "old", "deep/a": "old"}
    assert os.listdir(tmp_path) == ["folder"]


def test_what_a_killed_process_left_is_not_in_the_way(tmp_path: Path) -> None:
    """Of a new folder that has a fixed name, and was to be put in place."""
    for text in ("one", "two"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "b").write_text(text)
        (tmp_path / "new.old").mkdir(exist_ok=True)
        (tmp_path / "new.old" / "b").write_text("left")
        put_in_place(tmp_path / "new", tmp_path / "folder")
        assert content(tmp_path / "folder") == {"b": text}


def test_who_reads_meanwhile_sees_no_mixture(tmp_path: Path) -> None:
    """An opened folder is of one version; its files go when the folder is replaced, but never change."""
    path, versions = tmp_path / "folder", 60
    make(path, "0")

    def write() -> None:
        for version in range(1, versions):
            make(path, str(version))

    def read(folder: int, name: str) -> str:
        with open(os.open(name, os.O_RDONLY, dir_fd=folder)) as file:
            return file.read()

    writer = threading.Thread(target=write)
    writer.start()
    last, seen = False, set()
    while not last:
        last = not writer.is_alive()
        try:
            folder = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # between the two renames
            continue
        try:
            first, second = read(folder, "b"), read(folder, "deep/a")
        except FileNotFoundError:  # replaced
            continue
        finally:
            os.close(folder)
        assert first == second
        seen.add(first)
    writer.join()
    assert str(versions - 1) in seen
