"""Integer models in the core: the same numbers as in Python and in the engine, hostile files, and who decides."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from l4s_gym.agents import fitting
from l4s_gym.agents.distil import Config
from l4s_gym.bridge import wire
from l4s_gym.bridge.fixed import MOST_BYTES, ONE, SAME
from l4s_gym.bridge.model import Inputs, Layers, Lines, Memory, Model, Trees, raw_of
from l4s_gym.data.causal import CausalStream
from l4s_gym.errors import L4SError
from l4s_gym.live.parameters import Observer
from l4s_gym.schema import RECORD, scale_observation
from l4s_gym.sim.drive import ARRIVAL, offer, open_loop
from l4s_gym.sim.intervals import FEATURES
from l4s_gym.sim.policy import Integers, Policy
from tests.bridge.test_model import KINDS, random_layers, random_trees, raw_rows
from tests.kernel.core import AQMS, LINUX, RFC9332, TESTBED, UNSHIELDED, Core, Link
from tests.kernel.models import constant, leaf

EVERY = pytest.mark.parametrize("model", KINDS, ids=[f"{k}-{str(m).rsplit(' ', 1)[0]}" for k, m in enumerate(KINDS)])
COMPLETE = frozenset(RECORD.names or ())


# -- the same numbers


def same(core: Core, model: Model, rows: int, seed: int) -> None:
    """Core and reference (and for packets the engine) tell the same; interval forms in episodes of 1,000 rows."""
    raw = raw_rows(model.form, rows, seed)
    if model.form == "packet":
        wanted = model.outputs(raw)
        found = core.outputs(model.pack(), raw)[1]
        policy = Policy((Integers(model),), softmax=False)
        seen = policy.probabilities(scale_observation(raw))
        np.testing.assert_array_equal(seen[:, 1:] * ONE, wanted)
        assert (seen.sum(axis=1) == 1.0).all()
    else:
        episodes = raw.reshape(-1, 1000, raw.shape[1])
        wanted = model.outputs(episodes).reshape(rows, -1)
        data = model.pack()
        found = np.concatenate([core.outputs(data, each)[1] for each in episodes])
    np.testing.assert_array_equal(found[:, : wanted.shape[1]], wanted)


@EVERY
def test_python_engine_and_core_tell_the_same(core: Core, model: Model) -> None:
    same(core, model, 4000, 1)


@EVERY
def test_without_vector_registers_too(build: Callable[..., Path], model: Model) -> None:
    general = Core(build("libl4s_core.so", general=True) / "libl4s_core.so")
    same(general, model, 2000, 2)


@pytest.mark.slow
@EVERY
def test_on_a_million_rows(core: Core, model: Model) -> None:
    for seed in range(10):
        same(core, model, 100_000, 100 + seed)


# -- files


def fault(core: Core, data: bytes) -> str:
    return core.outputs(data, np.zeros((0, 29), np.int64))[0]


def test_what_is_wrong_is_told(core: Core) -> None:
    data = random_trees("packet", 30).pack()
    assert fault(core, data) == "" and fault(core, b"") == fault(core, data[:119]) == "no model"
    assert fault(core, b"M" + data[1:]) == "no model" and fault(core, data[:4] + b"\2" + data[5:]) == "version"
    assert fault(core, data + b"\0") == fault(core, data[:-1]) == "size"
    large = len(data).to_bytes(4, "little")
    assert fault(core, data.replace(large, (MOST_BYTES + 1).to_bytes(4, "little"), 1).ljust(MOST_BYTES + 1)) == "size"
    node = int.from_bytes(data[120:128], "little")
    for wrong in (node ^ (1 << 40), node | (250 << 56), node ^ (1 << 55)):  # another child, no feature, outside
        assert fault(core, data[:120] + wrong.to_bytes(8, "little") + data[128:]) == "range"


@EVERY
def test_core_and_python_refuse_the_same_files(core: Core, model: Model) -> None:
    """Python is stricter in what changes nothing: bytes that fill."""
    data, rng = model.pack(), np.random.default_rng(0)
    places = {*rng.integers(120, size=50).tolist(), *rng.integers(120, len(data), size=50).tolist()}
    refused = 0
    for at in sorted(places):
        wrong = bytearray(data)
        wrong[at] ^= 1 << int(rng.integers(8))
        told = fault(core, bytes(wrong))
        try:
            read = Model.unpack(bytes(wrong))
        except L4SError:
            refused += bool(told)
            continue
        assert not told
        raw = raw_rows(model.form, 5, at)
        wanted = read.outputs(raw)
        np.testing.assert_array_equal(core.outputs(bytes(wrong), raw)[1][:, : wanted.shape[1]], wanted)
    assert refused > 10


# -- in control of packets


def arrivals_of(rng: np.random.Generator, count: int) -> npt.NDArray[Any]:
    """Random traffic for a link of 5 Mbit/s."""
    arrivals = np.zeros(count, ARRIVAL)
    arrivals["time_ns"] = np.cumsum(rng.exponential(1.2e6, count).astype(np.int64))
    arrivals["length"], arrivals["ecn"] = rng.choice([100, 1500], count), rng.integers(0, 4, count)
    arrivals["flow"], arrivals["action"] = rng.integers(0, 200, count), -1
    return arrivals


def certain(model: Model) -> Model:
    """A model whose every leaf is certain, so that no draw is left: of four one drops, one marks, two enqueue."""
    assert isinstance(model.body, Trees)
    kind = np.arange(model.body.leaves) % 4
    values = np.stack([kind == 1, kind == 3], axis=1).astype(np.int32) * (ONE >> 1)
    body = Trees(model.body.feature, model.body.threshold, model.body.low, values, model.body.roots)
    return Model("packet", Inputs(), body)


def in_control(core: Core, model: Model, variant: int, packets: int, seed: int) -> None:
    """The core with a model in control, and the simulator with the decisions of the engine's: the same records."""
    arrivals = arrivals_of(np.random.default_rng(seed), packets)
    scenario = open_loop(5.0, limit_packets=10240)
    found = core.drive(core.params(variant, **UNSHIELDED), arrivals, rate_mbps=5.0, seed=seed, model=model.pack())
    assert (found["decided_by"] == 1).all()
    raw = CausalStream(COMPLETE).observe(found)
    told = Policy((Integers(model),), softmax=False).probabilities(scale_observation(raw))
    arrivals["action"] = told.argmax(axis=1)
    np.testing.assert_array_equal(found["action"], arrivals["action"])
    assert (np.bincount(arrivals["action"], minlength=3) > packets / 200).all()
    simulated = offer(scenario, arrivals, aqm=AQMS[variant], seed=seed)
    for name in RECORD.names or ():
        np.testing.assert_array_equal(found[name], simulated[name], err_msg=name)


