"""An arm of two links in a plane, which brings its fingertip to a commanded point."""

from pathlib import Path

from training.envs import Box, MjcfEnv, register


def two_link(name: str, *, impl: str) -> MjcfEnv:
    """The arm of the MJCF file beside this module."""
    return MjcfEnv(
        name,
        Path(__file__).with_name("two_link.xml"),
        joints=("shoulder", "elbow"),
        goal_sites="fingertip",
        goal_axes="xy",
        goals=Box(low=(0.2, -0.35), high=(0.4, 0.35)),
        start_noise=0.1,
        success_radius=0.05,
        control_period_s=0.04,
        episode_length=100,
        impl=impl,
    )


register("two_link", two_link, episode_length=100)
