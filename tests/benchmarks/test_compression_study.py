"""The study of compression: what it has done it does not do again, and what its table says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _name in ("torch", "transformers", "onnx", "onnxruntime"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'l4s-gym[llm,compress]'")

from l4s_gym import L4SError  # noqa: E402
from l4s_gym.agents.llm import compression  # noqa: E402
from l4s_gym.agents.llm.steps import STEPS  # noqa: E402

FILE = Path(__file__).parents[2] / "benchmarks" / "studies" / "compression" / "run.py"


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(FILE), run_name="script")
    done: list[str] = []

    def compress(folder: Path, recipe: dict[str, Any], out: Path, *, place: str, played: Any) -> dict[str, Any]:
        done.append(place)
        return {"parameters": 500, "bytes": 1000, "products": 3_000_000, "missed": 0.25}

    class Agent:
        def cost(self) -> dict[str, float]:
            return {"parameters": 1000.0}

    names = script["main"].__globals__
    monkeypatch.setattr(compression, "compress", compress)
    monkeypatch.setitem(names, "recorded", lambda *_: None)
    monkeypatch.setitem(names, "latency", lambda _: (1.5, 2.5))
    monkeypatch.setitem(names, "scores", lambda *_: np.array([[90.0, 100.0], [100.0, 110.0]]))
    monkeypatch.setattr(names["agents"], "make", lambda _: Agent())
    monkeypatch.setattr(names["agents"].AgentSpec, "digest", lambda spec: str(spec.path))
    for agents in (("Toy=toy",), ("Toy=toy",), ("Other=other",)):
        options = script["Options"](
            agents=agents, only=(script["TRAINED"], "4 bits"), work=tmp_path / "work", out=tmp_path / "out"
        )
        script["main"](options)
    assert done == ["4 bits", "4 bits"]
    page = (tmp_path / "out" / "compression.md").read_text()
    assert page.index("## Toy") < page.index("## Other")
    assert "| 4 bits | 500 | 0.00 | 75 | 3.0 | 1.50 | 2.50 | 25.00 | 100.0 [" in page
    assert len(json.loads((tmp_path / "out" / "compression.json").read_text())) == 3
    with pytest.raises(L4SError, match="recipe '5 bits'"):
        script["main"](script["Options"](agents=("Toy=x",), only=("5 bits",)))
    with pytest.raises(L4SError, match="give agents, NAME=FOLDER"):
        script["main"](script["Options"](agents=("runs/llm",)))


def test_recipes_of_the_study_can_be_read() -> None:
    script = runpy.run_path(str(FILE), run_name="script")
    recipes = script["read_toml"](script["Options"]().recipes)
    kinds = {step["kind"] for name, each in recipes.items() for step in compression.parsed(each, name)[0].steps}
    assert kinds == set(STEPS) - {"window"}
    assert all(compression.parsed(script["quickened"](each), name) for name, each in recipes.items())
