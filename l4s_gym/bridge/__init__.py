"""The connection to a real queue: wire protocol, client, recorder, testbed on this machine."""
