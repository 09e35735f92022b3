"""L4S DualPI2 as a Gymnasium environment.

```python
import gymnasium as gym

env = gym.make("l4s_gym:L4S-DualPI2-v0", scenario="l4s-llm-testbed")
```
"""

from typing import Any

from gymnasium.envs.registration import register, registry

from l4s_gym.errors import L4SError

__version__ = "0.1.0"

ENV_IDS = ("L4S-DualPI2-v0", "L4S-DualPI2-Prob-v0", "L4S-DualPI2-Tune-v0")
"""The simulated environments."""
REPLAY_ID = "L4S-DualPI2-Replay-v0"
"""The environment that plays back logged decisions."""
LIVE_ID = "L4S-DualPI2-Live-v0"
"""The environment on a real queue."""

_BARE = {"order_enforce": False, "disable_env_checker": True}
"""No wrappers: they cost a fifth of a step, and the simulated environments check the same things themselves."""
_SPECS: dict[str, dict[str, Any]] = {
    ENV_IDS[0]: {
        "entry_point": "l4s_gym.envs.dualpi2:DualPI2Env",
        "vector_entry_point": "l4s_gym.envs.vector:DualPI2VectorEnv",
        **_BARE,
    },
    ENV_IDS[1]: {
        "entry_point": "l4s_gym.envs.prob:DualPI2ProbEnv",
        "vector_entry_point": "l4s_gym.envs.prob:DualPI2ProbVectorEnv",
        **_BARE,
    },
    ENV_IDS[2]: {
        "entry_point": "l4s_gym.envs.tune:DualPI2TuneEnv",
        "vector_entry_point": "l4s_gym.envs.tune:DualPI2TuneVectorEnv",
        **_BARE,
    },
    REPLAY_ID: {"entry_point": "l4s_gym.envs.replay:DualPI2ReplayEnv"},
    LIVE_ID: {"entry_point": "l4s_gym.live.parameters:live_env", "nondeterministic": True},
}


def _register() -> None:
    """Register the environments; a second import changes nothing."""
    for env_id, spec in _SPECS.items():
        if env_id not in registry:
            register(id=env_id, **spec)


_register()

__all__ = ["ENV_IDS", "LIVE_ID", "REPLAY_ID", "L4SError", "__version__"]
