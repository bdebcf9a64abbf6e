"""How the hidden layers of another project's network become a network of this project that computes the same.

A network here has an input layer and blocks of four layers. With `residual`, a block's input is added to its output.
JaxGCRL adds the sum of before after hidden layer k, 2k, ... (counted from 0), and so does scaling-crl with k = 4. So:

    skips, k = 4, 1 + 4 m hidden layers      the same network: m blocks with `residual`
    no skips, 1 + 4 m hidden layers          the same network: m blocks without `residual`
    no skips, other numbers, no LayerNorm    the same function: identity layers fill the last block
    everything else                          refused

An identity layer exists without LayerNorm only. With relu its kernel is the identity, because its inputs are 0 or more.
With swish, whose x * sigmoid(x) satisfies swish(x) - swish(-x) = x, the width doubles: one half of the layer gets x and
the other half -x, and the next layer takes their difference.
"""

from typing import NamedTuple

from policy.exchange.foreign_layouts import ForeignPolicyError
from policy.spec import LAYERS_PER_BLOCK


class LayerPlan(NamedTuple):
    """How a network of another project becomes one of ours."""

    residual: bool  # as in PolicySpec
    identity_layers: int  # after the hidden layers
    doubled: bool  # whether the width doubles, for identity layers with swish

    @property
    def width_factor(self) -> int:
        """Our width divided by theirs."""
        return 2 if self.doubled else 1


def plan(hidden: int, *, skip_every: int, layer_norm: bool, use_relu: bool) -> LayerPlan:
    """Return how the layers become blocks of four.

    Args:
        hidden: hidden layers, 1 or more.
        skip_every: number of layers from one skip connection to the next; 0: none.

    Raises:
        ForeignPolicyError: no network of ours computes the same.
    """
    whole = hidden > 1 and (hidden - 1) % LAYERS_PER_BLOCK == 0
    if skip_every:
        if skip_every == LAYERS_PER_BLOCK and whole:
            return LayerPlan(residual=True, identity_layers=0, doubled=False)
        raise ForeignPolicyError(
            f"{_layers(hidden)} with skip_connections = {skip_every} cannot be imported: blocks here are "
            f"{LAYERS_PER_BLOCK} layers long and follow one input layer, so skip_connections must be "
            f"{LAYERS_PER_BLOCK}, and n_hidden must be 1 more than a multiple of {LAYERS_PER_BLOCK}, such as 5 or 9"
        )
    if whole:
        return LayerPlan(residual=False, identity_layers=0, doubled=False)
    if layer_norm:
        raise ForeignPolicyError(
            f"{_layers(hidden)} with LayerNorm and without a skip connection cannot be imported: blocks here are "
            f"{LAYERS_PER_BLOCK} layers long and follow one input layer, and a layer with LayerNorm cannot pass its "
            f"input on unchanged; n_hidden must be 1 more than a multiple of {LAYERS_PER_BLOCK}, such as 5 or 9"
        )
    missing = LAYERS_PER_BLOCK if hidden == 1 else -(hidden - 1) % LAYERS_PER_BLOCK
    return LayerPlan(residual=False, identity_layers=missing, doubled=not use_relu)


def _layers(hidden: int) -> str:
    return f"{hidden} hidden layer{'s' if hidden > 1 else ''}"
