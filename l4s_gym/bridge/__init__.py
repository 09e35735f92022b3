"""What a queue outside of this process says and hears: wire protocol, client, recorder, counters, decision trees."""
