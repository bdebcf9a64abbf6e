"""The TOML file that a user fills before importing a policy of scaling-crl or JaxGCRL."""

from pathlib import Path

TEMPLATE = """\
# Facts about a policy of scaling-crl or JaxGCRL that its parameters do not say.
# Fill every empty value. docs/importing.md says which networks can be imported.

[policy]
name = ""                # 1 to 64 letters, digits, - _ or .
environment = ""         # such as "ant_big_maze"
# One name per value, with its unit. Or the number of values: 29 stands for the names "state 0" to "state 28".
state_names = []         # such as ["x [m]", "y [m]"]; the observation without the goal
goal_names = []          # such as ["x of the goal [m]", "y of the goal [m]"]
action_names = []        # such as ["hip torque [N m]", "ankle torque [N m]"]
action_low = []          # what an action of -1 stands for, in the unit of each name
action_high = []         # what an action of 1 stands for
control_period_s = 0.0   # seconds between two actions
success_radius = 0.0     # the goal is reached within this distance, in the unit of the goal
# Optional:
# actuator_kind = []     # position, velocity, torque or other, one per action
# rest_action = []       # the action, from -1 to 1, that leaves the robot at rest
# action_meaning = []    # absolute or increment, one per action
# max_action_change = [] # largest change of each action in one control period, above 0 and at most 2

[network]
layout = ""              # "scaling-crl" or "jaxgcrl"
use_relu = false         # as in their configuration
critic = true            # false: import the actor only; the policy then cannot score actions

# Only for scaling-crl, from its command line:
# actor_depth = 4
# critic_depth = 4

# Only for jaxgcrl, from its configuration:
# n_hidden = 2           # hidden layers
# skip_connections = 4   # a skip connection after so many layers; 0: none
# energy_fn = "norm"     # norm, l2 or dot

[probes]
# Optional: the ranges of the random states and goals that are stored with the policy to verify it later.
# Without them they are standard normal. Give both ends of a range, one number per value.
# state_low = []
# state_high = []
# goal_low = []
# goal_high = []
"""


def write(path: Path) -> None:
    """Write the template to a new file.

    Raises:
        FileExistsError: the file exists; it may be filled already.
        OSError: it cannot be written.
    """
    with path.open("x", encoding="utf-8") as file:
        file.write(TEMPLATE)
