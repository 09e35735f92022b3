"""What the logits of a step depend on: its past, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from l4s_gym import L4SError

torch = pytest.importorskip("torch")

FAMILIES = ("gpt2", "llama", "t5", "t5d")


def _logits(model: Any, batch: Any) -> Any:
    with torch.no_grad():
        return model(*batch)


def _moved(a: Any, b: Any) -> list[bool]:
    """Steps at which logits differ."""
    moved: list[bool] = ((a - b).abs().amax((0, 2)) > 1e-5).tolist()
    return moved


@pytest.mark.parametrize("layout", ["fused", "features"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_leaks(family: str, layout: str, make_model: Any, make_batch: Any) -> None:
    """A change at step 5 of returns or observations shows from step 5 on, of the action from step 6 on."""
    model, batch = make_model(family, layout=layout), make_batch(steps=9)
    before = _logits(model, batch)
    actions = batch.actions.clone()
    actions[:, 5] = (actions[:, 5] + 1) % 3
    assert _moved(_logits(model, batch._replace(actions=actions)), before) == [False] * 6 + [True] * 3
    returns = batch.returns.clone()
    returns[:, 5] += 1
    assert _moved(_logits(model, batch._replace(returns=returns)), before) == [False] * 5 + [True] * 4
    for index in range(8):
        observations = batch.observations.clone()
        observations[:, 5, index] += 0.5
        missing = batch.missing.clone()
        missing[:, 5] = False
        clean = batch._replace(missing=missing, observations=batch.observations.nan_to_num(0.2))
        moved = _moved(_logits(model, clean._replace(observations=observations.nan_to_num(0.2))), _logits(model, clean))
        assert moved[:5] == [False] * 5 and moved[5]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_do_not_leak(family: str, make_model: Any, make_batch: Any) -> None:
    """The same for every input at once, and with the dropout and the state of training."""
    model, batch = make_model(family, dropout=0.1).train(), make_batch(steps=8)
    returns = batch.returns.clone().requires_grad_()
    observations = batch.observations.nan_to_num(0.0).requires_grad_()
    embedded: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        output.retain_grad()
        embedded.append(output)

    model.embed_action.register_forward_hook(keep)
    model(returns, observations, *batch[2:])[:, 4].sum().backward()
    for gradient in (returns.grad, observations.grad, embedded[0].grad):
        assert gradient is not None
        assert (gradient[:, 5:] == 0).all()
        assert (gradient[:, 4].reshape(2, -1).abs().sum(1) > 0).all()


def test_the_reach_of_a_window(make_model: Any, make_batch: Any) -> None:
    """With L layers, windows of w and encoders that look back r steps: (w - 1) L + r steps before, and no more."""
    model, batch = make_model(), make_batch(rows=1, steps=30)
    reach = 3 * 2 + 8
    before = _logits(model, batch)
    returns = batch.returns.clone()
    returns[:, 3] += 1
    moved = _moved(_logits(model, batch._replace(returns=returns)), before)
    assert moved == [3 <= k <= 3 + 6 for k in range(30)]
    observations = batch.observations.nan_to_num(0.3)
    changed = observations.clone()
    changed[:, 3] += 1
    clean = batch._replace(missing=None, observations=observations)
    moved = _moved(_logits(model, clean._replace(observations=changed)), _logits(model, clean))
    assert moved[3] and not any(moved[:3]) and not any(moved[3 + reach + 1 :]) and moved[3 + 7]


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "t5", "t5d"])
def test_padding_does_not_matter(family: str, make_model: Any, make_batch: Any) -> None:
    """On either side, whatever it holds."""
    model, batch = make_model(family), make_batch(steps=10)
    before = _logits(model, batch)
    padding = make_batch(steps=4, seed=1)
    hidden = torch.zeros(2, 4, dtype=torch.bool)
    padding = padding._replace(mask=hidden, returns=padding.returns * torch.nan)
    for order, shown in (((padding, batch), slice(4, None)), ((batch, padding), slice(0, 10))):
        joined = type(batch)(*(torch.cat(parts, 1) for parts in zip(*order, strict=True)))
        logits = _logits(model, joined)
        torch.testing.assert_close(logits[:, shown], before, atol=1e-4, rtol=0)
        assert torch.isfinite(logits).all()


def test_hidden_steps_in_between_are_not_seen(make_model: Any, make_batch: Any) -> None:
    """Temporal dropout: return, observation and action of a hidden step reach no other step."""
    model, batch = make_model(), make_batch(steps=10)
    mask = batch.mask.clone()
    mask[:, 4] = False
    batch = batch._replace(mask=mask)
    before = _logits(model, batch)
    returns, actions = batch.returns.clone(), batch.actions.clone()
    observations = batch.observations.clone()
    returns[:, 4], observations[:, 4], actions[:, 4] = torch.nan, torch.nan, -1
    after = _logits(model, batch._replace(returns=returns, observations=observations, actions=actions))
    assert not any(_moved(after, before))
    actions = batch.actions.clone()
    actions[:, 3] = (actions[:, 3] + 1) % 3  # that of the step before is still seen
    assert _moved(_logits(model, batch._replace(actions=actions)), before)[5]


def test_rows_do_not_see_each_other(make_model: Any, make_batch: Any) -> None:
    model, batch = make_model(), make_batch(rows=3)
    together = _logits(model, batch)
    alone = torch.cat([_logits(model, batch.cut(slice(row, row + 1))) for row in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_timesteps_and_return_scale_are_read(make_model: Any, make_batch: Any) -> None:
    """By a backbone that knows no absolute positions."""
    model, batch = make_model("llama"), make_batch()
    before = _logits(model, batch)
    assert all(_moved(_logits(model, batch._replace(timesteps=batch.timesteps + 5)), before))
    assert not any(_moved(_logits(model, batch._replace(timesteps=batch.timesteps + 1024)), before))
    scaled = make_model("llama", return_scale=4.0)
    torch.testing.assert_close(_logits(scaled, batch._replace(returns=batch.returns * 4)), before)


def test_models_are_made_from_seeds(make_model: Any, make_config: Any) -> None:
    """The backbone from its own, whatever the generator's state; the rest from the generator."""
    from l4s_gym.agents.llm.network import DecisionModel

    torch.manual_seed(1)
    one = DecisionModel(make_config())
    torch.manual_seed(2)
    two = DecisionModel(make_config())
    other = DecisionModel(make_config(seed=3))
    first, second = (each.backbone.core.h[0].mlp.c_fc.weight for each in (one, two))
    assert torch.equal(first, second) and not torch.equal(first, other.backbone.core.h[0].mlp.c_fc.weight)
    assert not torch.equal(one.head.weight, two.head.weight)


