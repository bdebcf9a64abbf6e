"""Python code on a model card that computes actions with an exported file, made for one policy.

Each piece of code runs in the exported folder, needs nothing of ours, and ends with `action` for the stored probes.
"""

from policy.spec import LAYERS_PER_BLOCK, PolicySpec

ONNX = """\
import onnxruntime
from safetensors.numpy import load_file

probes = load_file("probes.safetensors")
options = onnxruntime.SessionOptions()
options.log_severity_level = 3  # errors only: it warns of inputs with a default, such as the noise
session = onnxruntime.InferenceSession("actor.onnx", options, providers=["CPUExecutionProvider"])
(action,) = session.run(["action"], {"state": probes["state"], "goal": probes["goal"]})
print(abs(action - probes["action"]).max())  # below 1e-4
"""

ONNX_CRITIC = """\
import onnxruntime
from safetensors.numpy import load_file

probes = load_file("probes.safetensors")
session = onnxruntime.InferenceSession("critic.onnx", providers=["CPUExecutionProvider"])
inputs = {"state": probes["state"], "action": probes["action"], "goal": probes["goal"]}
(energy,) = session.run(["energy"], inputs)
print(abs(energy - probes["energy"][:, 0]).max())
"""

JAX = """\
from pathlib import Path

import jax.export
import numpy as np
from safetensors.numpy import load_file

probes = load_file("probes.safetensors")
act = jax.jit(jax.export.deserialize(bytearray(Path("actor.jax").read_bytes())).call)
noise = np.zeros_like(probes["action"])  # standard normal numbers give sampled actions
action = act(probes["state"], probes["goal"], noise)
print(abs(action - probes["action"]).max())  # below 1e-4
"""

JAX_CRITIC = """\
from pathlib import Path

import jax.export
from safetensors.numpy import load_file

probes = load_file("probes.safetensors")
score = jax.jit(jax.export.deserialize(bytearray(Path("critic.jax").read_bytes())).call)
energy = score(probes["state"], probes["action"], probes["goal"])
print(abs(energy - probes["energy"][:, 0]).max())
"""

LIMITS = """\
import json
from pathlib import Path

import numpy as np

spec = json.loads(Path("config.json").read_text())["spec"]


def in_units(action):
    \"\"\"Return actions in the units of the table, from those in [-1, 1].\"\"\"
    low, high = np.array(spec["action_low"]), np.array(spec["action_high"])
    return low + (action.reshape(-1, spec["action_chunk"], len(low)) + 1) / 2 * (high - low)
"""

_START = """\
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

spec = json.loads(Path("config.json").read_text())["spec"]
arrays, probes = load_file("model.safetensors"), load_file("probes.safetensors")
state, goal = probes["state"], probes["goal"]


def layer(values, name, index=()):
    kernel, bias = arrays[f"{name}.kernel"][index], arrays[f"{name}.bias"][index]
    values = values @ kernel + bias
"""

_LAYER_NORM = """\
    values = values - values.mean(axis=-1, keepdims=True)
    values = values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + 1e-6)
    values = values * arrays[f"{name}.norm_scale"][index] + arrays[f"{name}.norm_bias"][index]
"""

_ACTIVATIONS = {
    "swish": "    return values * (np.tanh(values / 2) + 1) / 2  # swish\n",
    "relu": "    return np.maximum(values, 0)\n",
}

_SIGNS = """\


def with_canonical_signs(values, starts):
    \"\"\"Return the values with the sign of each quaternion in which its first number that is not 0 is positive.\"\"\"
    values = np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values)  # as in XLA
    for start in starts:
        for quaternion in values[:, start : start + 4]:
            first = next((number for number in quaternion if number != 0), 1)
            quaternion *= np.sign(first)
    return values


state = with_canonical_signs(state, spec["state_quaternions"])
goal = with_canonical_signs(goal, spec["goal_quaternions"])
"""

_NORMALIZATION = """\
mean, std = (np.array(spec[name], np.float32) for name in ("normalization_mean", "normalization_std"))
state = (state - mean) / std
"""

_END = """\
outputs = values @ arrays["actor.output.kernel"] + arrays["actor.output.bias"]
mean, log_std = np.split(outputs, 2, axis=-1)
action = np.tanh(mean)
print(abs(action - probes["action"]).max())  # below 1e-4
"""


def numpy_code(spec: PolicySpec) -> str:
    """Return code that computes the actions of a policy in numpy, from model.safetensors."""
    parts = [_START, _LAYER_NORM if spec.layer_norm else "", _ACTIVATIONS[spec.activation]]
    has_quaternions = spec.state_quaternions or spec.goal_quaternions
    parts += [_SIGNS if has_quaternions else "\n\n", _NORMALIZATION if spec.normalize_observations else ""]
    parts += [_blocks(residual=spec.residual), _END]
    return "".join(parts)


def _blocks(*, residual: bool) -> str:
    """Return the code of the input layer and the residual blocks."""
    lines = [
        'values = layer(np.concatenate([state, goal], axis=-1), "actor.input")',
        'for block in range(len(arrays["actor.blocks.kernel"])):',
        "    inputs = values" if residual else "",
        f"    for index in range({LAYERS_PER_BLOCK}):",
        '        values = layer(values, "actor.blocks", (block, index))',
        "    values = values + inputs" if residual else "",
    ]
    return "".join(f"{line}\n" for line in lines if line)