@pytest.fixture(scope="module")
def student(core: Core) -> Model:
    """A tree of what the law decides, certain in its leaves."""
    pytest.importorskip("sklearn", reason="needs l4s-gym[data]")
    rows = core.drive(core.params(RFC9332), arrivals_of(np.random.default_rng(0), 10_000), rate_mbps=5.0)
    learned = fitting.joined(fitting.logged_rows([rows], COMPLETE))
    tree = fitting.grown(Config(), "packet", learned, 1, 200)
    return certain(Model("packet", Inputs(), Trees.of(tree)))


@pytest.mark.parametrize("variant", [TESTBED, RFC9332, LINUX], ids=AQMS)
def test_a_student_in_control_is_that_of_the_simulator(core: Core, student: Model, variant: int) -> None:
    in_control(core, student, variant, 20_000, 1)


@pytest.mark.slow
def test_a_student_in_control_of_ten_million_packets(core: Core, student: Model) -> None:
    for seed in range(10):
        in_control(core, student, RFC9332, 1_000_000, seed)


def test_probabilities_are_drawn(core: Core) -> None:
    arrivals = arrivals_of(np.random.default_rng(0), 20_000)
    arrivals["ecn"] = 2
    for model in (leaf(0.1, 0.25), leaf(1.0, -2.0, 0.0)):
        drop, mark = model.outputs(np.zeros((1, 8), np.int64))[0] / ONE
        rows = core.drive(core.params(RFC9332, **UNSHIELDED), arrivals, rate_mbps=50.0, model=model.pack())
        for action, share in ((1, drop), (2, mark)):
            assert (rows["action"] == action).mean() == pytest.approx(share, abs=0.012)


