"""Datasets of control intervals: what is drawn, that they are the same again, and how they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

for _name, _extra in (("minari", "data"), ("matplotlib", "report")):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'l4s-gym[{_extra}]'")

from l4s_gym import L4SError, cli, rewards  # noqa: E402
from l4s_gym.agents import training  # noqa: E402
from l4s_gym.agents.rules import random_agent  # noqa: E402
from l4s_gym.data import arrays, build, card, intervals, minari_io, recipes  # noqa: E402
from l4s_gym.data.intervals import IntervalRun, drawn_actions, steps_of  # noqa: E402
from l4s_gym.data.storage import h5py, row_of  # noqa: E402
from l4s_gym.envs.tune import PARAMETERS  # noqa: E402
from l4s_gym.forms import FORMS  # noqa: E402
from l4s_gym.sim.ranges import training as ranges  # noqa: E402
from l4s_gym.sim.scenario import from_dict, load  # noqa: E402

ID = "l4s/dualpi2/tiny-small-v0"
TOML = """
title = "Tiny"
description = "For tests."
form = "{form}"
scenarios = ["random:train"]
eval_scenario = "lte"
[[behaviours]]
aqm = "dualpi2_rfc9332"
plain = 0.5
low = {low}
[[behaviours]]
aqm = "dualpi2_linux"
redraw_s = 0.1
[small]
episodes = 7
seconds = 1.0
per_shard = 3
[full]
episodes = 200
seconds = 1.0
"""
BOX = {"parameters": [0.25] * 5, "probability": [-0.5] * 2}
"""Lower bounds of the first behaviour."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of datasets of its own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path


def tiny(place: Path, form: str = "parameters") -> recipes.Recipe:
    (place / "recipes" / "tiny").mkdir(parents=True, exist_ok=True)
    (place / "recipes" / "tiny" / recipes.FILE).write_text(TOML.format(form=form, low=BOX[form]))
    return recipes.load("tiny", place / "recipes")


def make(recipe: recipes.Recipe, **options: Any) -> Any:
    return build.build(recipe, "small", **{"workers": 1, **options})


