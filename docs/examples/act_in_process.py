"""Act with a published policy in this process, without a server."""

import numpy as np

import policy

loaded = policy.load("runs/first/policies")  # the newest version, or a version's own folder
state, goal = np.zeros(loaded.spec.state_dim), np.ones(loaded.spec.goal_dim)
print(loaded.version, loaded.act(state, goal))  # deterministic, each value in [-1, 1]
print(loaded.act(np.tile(state, (3, 1)), goal, seed=7))  # sampled: three rows, one goal for all of them
