"""The connection to a real queue: wire protocol, client, recorder, counters, decision trees."""
