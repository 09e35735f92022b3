"""The agent with the text head: it is told the state in words, and its answer is read.

Each decision is asked about by itself: the prompt says the packet's state and the return that is left to reach, not
what came before. An answer that names no action counts as "enqueue", and is counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from l4s_gym.agents.llm.agent import Target, len_of, placed
from l4s_gym.agents.llm.text import ANSWER_TOKENS, TextModel, prompt
from l4s_gym.agents.protocol import Actions, Floats, Observations, check_batch
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError, unknown

RULES: Final = ("sample", "argmax")
"""How tokens are chosen. `diffuse` needs the probabilities of actions, which an answer does not have."""
_STREAM: Final = 0x746578
_PROMPTS: Final = 64


class TextAgent:
    """A trained language model that writes what is to be done.

    Attributes:
        model: In `eval` mode.
        target: What it is to reach.
        training: What is known about its training.
        counts: Since `reset`: decisions (`asked`), those whose answer named no action (`invalid`), and the `tokens` of
            all answers. Each `reset` begins a new one.
    """

    def __init__(
        self,
        model: TextModel,
        target: Target,
        *,
        rule: str = "sample",
        name: str = "llm",
        device: str = "cpu",
        parameters: tuple[int, int] | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Wrap a model; the arguments are those of `LLMAgent`, the rule is one of `RULES`."""
        if rule not in RULES:
            raise unknown("decision rule of an agent that writes", rule, RULES)
        self.rule, self.name, self.target = rule, name, target
        self.training = {} if training is None else training
        self._parameters = (len_of(model), len_of(model, trained=True)) if parameters is None else parameters
        self.model = placed(model, device)
        self.reset(1, 0)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        if n < 1:
            raise L4SError(f"n={n}: give 1 or more environments")
        self.model.eval()
        self._draws = [np.random.default_rng([seed + i, _STREAM]) for i in range(n)]
        self._left, self._first = np.full(n, self.target.value), True
        self.counts = Counter[str]()

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Actions (n,) as they are written."""
        check_batch(obs, len(self._left))
        if not self._first:
            self._left = self.target.left(self._left, rewards, self.model.config.gamma)
        self._first = False
        prompts = [prompt(row, left) for row, left in zip(obs, self._left.tolist(), strict=True)]
        draws = np.stack([rng.random(ANSWER_TOKENS) for rng in self._draws]) if self.rule == "sample" else None
        answers = self.model.ask(prompts, draws)
        invalid, tokens = int((~answers.valid).sum()), int(answers.tokens.sum())
        self.counts.update(asked=len(prompts), invalid=invalid, tokens=tokens)
        return answers.actions

    def logged_probabilities(self, logged: Trajectory, index: npt.NDArray[np.int64]) -> Floats:
        """Probabilities (B, 3) of the actions in answers that name one, given the returns that followed."""
        left = logged.returns_to_go(self.model.config.gamma)
        found = [np.zeros((0, 3))]
        with torch.inference_mode():
            for at in range(0, len(index), _PROMPTS):
                some = index[at : at + _PROMPTS].tolist()
                scores = self.model.scores([prompt(logged.observations[step], left[step]) for step in some])
                found.append(scores.double().softmax(-1).cpu().numpy())
        return np.concatenate(found)

    def cost(self) -> dict[str, float]:
        """Numbers of parameters."""
        parameters, trainable = self._parameters
        return {"parameters": float(parameters), "trainable_parameters": float(trainable)}