def digests(made: Any) -> dict[str, str]:
    paths = sorted(Path(made.spec.data_path).glob("shard-*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# -- the build


@pytest.mark.parametrize("form", BOX)
def test_a_build_is_a_valid_dataset_of_the_form(place: Path, form: str) -> None:
    made = make(tiny(place, form))
    minari_io.validate(made)
    own, stored = FORMS[form], made.storage.metadata
    assert (stored["form"], stored["control_interval_ms"], made.total_episodes) == (form, 16.0, 7)
    assert made.total_steps == 7 * 63  # the last one is a part of an interval
    assert len(stored["observation_fields"]) == len(stored["observation_units"]) == len(own.features)
    assert len(stored["action_names"]) == len(own.low)
    assert made.spec.env_spec.id.endswith(own.env_id)
    env = made.recover_environment()
    assert env.observation_space == made.observation_space and env.action_space == made.action_space
    assert env.reset(seed=0)[1]["scenario"].startswith("random-")
    assert made.recover_environment(eval_env=True).reset(seed=0)[1]["scenario"] == "lte"
    assert env.spec.kwargs["aqm"] == "dualpi2_rfc9332"
    for episode in made.iterate_episodes():
        assert episode.observations.shape == (64, len(own.features)) and episode.observations.dtype == np.float32
        assert episode.actions.shape == (63, len(own.low)) and episode.actions.dtype == np.float32
        assert set(episode.infos["components"]) == set(rewards.COMPONENTS)


def test_the_environment_has_the_options_of_the_law(place: Path) -> None:
    """Factors of parameters are of those that the data's law has, not of the defaults."""
    recipe = tiny(place)
    law = msgspec.structs.replace(recipe.behaviours[0], options={"target_ms": 3.2})
    made = make(msgspec.structs.replace(recipe, behaviours=(law,)))
    for evaluated in (False, True):
        env = made.recover_environment(eval_env=evaluated).unwrapped
        assert env.spec.kwargs["options"] == {"dualpi2_rfc9332": {"target_ms": 3.2}}
        env.reset(seed=0)
        assert env.batch.scenario_of(0).options.dualpi2_rfc9332.target_ms == 3.2
    about = next(iter(made.storage.get_episode_metadata([0])))
    assert msgspec.json.decode(about["scenario_json"])["options"]["dualpi2_rfc9332"]["target_ms"] == 3.2


@pytest.mark.parametrize("form", BOX)
def test_an_episode_is_played_again_from_its_metadata(place: Path, form: str) -> None:
    """In a single environment: the same observations and rewards to the bit; the components give any reward."""
    make(tiny(place, form))
    episodes = training.read_dataset(ID)
    assert len({str(episode.about["scenario"]) for episode in episodes}) == len(episodes)
    for episode in (episodes[1], episodes[2]):
        env = intervals.environment(episode.about, form)
        observation, info = env.reset(seed=int(episode.about["seed"]))
        seen, earned, told = [observation], [], []
        for action in episode.actions:
            observation, reward, _, over, info = env.step(action)
            seen.append(observation)
            earned.append(reward)
            told.append([info["components"][name] for name in rewards.COMPONENTS])
        assert over
        assert np.array_equal(seen, episode.observations) and np.array_equal(earned, episode.rewards)
        columns = np.stack([episode.extras[name] for name in rewards.COMPONENTS], axis=1)
        assert np.array_equal(columns[1:], np.array(told, np.float32)) and not columns[0].any()
        weights = rewards.WEIGHTS[rewards.DEFAULT]
        summed = sum(weight * episode.extras[name][1:] for name, weight in weights.items())
        assert summed == pytest.approx(episode.rewards, abs=1e-8)


@pytest.mark.slow
def test_builds_are_the_same_to_the_bit(place: Path) -> None:
    """With any number of workers, and if one was stopped in between."""
    recipe = tiny(place)
    first = digests(make(recipe))
    assert len(first) == 3
    assert digests(make(recipe, overwrite=True, workers=2)) == first

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(recipe, overwrite=True, progress=stop)
    shares: list[float] = []
    assert digests(make(recipe, overwrite=True, progress=shares.append)) == first
    assert shares == [pytest.approx(2 / 3), pytest.approx(1)]  # the first shard was there


def test_an_episode_does_not_depend_on_its_shard(place: Path) -> None:
    recipe = tiny(place)
    (alone,) = intervals.play([recipes.Task(recipe, "small", 0)._intervals(2)])
    together = list(recipes.Task(recipe, "small", 0).runs())[2]
    rows, other = (np.concatenate(list(run.blocks())) for run in (alone, together))
    assert rows.tobytes() == other.tobytes() and alone.about == together.about


def test_what_is_drawn(place: Path) -> None:
    """The share of plain episodes, the bounds, how often an action changes, and scenarios within the ranges."""
    recipe = tiny(place)
    runs = [recipes.Task(recipe, "full", 0)._intervals(number) for number in range(200)]
    assert [run.flavour for run in runs[:4]] == ["constant", "changing", "plain", "changing"]
    for flavour, aqm in (("plain", "dualpi2_rfc9332"), ("constant", "dualpi2_rfc9332"), ("changing", "dualpi2_linux")):
        chosen = [run for run in runs if run.flavour == flavour]
        assert {run.aqm for run in chosen} == {aqm}
        assert len(chosen) == {"plain": 50, "constant": 50, "changing": 100}[flavour]
        actions = np.stack([run.actions for run in chosen])  # (n, T, 5)
        changes = (np.diff(actions, axis=1) != 0).any(-1)
        if flavour == "changing":
            assert actions.min() < -0.99 and actions.max() > 0.99
            assert changes.mean() == pytest.approx(0.016 / 0.1, rel=0.1)
        else:
            assert not changes.any()
            low, high = (0.0, 0.0) if flavour == "plain" else (0.25, 1.0)
            assert low <= actions.min() and actions.max() <= high
    assert not [run for run in runs if ranges().outside(run.scenario)]
    assert runs[7].scenario == load("random-7").replace(horizon_s=1.0)


def test_groups_differ_in_their_actions_only(place: Path) -> None:
    recipe = msgspec.structs.replace(tiny(place), group=4)
    runs = [recipes.Task(recipe, "full", 0)._intervals(number) for number in range(16)]
    for first in range(0, 16, 4):
        group = runs[first : first + 4]
        assert {(run.seed, run.scenario.name, run.aqm) for run in group} == {
            (first // 4, f"random-{first // 4}", group[0].aqm)
        }
        assert len({run.actions.tobytes() for run in group}) > 1
        times = {(np.diff(run.actions, axis=0) != 0).any(-1).tobytes() for run in group}
        assert len(times) == 1
    assert [run.flavour for run in runs[:4]] == ["constant", "plain"] * 2


def test_options_of_the_law_are_part_of_the_episode(place: Path) -> None:
    """They are in its scenario, so it is played again with them."""
    own = {"target_ms": 5.0}
    recipe = tiny(place)
    behaviours = tuple(msgspec.structs.replace(each, options=own) for each in recipe.behaviours[:1])
    recipe = msgspec.structs.replace(recipe, behaviours=behaviours)
    run = recipes.Task(recipe, "small", 0)._intervals(0)
    assert run.scenario.options.dualpi2_rfc9332.target_ms == 5.0
    told = msgspec.json.decode(run.about["scenario_json"])["options"]["dualpi2_rfc9332"]
    assert told["target_ms"] == 5.0 and "options of its own" in recipe.behaviour_names()[0]
    with pytest.raises(L4SError, match="did you mean 'target_ms'"):
        recipes.BehaviourSpec(aqm="dualpi2_rfc9332", options={"target": 5.0})


def test_the_mixed_law_is_often_near_the_bounds() -> None:
    rng, drawn = np.random.default_rng(0), np.ones(20_000, bool)
    for law, share in (("uniform", 0.1), ("mixed", 0.05 + 2.0 * np.arcsin(np.sqrt(0.05)) / np.pi)):
        actions = drawn_actions([-1.0], [1.0], drawn, rng, law)  # type: ignore[arg-type]
        assert (np.abs(actions) > 0.9).mean() == pytest.approx(share, rel=0.05)


def test_numbers_of_steps() -> None:
    assert [steps_of(20.0, 16.0), steps_of(1.0, 16.0), steps_of(0.016, 16.0), steps_of(60.0, 100.0)] == [
        1250,
        63,
        1,
        600,
    ]
    actions = drawn_actions([-1.0], [1.0], np.ones(5, bool), np.random.default_rng(0))
    assert actions.dtype == np.float32 and len(np.unique(actions)) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form = ": 'form = "packets" # '}, "form"),
        ({"plain = 0.5": "explore = 0.5"}, "explore is for the form packet"),
        ({"plain = 0.5": "plain = 1.5"}, "plain"),
        ({"0.25, 0.25]": "0.25]"}, "give 5 numbers each"),
        ({"[0.25": "[-1.25"}, "within the action space"),
        ({"[0.25": "[1.25"}, "within the action space"),
        ({'form = "parameters"': ""}, "are for a form with control intervals"),
        ({'eval_scenario = "lte"': ""}, "eval_scenario: give one"),
        ({'"random:train"': '"random:test"'}, "random:test"),
    ],
)
def test_bad_recipes(place: Path, changes: dict[str, str], message: str) -> None:
    tiny(place)
    path = place / "recipes" / "tiny" / recipes.FILE
    text = path.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    with pytest.raises(L4SError, match=message):
        recipes.load("tiny", place / "recipes")


def test_packets_of_random_scenarios(place: Path) -> None:
    text = TOML.format(form="packet", low=[]).replace("plain = 0.5", "").replace("redraw_s = 0.1", "explore = 0.1")
    (place / "recipes" / "tiny").mkdir(parents=True)
    (place / "recipes" / "tiny" / recipes.FILE).write_text(text)
    made = make(recipes.load("tiny", place / "recipes"))
    names = [str(note["scenario"]) for note in made.storage.get_episode_metadata(range(7))]
    assert names == [f"random-{seed}" for seed in range(7)]


# -- the card


def test_the_card_says_what_is_in_it(place: Path) -> None:
    recipe = tiny(place)
    made = make(recipe)
    known = card.facts(recipe, "small", Path(made.spec.data_path), None)
    assert (known["episodes"], known["steps"]) == (7, 441)
    assert {name: each["episodes"] for name, each in known["flavours"].items()} == {
        "dualpi2_rfc9332, constant": 2,
        "dualpi2_linux, changing": 3,
        "dualpi2_rfc9332, plain": 2,
    }
    episodes = training.read_dataset(ID)
    assert known["reward"]["mean"] == pytest.approx(np.concatenate([e.rewards for e in episodes]).mean())
    delays = np.concatenate([e.observations[1:, 0] for e in episodes]) * 15.0
    assert known["delay_ms"]["C"][50] == pytest.approx(np.quantile(delays, 0.5), rel=1e-3)
    text = card.render(recipe, {"small": known})
    assert "control interval of 16 ms" in text and all(f"`{name}`" in text for name in PARAMETERS)
    assert card.picture({"small": known}).startswith(b"\x89PNG")


def test_commands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tiny(place))
    assert cli.main(["datasets", "show", ID, "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "parameters" in shown and "valid" in shown and "each 16 ms" in shown
    assert cli.main(["datasets", "list"]) == 0
    assert ID in capsys.readouterr().out
    assert cli.main(["log", "audit", ID]) == 2
    assert "form 'parameters', not 'packet'" in capsys.readouterr().err


# -- reading, and datasets made otherwise


def test_episodes_for_learners(place: Path) -> None:
    make(tiny(place))
    episodes = training.read_dataset(ID, "parameters")
    assert [len(episode) for episode in episodes] == [63] * 7
    first = episodes[0]
    assert first.features == tuple(each.name for each in FORMS["parameters"].features)
    dtypes = [each.dtype.str for each in (first.observations, first.actions, first.rewards)]
    assert dtypes == ["<f4", "<f4", "<f8"]
    windows = first.joined(episodes).windows(np.array([3, 70]), 8)
    assert windows["actions"].shape == (2, 8, 5) and windows["mask"].sum(1).tolist() == [4, 8]
    with pytest.raises(L4SError, match="of the form 'parameters', not 'packet'"):
        training.read_dataset(ID, "packet")
    with pytest.raises(L4SError, match="of the form 'parameters', not 'packet'"):
        arrays.episodes(ID)


def test_a_buffer_for_d3rlpy(place: Path) -> None:
    d3rlpy = pytest.importorskip("d3rlpy", reason="needs d3rlpy: pip install 'l4s-gym[baselines]'")
    from l4s_gym.data.d3rlpy_io import check_buffer, replay_buffer

    made = make(tiny(place))
    buffer = replay_buffer(made)
    info = buffer.dataset_info
    assert (info.action_space, info.action_size) == (d3rlpy.ActionSpace.CONTINUOUS, 5)
    batch = buffer.sample_transition_batch(16)
    assert batch.observations.shape == (16, 29) and batch.actions.shape == (16, 5)
    episodes = training.read_dataset(ID)
    shifted = [replace(each, actions=np.roll(each.actions, 1, axis=0)) for each in episodes]
    with pytest.raises(L4SError, match="differs from its source"):
        check_buffer(buffer, shifted)


def test_wrong_episodes_are_refused(place: Path) -> None:
    make(tiny(place))
    good = training.read_dataset(ID)[0]

    def create(episode: Any) -> Any:
        how: dict[str, Any] = {"algorithm_name": "none", "description": "for tests", "reward": "fair"}
        return minari_io.create("l4s/dualpi2/own-v0", [episode], form="parameters", overwrite=True, **how)

    (again,) = minari_io.read_episodes(create(good))
    assert np.array_equal(again.actions, good.actions) and np.array_equal(again.observations, good.observations)
    assert all(np.array_equal(again.extras[name], good.extras[name]) for name in rewards.COMPONENTS)
    high, negative = good.observations.copy(), good.observations.copy()
    high[3, 28], negative[2, 0] = 17.0, -1.0
    for wrong, message in (
        (replace(good, actions=good.actions[:, :4]), r"actions must be an array \(63, 5\) of float32, not \(63, 4\)"),
        (replace(good, actions=good.actions.astype(np.float64)), "not .* float64"),
        (replace(good, actions=good.actions * np.float32(3.0)), "outside the action space"),
        (replace(good, actions=good.actions * np.float32(np.nan)), "outside the action space"),
        (replace(good, observations=good.observations[:-1]), r"observations must be an array \(64, 29\)"),
        (replace(good, observations=high), "rate of observation 3 is 17, outside 0 to 16"),
        (replace(good, observations=negative), "delay_c of observation 2 is -1"),
        (replace(good, rewards=good.rewards * np.inf), "not finite"),
    ):
        with pytest.raises(L4SError, match=message):
            create(wrong)


def test_a_damaged_dataset_is_found(place: Path) -> None:
    made = make(tiny(place))
    with h5py().File(Path(made.spec.data_path) / "shard-00001.hdf5", "r+") as file:
        file["episode_4/actions"][5, 2] = 1.5
    with pytest.raises(L4SError, match=r"episode 4: actions at \[5, 2\] is 1.5"):
        minari_io.validate(minari_io.load(ID))


def test_rows_have_what_is_stored() -> None:
    assert row_of("parameters").names == ("observation", "action", "reward", *rewards.COMPONENTS)
    assert row_of("parameters")["action"].shape == (5,) and row_of("probability")["action"].shape == (2,)


@pytest.mark.parametrize("form", BOX)
def test_what_an_agent_collects(place: Path, form: str) -> None:
    for name in ("torch", "transformers", "peft", "accelerate"):
        pytest.importorskip(name, reason=f"needs {name}: pip install 'l4s-gym[llm,data]'")
    from l4s_gym import netllm

    agent = random_agent(form)
    made = netllm.rl_collect("lte", agent, 2, ID, seed=3, seconds=1.0)
    minari_io.validate(made)
    assert made.storage.metadata["form"] == form
    first, second = minari_io.read_episodes(made)
    assert first.actions.shape == (63, len(FORMS[form].low)) and not np.array_equal(first.actions, second.actions)
    summed = first.extras["evenness"] - 0.25 * (first.extras["delay_c"] + first.extras["delay_l"])
    assert summed[1:] == pytest.approx(first.rewards, abs=1e-8)
    env = made.recover_environment()
    given = netllm.rl_collect(env, agent, 1, ID, seed=3, overwrite=True)
    (again,) = minari_io.read_episodes(given)
    assert np.array_equal(again.rewards, first.rewards)
    assert given.storage.metadata["control_interval_ms"] == again.about["control_interval_ms"] == 16.0


def test_runs_that_end_early() -> None:
    """Beside one that goes on, in a vector environment; what comes after its end is not recorded."""
    short = from_dict({"name": "short", "sources": [{"kind": "cubic", "transfer_bytes": 30_000}], "horizon_s": 2.0})
    long = from_dict({"name": "long", "sources": [{"kind": "cubic"}], "horizon_s": 2.0})
    actions = np.zeros((125, 5), np.float32)

    def run(scenarios: Sequence[Any]) -> list[Any]:
        made = [IntervalRun(each, "dualpi2_rfc9332", 1, actions, "plain", "parameters") for each in scenarios]
        return [np.concatenate(list(each.blocks())) for each in intervals.play(made)]

    alone, both = [run([short])[0], run([long])[0]], run([short, long])
    assert len(alone[1]) == 126
    assert [rows.tobytes() for rows in both] == [rows.tobytes() for rows in alone]
