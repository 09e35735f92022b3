"""The speed benchmark's measuring process answers, and finds other commits; its figures are nobody's promise."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from l4s_gym.errors import L4SError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def speed() -> Any:
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("speed", ROOT / "benchmarks" / "studies" / "speed" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["speed"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_side_answers(speed: Any) -> None:
    side = speed.Side("ours", ROOT)
    asked: list[tuple[str, dict[str, Any]]] = [
        ("native", {"what": "l4s-llm-testbed", "aqm": "pie", "least_s": 1e-9}),
        ("native", {"what": json.dumps(next(speed.grid())), "least_s": 1e-9}),
        ("steps", {"env_id": speed.OURS, "count": 50}),
        ("steps", {"env_id": speed.CARTPOLE, "count": 50}),
        ("vector", {"n": 128, "threads": True, "count": 2}),
        ("vector", {"n": 128, "threads": False, "count": 2}),
    ]
    for row, arguments in asked:
        sample = side.sample(row, **arguments)
        assert sample["work"] > 0 and sample["wall_s"] > 0.0 and sample["cpu_s"] >= 0.0
    side.close()


def test_another_commit(speed: Any) -> None:
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse"], capture_output=True, check=False).returncode:
        pytest.skip("this is no checkout of a repository")
    with speed.tree_of("HEAD") as tree:
        assert (tree / "l4s_gym" / "sim" / "engine.py").is_file()
    assert not tree.exists()
    with pytest.raises(L4SError, match=r"--against nonsense: .*: name a commit"), speed.tree_of("nonsense"):
        pass
