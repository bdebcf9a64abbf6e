"""A random policy for point_u_maze, for servers that run what the pages show."""

from pathlib import Path

import numpy as np

from policy import bundle
from tests.parameters import fresh_params
from tests.samples import policy_spec


def publish(root: Path) -> None:
    """Publish it as version 1000 of the folder `root`."""
    spec, random = policy_spec(), np.random.default_rng(0)
    bundle.write(
        root,
        1000,
        spec=spec,
        params=fresh_params(0, spec),
        probe_state=random.normal(size=(5, spec.state_dim)),
        probe_goal=random.normal(size=(5, spec.goal_dim)),
        provenance={},
    )
