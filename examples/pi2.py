"""A queue discipline of your own: PI2 (De Schepper et al., "PI2: A Linearized AQM", CoNEXT 2016), in one queue.

A PI controller sets p'. Classic packets are hit with p'^2, scalable ones (ECT(1)) are marked with 2 p'. From this
folder, or with it on PYTHONPATH:

    l4s-gym simulate l4s-llm-testbed --aqm pi2:PI2
    gym.make("l4s_gym:L4S-DualPI2-v0", aqm="pi2:PI2")
"""

from msgspec import Struct

from l4s_gym.schema import DROP, ECT_1, ENQUEUE, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim.discipline import Discipline, records
from l4s_gym.sim.events import head_delay_ns, uniform
from l4s_gym.sim.memory import packet_at


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """In a scenario's table `[options.own]`."""

    target_ms: float = 15.0
    tupdate_ms: float = 16.0
    alpha_hz: float = 0.16
    beta_hz: float = 3.2


STATE = records(
    "pi2",
    (
        ("alpha_hz", "f8", "Hz", "Integral gain."),
        ("beta_hz", "f8", "Hz", "Proportional gain."),
        ("prob", "f8", "1", "Base probability p'."),
        ("old_ns", "i8", "ns", "Delay at the last update."),
    ),
)
state = STATE.of_env


def setup(o, path):
    times = {"target_us": round(1e3 * o.target_ms), "tupdate_us": round(1e3 * o.tupdate_ms)}
    return {**times, "alpha_hz": o.alpha_hz, "beta_hz": o.beta_hz}


def update(env, index):
    my, delay_ns = state(env), head_delay_ns(env, 0)
    step = my.alpha_hz * (delay_ns - 1000 * env.target_us) + my.beta_hz * (delay_ns - my.old_ns)
    my.prob = min(max(my.prob + 1e-9 * step, 0.0), 1.0)
    my.old_ns = delay_ns
    return delay_ns


def decide(env, index, p):
    prob, ecn = state(env).prob, packet_at(env, p).ecn
    if ecn == ECT_1:
        return MARK if uniform(env) < 2.0 * prob else ENQUEUE
    if uniform(env) >= prob * prob:
        return ENQUEUE
    return DROP if ecn == NOT_ECT else MARK


def base_probability(env, index):
    return int(state(env).prob * MAX_PROB)


PI2 = Discipline(
    name="pi2",
    title="PI2 in one queue",
    options=Options,
    records=STATE,
    setup=setup,
    update=update,
    decide_at_enqueue=decide,
    base_probability=base_probability,
)
