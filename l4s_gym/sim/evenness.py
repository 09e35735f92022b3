"""How evenly bulk flows of C and L share the link: the evenness E of the reward `fair`.

E = exp(sum_k w_k ln x_k) / sum_k w_k x_k over the classes k that have bulk flows: x_k is the goodput of a flow of class
k over the last second, w_k the class's share of the flows. E is 1 where only one class is present or all flows get the
same, and 0 where a class gets nothing. With u the share of the link that is used, u E is proportional to the geometric
mean of the flows' goodputs (proportional fairness).

The last second is the last `BUCKETS` whole buckets; within a bucket E is constant. Flows that start or end in it count
for the time that they run: x_k is bytes / flow time, w_k the class's share of the flow time.
"""

from __future__ import annotations

import math
from typing import Any

from l4s_gym.schema import ECT_1
from l4s_gym.sim.jit import jit, public, shared
from l4s_gym.sim.layout import BUCKET_NS, BUCKETS, BULK


@public
def evenness(bytes_c: int, bytes_l: int, ns_c: int, ns_l: int) -> float:
    """The evenness of what bulk flows of C and L have received in their flow times (ns, summed over the flows)."""
    if ns_c == 0 or ns_l == 0:
        return 1.0
    if bytes_c == 0 or bytes_l == 0:
        return 0.0
    x_c, x_l = bytes_c / ns_c, bytes_l / ns_l
    mean = (bytes_c + bytes_l) / (ns_c + ns_l)
    return min(x_c / mean * math.exp(math.log(x_l / x_c) * ns_l / (ns_c + ns_l)), 1.0)


@jit
def _count(env: Any, now_ns: int) -> None:
    """Bring the flow times up to `now_ns`."""
    for cls in range(2):
        env.bulk_ns[cls] += env.bulk_flows[cls] * (now_ns - env.bulk_since_ns)
    env.bulk_since_ns = now_ns


@shared
def turn(env: Any, time_ns: int) -> None:
    """Begin the bucket of `time_ns`, and compute the evenness of the second before it."""
    while env.bucket_end_ns <= time_ns:
        _count(env, env.bucket_end_ns)
        k = env.bucket % BUCKETS
        for cls in range(2):
            env.second_bytes[cls] += env.bulk_bytes[cls] - env.past_bytes[k, cls]
            env.second_ns[cls] += env.bulk_ns[cls] - env.past_ns[k, cls]
            env.past_bytes[k, cls] = env.bulk_bytes[cls]
            env.past_ns[k, cls] = env.bulk_ns[cls]
            env.bulk_bytes[cls] = 0
            env.bulk_ns[cls] = 0
        env.bucket += 1
        env.bucket_end_ns = min(env.bucket_end_ns + BUCKET_NS, env.horizon_ns)
    env.evenness = evenness(env.second_bytes[0], env.second_bytes[1], env.second_ns[0], env.second_ns[1])


@jit
def note_goodput(env: Any, f: Any, payload_bytes: int) -> None:
    """A segment has reached the receiver of flow `f` for the first time."""
    if f.app == BULK:
        env.bulk_bytes[int(f.ecn == ECT_1)] += payload_bytes


@jit
def note_flow(env: Any, f: Any, step: int) -> None:
    """Flow `f` starts (`step` 1) or has ended (-1)."""
    if f.app == BULK:
        _count(env, env.now_ns)
        env.bulk_flows[int(f.ecn == ECT_1)] += step