# -- interval forms


class Busy(Link):
    """Packets of both queues at a link of 8 Mbit/s, and the clock's control interval."""

    def __init__(self, core: Core, model: Model, **values: int) -> None:
        super().__init__(core, **{"variant": RFC9332} | values)
        self.set_rate(8_000_000)
        self.set_model(model.pack())

    def run(self, ms: int, load: float = 1.1) -> None:
        """1,000 bytes are through in 1 ms."""
        for turn in range(ms):
            for _ in range(int(load * (turn + 1)) - int(load * turn)):
                self.offer(1 if len(self.packets) % 3 else 2, 1000, 0)
            self.take()
            self.now += 1_000_000
            self.update()

    def update(self) -> None:
        self.lib.l4s_update(self.core, ctypes.c_uint64(self.now))

    def law(self) -> Any:
        """The LAW entry."""
        self.update()
        entry = wire.entry(wire.LAW)
        buffer = ctypes.create_string_buffer(wire.LAW_BODY.itemsize)
        self.lib.l4s_entry_law(buffer, self.core, ctypes.c_uint64(self.now))
        entry["law"] = np.frombuffer(buffer.raw, wire.LAW_BODY)
        return wire.read_law(entry[0])


def shows(first: int) -> Model:
    """A linear model whose factors show five features."""
    shown = np.zeros((5, 29), np.int8)
    shown[np.arange(min(5, 29 - first)), np.arange(first, min(first + 5, 29))] = 127
    lines = Lines(np.zeros(29, np.int32), np.full(29, 1 << 13, np.int32), 32767)  # log2(1 + x) = 1: 1/2
    body = Layers((shown,), (np.full(5, -127 << 9),), (np.full(5, 7, np.uint8),))
    return Model("parameters", Inputs((), lines), body, 20.0)


@pytest.mark.parametrize("rate_bps", [60_000, 1_000_000_000, 400_000_000_000, 1 << 60])
def test_any_rate_is_observed(core: Core, rate_bps: int) -> None:
    link = Busy(core, shows(28))
    link.set_rate(rate_bps)
    link.run(20)
    rate = min(np.log(rate_bps / 56e3), 16.0)
    wanted = shows(28).decide(Memory("parameters")(raw_of(np.full((1, 29), rate), "parameters")))[0, 0] / SAME
    assert link.law().factors["target"] == pytest.approx(wanted, rel=1e-3)


def test_the_core_observes_as_the_controller_does(core: Core) -> None:
    """A linear model shows each feature: what it does with the core's own observation is what it would with ours."""
    found, wanted = [], []
    for first in range(0, 29, 5):
        model = shows(first)
        link = Busy(core, model, law_lifetime_ms=60_000)
        observe, memory, old = Observer(FEATURES), Memory("parameters"), link.law()
        for load in (0.5, 1.3, 1.3, 2.0, 0.0, 0.9, 1.1, 1.5):
            link.run(20, load)
            new = link.law()
            wanted.append(model.decide(memory(raw_of(observe(old, new), "parameters")[None]))[0] / SAME)
            found.append(list(new.factors.values()))
            old = new
    np.testing.assert_allclose(found, wanted, rtol=3e-3)
    assert (np.ptp(np.reshape(wanted, (6, 8, 5)), axis=1) > 0).sum() > 20  # most features change


