"""A real queue with an agent in it: the environment, control, the testbed on this machine, the doctor."""
