"""Datasets whose files are damaged, missing or locked, and namespaces that several processes make at once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from l4s_gym import cli
from l4s_gym.data import minari_io
from l4s_gym.errors import L4SError
from l4s_gym.netllm import rl_collect

ID = "l4s/dualpi2/one-v0"
SHARD, MAIN, METADATA = "shard-00000.hdf5", "main_data.hdf5", "metadata.json"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("made")))
        rl_collect("steps", "native:pie", 2, ID, seconds=0.3)
        return {path.name: path.read_bytes() for path in (minari_io.dataset_folder(ID) / "data").iterdir()}


@pytest.fixture
def data(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder, made anew."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "datasets" / ID / "data"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


COMMANDS = [
    ("train", "bc", "--dataset", ID),
    ("train", "llm", "--dataset", ID, "--small"),
    ("test", "random", "--dataset", ID, "--seconds", "1", "--seeds", "0"),
    ("datasets", "show", ID),
    ("log", "audit", ID),
]
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "half a shard": (SHARD, lambda content: content[: len(content) // 2]),
    "an empty shard": (SHARD, lambda _: b""),
    "another kind": (SHARD, lambda _: os.urandom(5000)),
    "half the links": (MAIN, lambda content: content[:300]),
    "a list": (METADATA, lambda _: b"[]"),
    "half the metadata": (METADATA, lambda content: content[:100]),
}


def refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    code = cli.main(words)
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("l4s-gym: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_damaged_files(words: tuple[str, ...], damage: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, change = DAMAGES[damage]
    (data / name).write_bytes(change((data / name).read_bytes()))
    err = refused(words, capsys)
    assert (f"{data / name}: cannot be read (" if name != METADATA else f"dataset '{ID}': cannot be read (") in err


@pytest.mark.parametrize("name", [SHARD, MAIN])
def test_locked_and_missing_files(name: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(data / name, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"{data / name}: is locked: another process writes it" in refused(COMMANDS[0], capsys)
    (data / name).unlink()
    assert "cannot be read (" in refused(COMMANDS[0], capsys)


def test_every_damaged_byte_is_an_error_or_a_dataset(data: Path) -> None:
    """Whatever HDF5 makes of a shard with a wrong byte in its structure."""
    rng = np.random.default_rng(3)
    whole = (data / SHARD).read_bytes()
    for place in rng.integers(0, 6000, 60).tolist():
        changed = bytearray(whole)
        changed[place] ^= 255
        (data / SHARD).write_bytes(changed)
        try:
            list(minari_io.read_episodes(minari_io.load(ID)))
        except L4SError as error:
            assert "\n" not in str(error)


def test_a_list_names_what_is_broken(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / METADATA).write_text("{")
    assert cli.main(["datasets", "list"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("l4s-gym: Misconfigured dataset") and err.count("\n") == 1


@pytest.mark.parametrize("env", [{"HOME": "~"}, {"MINARI_DATASETS_PATH": "~/x"}])
def test_no_folder_is_called_tilde(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for words in (("datasets", "list"), COMMANDS[0]):
        assert "set MINARI_DATASETS_PATH to a folder" in refused(words, capsys)
    assert list(tmp_path.iterdir()) == []


# -- namespaces


def test_another_process_makes_the_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the making."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    namespaces = minari_io.import_minari("minari.namespace")
    make, known = namespaces.create_namespace, namespaces.list_local_namespaces
    looked: list[int] = []

    def look() -> list[str]:
        looked.append(1)
        if len(looked) == 1:
            return []
        if len(looked) == 2:
            monkeypatch.setattr(namespaces, "list_local_namespaces", known)
            make("l4s/dualpi2", description="")
        found: list[str] = known()
        return found

    monkeypatch.setattr(namespaces, "list_local_namespaces", look)
    minari_io.ensure_namespace("l4s/dualpi2")
    assert "l4s/dualpi2" in known()


MAKER = """
import os, sys
from l4s_gym.data import minari_io
minari_io.import_minari()
for line in sys.stdin:
    os.environ["MINARI_DATASETS_PATH"] = line.strip()
    minari_io.ensure_namespace("l4s/dualpi2")
    print("made", flush=True)
"""


def test_four_processes_make_the_namespace(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    makers: list[subprocess.Popen[str]] = [subprocess.Popen([sys.executable, "-c", MAKER], **pipes) for _ in range(4)]  # type: ignore[call-overload]
    places = "".join(f"{tmp_path / str(k)}\n" for k in range(8))
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write(places)
        maker.stdin.flush()
    for maker in makers:
        out, err = maker.communicate(timeout=120)
        assert (out.split(), maker.returncode) == (["made"] * 8, 0), err