@pytest.mark.parametrize("form", ["parameters", "probability"])
def test_a_model_sets_each_interval_within_the_bounds_and_for_a_while(core: Core, form: str) -> None:
    actions = (1.0, -1.0, 0.0, 0.5, -0.5) if form == "parameters" else (0.0, 1.0)
    link = Busy(core, constant(form, *actions), law_target_high=131_072, prob_l_high=32_768)
    assert link.law().sets == 0
    link.run(40)
    law = link.law()
    assert law.sets == 2 and law.refused == 0 and law.lasts_ms == 40
    if form == "parameters":
        wanted = {"target": 2.0, "alpha": 0.25, "beta": 1.0, "coupling": 4.2**0.5, "threshold": 0.15**0.5}
        assert law.factors == pytest.approx(wanted, rel=1e-4)
    else:
        assert law.set_prob == pytest.approx((0.01, 0.5), rel=1e-4)
    link.set_model(None)
    gone = link.law()
    assert set(gone.factors.values()) == {1.0} and gone.set_prob is None and gone.lasts_ms == 0


def test_what_was_set_ends_where_the_model_stops(core: Core) -> None:
    link = Busy(core, constant("parameters", 1.0, 0.0, 0.0, 0.0, 0.0))
    link.run(20)
    assert link.law().factors["target"] == 4.0
    link.set_rate(0)  # nothing can be observed: the model says no more
    link.run(60)
    law = link.law()
    assert law.factors["target"] == 1.0 and law.expired == 1


def test_a_controller_comes_first(core: Core) -> None:
    link = Busy(core, constant("parameters", 1.0, 0.0, 0.0, 0.0, 0.0))
    link.run(20)
    assert link.set_law([SAME // 2, *[SAME] * 4], 100)
    link.run(80)
    assert link.law().factors["target"] == 0.5
    link.run(40)  # its setting has ended, and the model sets again
    assert link.law().factors["target"] == 4.0
    assert link.set_prob(0.1, 0.2, 50)
    link.run(40)
    assert link.law().set_prob is not None
    link.run(40)
    assert link.law().set_prob is None and link.law().factors["target"] == 4.0


def test_a_model_under_the_shield(core: Core) -> None:
    """Probabilities of 0 let the queue grow: the shield takes it back."""
    link = Busy(core, constant("probability", -1.0, -1.0), shield_c_us=20_000, shield_hold_us=5_000_000)
    link.run(300, 3.0)
    decided = [int(link.row(k)["decided_by"]) for k in range(0, len(link.packets))]
    assert 1 in decided and decided[-6:].count(2) >= 2


def test_late_updates_do_not_pile_up(core: Core) -> None:
    link = Busy(core, constant("parameters", 0.0, 0.0, 0.0, 0.0, 0.0))
    link.now += 10_000_000_000
    assert link.law().sets == 1 and link.law().sets == 1
    link.now += 16_000_000
    assert link.law().sets == 2


def test_a_model_is_replaced_under_traffic(core: Core) -> None:
    link = Busy(core, constant("parameters", 1.0, 0.0, 0.0, 0.0, 0.0))
    link.run(20)
    link.set_model(leaf(0.0, 1.0).pack())
    law = link.law()
    assert law.factors["target"] == 1.0
    link.run(20)
    assert link.row()["decided_by"] in (1, 2) and link.law().sets == law.sets
    link.set_model(random_layers("parameters", 16).pack())
    link.run(40)
    assert link.row()["decided_by"] == 0 and link.law().sets == law.sets + 2


@pytest.mark.parametrize("seconds", [2, pytest.param(600, marks=pytest.mark.slow)])
def test_damaged_files_under_sanitizers(build: Callable[..., Path], tmp_path: Path, seconds: int) -> None:
    for number, model in enumerate(KINDS):
        (tmp_path / f"{number}.bin").write_bytes(model.pack())
    program = build("fuzz_model", san=True) / "fuzz_model"
    command = [str(program), str(seconds), *sorted(map(str, tmp_path.glob("*.bin")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tried, taken = (int(word) for word in done.stdout.split() if word.isdigit())
    assert tried > taken > tried / 100
