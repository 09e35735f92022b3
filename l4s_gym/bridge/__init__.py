"""The bridge to a live queue: wire protocol, client, recorder, testbed on this machine."""
