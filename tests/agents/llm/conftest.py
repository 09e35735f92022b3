"""What the tests of the LLM agent share: tiny configurations, models that attention matters in, sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from l4s_gym.agents.llm import fast  # noqa: E402
from l4s_gym.agents.llm.network import DecisionModel  # noqa: E402
from l4s_gym.agents.llm.settings import BackboneConfig, EncoderConfig, LLMConfig, LoraConfig  # noqa: E402


class Batch(NamedTuple):
    """The arguments of `DecisionModel.forward`."""

    returns: Any
    observations: Any
    actions: Any
    timesteps: Any
    mask: Any
    missing: Any

    def cut(self, rows: slice = slice(None), steps: slice = slice(None)) -> Batch:
        """Some rows and steps."""
        return Batch(*(each[rows, steps] for each in self))


def make_config(family: str = "gpt2", **options: Any) -> LLMConfig:
    """A tiny configuration; `t5d` is T5 with its decoder. Options of the backbone are taken out of the others."""
    backbone = {"hidden": 16, "layers": 2, "heads": 2, "positions": 48, "dropout": 0.0}
    for name in BackboneConfig.__dataclass_fields__:
        if name in options:
            backbone[name] = options.pop(name)
    chosen: dict[str, Any] = {"window": 4, "lora": LoraConfig(rank=2), "encoder": EncoderConfig(hidden=8)}
    decoder = family == "t5d"
    return LLMConfig(
        backbone=BackboneConfig(family="t5" if decoder else family, decoder=decoder, **backbone),  # type: ignore[arg-type]
        **chosen | options,
    )


def make_model(config: LLMConfig | str = "gpt2", **options: Any) -> DecisionModel:
    """A model in `eval` mode whose weights are large enough that attention and positions show in the logits."""
    torch.manual_seed(0)
    model = DecisionModel(make_config(config, **options) if isinstance(config, str) else config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("backbone") and parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model


def make_batch(rows: int = 2, steps: int = 12, seed: int = 0, share: float = 0.2) -> Batch:
    """Random sequences from timestep 0 on; a share of the values is missing."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.rand(rows, steps, 8, generator=generator)
    missing = torch.rand(rows, steps, generator=generator) < share
    observations[..., 4][missing] = torch.nan  # a value that is missing is not read
    return Batch(
        torch.randn(rows, steps, generator=generator),
        observations,
        torch.randint(0, 3, (rows, steps), generator=generator),
        torch.arange(steps).repeat(rows, 1),
        torch.ones(rows, steps, dtype=torch.bool),
        missing,
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices: more threads only wait for each other. And the generator is as it was, afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(name="make_config")
def _make_config() -> Callable[..., LLMConfig]:
    """`make_config`."""
    return make_config


@pytest.fixture(name="make_model")
def _make_model() -> Callable[..., DecisionModel]:
    """`make_model`."""
    return make_model


@pytest.fixture(name="make_batch")
def _make_batch() -> Callable[..., Batch]:
    """`make_batch`."""
    return make_batch


@pytest.fixture
def stream() -> Callable[..., Any]:
    """A function that decides step by step over a batch: logits (B, K, 3); with `plain` never in compiled code."""

    def run(model: DecisionModel, batch: Batch, *, plain: bool = False) -> Any:
        n = len(batch.returns)
        step = functools.partial(model.step, model.start(n)) if plain else fast.start(model, n)
        logits = []
        for k in range(batch.returns.shape[1]):
            previous = batch.actions[:, k - 1] if k else torch.full((n,), -7)
            logits.append(step(batch.returns[:, k], batch.observations[:, k], previous))
        return torch.stack(logits, 1)

    return run
