"""The simulator: a packet-level, event-driven bottleneck with its senders, compiled by Numba."""
