"""Saved agents: written as a whole or not at all, and refused where something is wrong."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import L4SError, agents
from l4s_gym.agents import saved
from l4s_gym.agents.registry import KINDS, AgentKind
from l4s_gym.sim import fingerprint

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")


class Named:
    """An agent that tells what it was loaded from."""

    rule = "-"

    def __init__(self, stored: saved.Saved, options: dict[str, str]) -> None:
        self.stored, self.options, self.name = stored, options, ""

    def reset(self, n: int, seed: int) -> None: ...
    def act(self, obs: Any, rewards: Any) -> Any: ...
    def cost(self) -> dict[str, float]:
        return {}


def load(stored: saved.Saved, **options: str) -> Named:
    """The loader of the kind `named`."""
    return Named(stored, options)


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "named", AgentKind("", f"{__name__}:load", {}))


def write(folder: Path, value: float = 1.0, **more: Any) -> Path:
    given: dict[str, Any] = {"kind": "named", "config": {"a": 1}, "tensors": {"w": torch.full((2, 3), value)}} | more
    return saved.write(folder, **given)


def test_there_and_back(tmp_path: Path) -> None:
    half = torch.arange(4, dtype=torch.bfloat16)
    folder = tmp_path / "new" / "agent"
    tensors = {"w": half, "same": half, "column": torch.ones(3, 2).T}
    assert write(folder, tensors=tensors, training={"steps": 3}, card="# mine") == folder
    found = saved.read(folder)
    assert (found.kind, found.config, found.training, found.path) == ("named", {"a": 1}, {"steps": 3}, folder)
    assert found.tensors["w"].equal(half) and found.tensors["same"].equal(half)
    assert found.tensors["column"].shape == (2, 3)
    assert (folder / saved.CARD).read_text() == "# mine"


@pytest.mark.parametrize("spec", ["{}", "named:{}", "{},speed=3,rule=x"])
def test_by_path(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs" / "x")
    for place in (tmp_path / "runs" / "x", "runs/x", "./runs/x/", "x"):
        monkeypatch.chdir(tmp_path / "runs" if place == "x" else tmp_path)
        agent: Any = agents.make(spec.format(place))
        assert agent.name == ("named:x,speed=3" if "speed" in spec else "named:x")
        assert agent.options == ({"speed": "3", "rule": "x"} if "speed" in spec else {})


def test_which_simulator_an_agent_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown, logs = (
        write(tmp_path / "unknown"),
        write(tmp_path / "logs", training={"simulator": fingerprint.KERNEL_LOG}),
    )
    old = write(tmp_path / "old", training={"dataset": "l4s/dualpi2/a-v0", "simulator": "older"})
    saved.read(unknown), saved.read(logs)
    command = f"l4s-gym train named --dataset l4s/dualpi2/a-v0 --out {old}"
    with pytest.raises(fingerprint.StaleError, match=f"{old}: is stale: made with simulator older, .*: {command}$"):
        saved.read(old)
    with fingerprint.allow_stale():
        saved.read(old)
    about = json.loads((unknown / saved.ABOUT).read_text())
    (unknown / saved.ABOUT).write_text(json.dumps({k: v for k, v in about.items() if k != "simulator"}))
    with pytest.raises(fingerprint.StaleError, match=r"made with simulator none, .*: train it again$"):
        agents.make(str(unknown))
    monkeypatch.setattr(fingerprint, "FINGERPRINT", "0123456789ab")
    saved.read(logs)


def test_writing_again_keeps_logs_and_drops_checkpoints(tmp_path: Path) -> None:
    folder = write(tmp_path / "agent")
    (folder / "logs").mkdir()
    (folder / "logs" / "events").write_text("kept")
    (folder / "checkpoint.pt").write_text("goes")
    write(folder, 2.0)
    assert saved.read(folder).tensors["w"].eq(2).all()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "agent.json", "logs", "weights.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]


def test_a_failure_leaves_the_old_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "agent")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "rename"):
        with (
            monkeypatch.context() as patch,
            pytest.raises(L4SError, match=r"No space left on device\): free some space"),
        ):
            patch.setattr(os, name, full)
            write(folder, 2.0)
    for bad in (float("nan"), object()):
        with pytest.raises(L4SError, match=r"training: .*: give finite numbers"):
            write(folder, 2.0, training={"loss": bad})
    assert saved.read(folder).tensors["w"].eq(1).all()
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]


def test_an_adapter_goes_with_its_agent(tmp_path: Path) -> None:
    def fill(new: Path) -> None:
        (new / saved.ADAPTER).mkdir()
        (new / saved.ADAPTER_WEIGHTS).write_bytes(b"weights")

    folder = write(tmp_path / "agent", fill=fill)
    assert saved.read(folder).config == {"a": 1}
    (folder / saved.ADAPTER_WEIGHTS).write_bytes(b"others")
    with pytest.raises(L4SError, match=r"adapter_model.safetensors: is damaged \(checksum differs\)"):
        saved.read(folder)
    assert not (write(folder) / saved.ADAPTER).exists()
    assert saved.read(folder).config == {"a": 1}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kind": "nomed"}, "did you mean 'named'"),
        ({"tensors": {"w": torch.tensor([1.0, float("nan")])}}, "w is not finite"),
    ],
)
def test_what_is_not_written(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(L4SError, match=message):
        write(tmp_path / "agent", **more)
    assert not list(tmp_path.iterdir())


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(L4SError, match=r"holds something that is no agent \(thesis.tex\)"):
        write(tmp_path)
    with pytest.raises(L4SError, match="is a file"):
        write(tmp_path / "thesis.tex")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")


def change(**values: Any) -> Any:
    def edit(folder: Path) -> None:
        about = json.loads((folder / saved.ABOUT).read_text())
        (folder / saved.ABOUT).write_text(json.dumps(about | values))

    return edit


def flip(folder: Path) -> None:
    """Change a bit of the last weight."""
    whole = (folder / saved.WEIGHTS).read_bytes()
    (folder / saved.WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / saved.ABOUT).write_text("{"), "agent.json: is damaged"),
        (lambda f: (f / saved.ABOUT).write_bytes(b"\xff"), "agent.json: is damaged"),
        (lambda f: (f / saved.ABOUT).write_text("[]"), "kind is missing"),
        (lambda f: (f / saved.ABOUT).unlink(), "name the folder of an agent"),
        (lambda f: (f / saved.WEIGHTS).unlink(), "weights.safetensors: cannot be read"),
        (lambda f: (f / saved.WEIGHTS).write_bytes(b""), "weights.safetensors: is damaged"),
        (flip, r"damaged \(checksum differs\)"),
        (change(schema_version=0), "version 0 of the schema, not 1: train it again"),
        (change(kind="nomed"), "did you mean 'named'"),
        (change(training=None), "training is missing"),
        (lambda f: ((f / saved.ABOUT).unlink(), (f / "bc.npz").touch()), "older format: train it again: l4s-gym train"),
        (lambda f: ((f / saved.ABOUT).unlink(), (f / "checkpoint.pt").touch()), "not finished: go on by"),
    ],
)
def test_what_is_not_read(damage: Any, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "agent")
    damage(folder)
    with pytest.raises(L4SError, match=message):
        agents.make(str(folder))


def test_without_a_checksum_the_file_itself_has_to_be_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "agent")
    about = json.loads((folder / saved.ABOUT).read_text())
    del about["weights_sha256"]
    (folder / saved.ABOUT).write_text(json.dumps(about))
    assert saved.read(folder).tensors["w"].eq(1).all()
    (folder / saved.WEIGHTS).write_bytes((folder / saved.WEIGHTS).read_bytes()[:-1])
    with pytest.raises(L4SError, match="is damaged"):
        saved.read(folder).tensors  # noqa: B018


def test_wrong_specs(tmp_path: Path) -> None:
    write(tmp_path / "agent")
    with pytest.raises(L4SError, match="'fast' is not name=value"):
        agents.make(f"{tmp_path / 'agent'},fast")
    with pytest.raises(L4SError, match="is an agent of kind 'named', not 'bc'"):
        agents.make(f"bc:{tmp_path / 'agent'}")
    with pytest.raises(L4SError, match="name the folder of an agent"):
        agents.make(str(tmp_path))