def test_all_that_should_train_does(make_config: Any, make_batch: Any) -> None:
    """Every parameter that is not frozen has a gradient (once LoRA's second factor is not zero)."""
    from l4s_gym.agents.llm.network import DecisionModel

    for family in FAMILIES:
        for freeze in (True, False):
            model = DecisionModel(make_config(family, freeze=freeze))
            trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_()
            model(*make_batch(steps=6)).square().sum().backward()
            for name, parameter in model.named_parameters():
                own = not name.startswith("backbone.") or ".lora_" in name
                words = name.endswith(("wte.weight", "shared.weight", "embed_tokens.weight"))
                assert (id(parameter) in trained) == (own or not (freeze or words)), name
                assert (parameter.grad is not None) == (id(parameter) in trained), name


def test_checkpointing_gives_the_same_gradients(make_config: Any, make_batch: Any) -> None:
    from l4s_gym.agents.llm.network import DecisionModel

    for family in ("gpt2", "llama", "t5d"):
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            model = DecisionModel(make_config(family, checkpointing=checkpointing)).train()
            model(*make_batch(steps=6)).square().sum().backward()
            gradients.append(model.embed_return.weight.grad)
        torch.testing.assert_close(*gradients)


def test_half_precision(make_model: Any, make_batch: Any, stream: Any) -> None:
    """The backbone in bfloat16, our own parts and the logits in float32."""
    model, batch = make_model(dtype="bfloat16"), make_batch(share=0.0, steps=8)
    logits = _logits(model, batch)
    assert logits.dtype == torch.float32 and model.head.weight.dtype == torch.float32
    assert model.backbone.core.h[0].mlp.c_fc.weight.dtype == torch.bfloat16
    torch.testing.assert_close(stream(model, batch), logits, atol=0.15, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_mixed_precision(family: str, make_model: Any, make_batch: Any) -> None:
    """Under autocast, as training uses it: the mask still hides what it should, and nothing overflows."""
    model, batch = make_model(family), make_batch(steps=9)
    exact = _logits(model, batch)
    actions = batch.actions.clone()
    actions[:, 5] = (actions[:, 5] + 1) % 3
    with torch.autocast("cpu", torch.bfloat16):
        logits = _logits(model, batch)
        moved = _moved(_logits(model, batch._replace(actions=actions)), logits)
    assert moved[:6] == [False] * 6 and any(moved[6:])
    assert (logits.float() - exact).abs().mean() < 0.2 * exact.std()


def test_the_window_must_fit_the_positions(make_config: Any) -> None:
    from l4s_gym.agents.llm.network import DecisionModel

    with pytest.raises(L4SError, match="takes 51 positions, the backbone has 48: shorten the window"):
        DecisionModel(make_config(window=17))
    DecisionModel(make_config("llama", window=17))  # has no table of positions
