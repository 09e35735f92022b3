"""Agents on a hub: the round trip with the hub's own client, against a local service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import L4SError, agents
from tests.data.hub import TOKEN, Hub, serve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
hf: Any = pytest.importorskip("huggingface_hub")
constants: Any = pytest.importorskip("huggingface_hub.constants")

from l4s_gym.agents.llm import saving  # noqa: E402

# The hub's client sends files in a way that its own HTTP library has given up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The service, and the hub's client turned to it (it reads its environment when it is imported)."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve() as service:
        settings = {"ENDPOINT": service.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        settings["HUGGINGFACE_CO_URL_TEMPLATE"] = service.url + "/{repo_id}/resolve/{revision}/{filename}"
        settings |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN_PATH": str(tmp_path / "token")}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        yield service
        hf.close_session()


def test_what_was_sent_is_fetched(hub: Hub, make_model: Any, make_batch: Any, tmp_path: Path) -> None:
    model, batch = make_model(), make_batch()
    for seed in (1, 2):  # the second time it is there
        url = saving.push_to_hub(model, "lab/agent", training={"seed": seed})
    assert url == f"{hub.url}/lab/agent"
    assert set(hub.repos["lab/agent"]) >= {"README.md", "agent.json", "weights.safetensors"}
    folder = saving.fetch("lab/agent")
    loaded = saving.load(folder)
    with torch.no_grad():
        assert torch.equal(loaded.model(*batch), model(*batch))
    assert loaded.training == {"seed": 2}
    agent: Any = agents.make(f"llm:{folder},rule=argmax")
    assert (agent.rule, agent.training) == ("argmax", {"seed": 2})


def test_refusals_are_one_clear_error(hub: Hub, make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(L4SError, match=r"hub: lab/nothing: .*check name, revision") as caught:
        saving.fetch("lab/nothing")
    assert "\n" not in str(caught.value)
    hub.fail["commit"] = 500
    with pytest.raises(L4SError, match=r"hub: lab/agent: .*500.*check name, token"):
        saving.push_to_hub(make_model(), "lab/agent")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(L4SError, match=r"hub: lab/agent: .*401.*check name, token"):
        saving.push_to_hub(make_model(), "lab/agent")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(L4SError, match=r"hub: lab/agent: .*check name, revision"):
        saving.fetch("lab/agent")
