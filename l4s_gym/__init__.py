"""L4S DualPI2 as a Gymnasium environment.

```python
import gymnasium as gym

env = gym.make("l4s_gym:L4S-DualPI2-v0", scenario="l4s-llm-testbed")
```
"""

from gymnasium.envs.registration import register, registry

from l4s_gym.errors import L4SError

__version__ = "0.1.0"

ENV_IDS = ("L4S-DualPI2-v0", "L4S-DualPI2-Prob-v0")
"""The simulated environments."""
LIVE_ID = "L4S-DualPI2-Live-v0"
"""The same contract on a real queue."""


def _register() -> None:
    """Register the environments; a second import changes nothing."""
    if ENV_IDS[0] not in registry:
        register(
            id=ENV_IDS[0],
            entry_point="l4s_gym.envs.dualpi2:DualPI2Env",
            vector_entry_point="l4s_gym.envs.vector:DualPI2VectorEnv",
        )
    if ENV_IDS[1] not in registry:
        register(id=ENV_IDS[1], entry_point="l4s_gym.envs.prob:DualPI2ProbEnv")
    if LIVE_ID not in registry:
        register(id=LIVE_ID, entry_point="l4s_gym.envs.live:DualPI2LiveEnv", nondeterministic=True)


_register()

__all__ = ["ENV_IDS", "LIVE_ID", "L4SError", "__version__"]
