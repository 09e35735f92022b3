"""Specs of agents: one reading for making, hashing and sending; and the table of kinds, to which others add."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from l4s_gym import L4SError, agents
from l4s_gym.agents import AgentSpec, saved, training
from l4s_gym.agents.registry import KINDS
from tests.agents.conftest import TINY

Trained = Callable[[str], Path]
OUTSIDE = """
from l4s_gym.agents.registry import AgentKind
KIND = AgentKind("outside_kind:LEARNER", "l4s_gym.agents.d3rlpy_agents:BCAgent.of", {})
class LEARNER:
    trained = True
"""


@pytest.mark.parametrize(
    ("spec", "form", "name", "path", "rest"),
    [
        ("random", "rule", "random", None, ""),
        ("threshold:l_us=500", "rule", "threshold", None, ":l_us=500"),
        ("native:pie", "native", "native", None, ":pie"),
        ("folder", "saved", "", "folder", ""),
        ("folder,rule=argmax", "saved", "", "folder", ",rule=argmax"),
        ("./random,rule=argmax", "saved", "", "random", ",rule=argmax"),
        ("no/such/folder", "saved", "", "no/such/folder", ""),
        ("bc", "module", "bc", None, ""),
        ("bc:folder", "saved", "bc", "folder", ""),
        ("bc:", "saved", "bc", None, ""),
        ("a.b:KIND:folder,rule=argmax", "saved", "a.b:KIND", "folder", ",rule=argmax"),
        ("a/b.py:Mine", "file", "", "a/b.py", ":Mine"),
        ("a.b:Mine", "module", "a.b", None, ":Mine"),
        ("nobody", "module", "nobody", None, ""),
        ("", "module", "", None, ""),
    ],
)
def test_forms(
    spec: str, form: str, name: str, path: str | None, rest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders named like a rule, like the discipline's prefix and like a kind of agent change nothing."""
    monkeypatch.chdir(tmp_path)
    for folder in ("random", "native", "threshold", "folder"):
        Path(folder).mkdir()
    found = AgentSpec.parse(spec)
    assert (found.form, found.name, found.path, found.rest) == (form, name, path and Path(path), rest)
    assert AgentSpec.parse(str(found)) == found
    assert found.native == ("pie" if form == "native" else None)


def test_a_folder_named_like_a_rule_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = AgentSpec.parse("random").digest()
    (tmp_path / "random").mkdir()
    monkeypatch.chdir(tmp_path)
    assert AgentSpec.parse("random").digest() == wanted and agents.make("random").name == "random"
    for use in (AgentSpec.digest, AgentSpec.make):
        with pytest.raises(L4SError, match=r"random.agent\.json: cannot be read"):
            use(AgentSpec.parse("./random"))


def test_a_digest_is_of_the_source(tmp_path: Path) -> None:
    """Of an agent, and of a discipline from elsewhere: cells that are kept are of another one after a change."""
    file, found = tmp_path / "mine.py", []
    for text in ("x = 1", "x = 2"):
        file.write_text(text)
        found += [AgentSpec.parse(spec).digest() for spec in (f"{file}:Mine", f"native:{file}:Mine")]
    assert len(set(found)) == 4


@pytest.mark.parametrize("spec", ["nobody", "", "bc:", "no_such_module:Agent", "no/such.py:Agent"])
def test_what_cannot_be_made_cannot_be_hashed(spec: str) -> None:
    for use in (AgentSpec.digest, AgentSpec.make):
        with pytest.raises(L4SError):
            use(AgentSpec.parse(spec))


def test_a_packed_agent_is_whole(tmp_path: Path, trained: Trained) -> None:
    """Whatever a kind keeps in its folder; what else lies there stays."""
    folder = trained("bc")
    (folder / saved.ADAPTER).mkdir()
    try:
        for name in (saved.ADAPTER_WEIGHTS, f"{saved.ADAPTER}/adapter_config.json", "events.tfevents"):
            (folder / name).write_text(name)
        spec = AgentSpec.parse(f"bc:{folder},rule=argmax")
        (tmp_path / "there").mkdir()
        sent = spec.unpack(spec.pack(), tmp_path / "there")
    finally:
        (folder / "events.tfevents").unlink()
        for path in (folder / saved.ADAPTER).iterdir():
            path.unlink()
        (folder / saved.ADAPTER).rmdir()
    assert sent.path == tmp_path / "there" / "bc"
    there = {path.relative_to(sent.path).as_posix() for path in sent.path.rglob("*") if path.is_file()}
    names = {saved.ABOUT, saved.WEIGHTS, saved.CARD, saved.ADAPTER_WEIGHTS, f"{saved.ADAPTER}/adapter_config.json"}
    assert there == names
    assert (sent.digest(), sent.make().name) == (spec.digest(), "bc:bc")


def test_a_file_that_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "here" / "mine.py"
    file.parent.mkdir()
    file.write_text("from l4s_gym.agents import RandomAgent as Mine")
    spec = AgentSpec.parse(f"{file}:Mine")
    sent = spec.unpack(spec.pack(), tmp_path)
    assert sent.path == tmp_path / "mine.py"
    assert (sent.digest(), sent.make().name) == (spec.digest(), "random")
    assert AgentSpec.parse("native:pie").pack() == {}


def test_an_agent_with_adapters_decides_elsewhere(dataset: str, tmp_path: Path) -> None:
    if "llm" not in TINY:
        pytest.skip("needs peft")
    config = training.merged(TINY["llm"], {"model": {"lora": {"rank": 2}}})
    training.learner("llm").train(dataset, config, tmp_path / "here" / "lora")
    spec = AgentSpec.of_folder(tmp_path / "here" / "lora", "rule=argmax")
    sent = spec.unpack(spec.pack(), tmp_path)
    assert sent.digest() == spec.digest()
    assert (sent.make().rule, sent.make().name) == ("argmax", "llm:lora")


def test_a_kind_from_elsewhere(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_kind.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_kind", raising=False)
    name = "outside_kind:KIND"
    try:
        assert training.learner(name).trained  # type: ignore[attr-defined]
        loaded = saved.read(trained("bc"))
        saved.write(tmp_path / "x", kind=name, config=loaded.config, tensors=loaded.tensors)
        KINDS.pop(name)  # as in another process
        with pytest.raises(L4SError, match="unknown kind of agent 'outside_kind:KIND'"):
            agents.make(str(tmp_path / "x"))  # what a folder says is not imported
        spec = AgentSpec.of_folder(tmp_path / "x", "rule=argmax", name)
        assert AgentSpec.parse(str(spec)) == spec and spec.digest()
        KINDS.pop(name)
        assert spec.make().name == f"{name}:x"
        with pytest.raises(L4SError, match="is a type: give an AgentKind"):
            training.learner("outside_kind:LEARNER")
    finally:
        KINDS.pop(name, None)
