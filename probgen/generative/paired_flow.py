r"""Flows fitted to given pairs of start and datum.

Flow matching needs no more than pairs :math:`(x_b, x)` (see ``flow_matching``), wherever they come from:

- Optimal transport. Pairs within the batches of training are only as good as those are large, and are solved anew in
  every step. ``couple`` solves larger ones once; every epoch uses them again.
- Reflow (Liu, Gong and Liu 2023): each start with the point to which a fitted flow carries it. The lines between them
  cross less, and the new flow is straighter, with the same law.
- Measured pairs: the state before and after, the degraded and the clean.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.coupling import Coupling, GivenPairs, Independent
from probgen.generative.family import Family, Now, Spec
from probgen.generative.flow_matching import FlowMatching, LearnedVelocity, Regressor, velocity_loss
from probgen.generative.standardisation import Standardisation

__all__ = ["PairedFlow", "couple"]


class PairedFlow(Family):
    """A learned flow from starts to data that come in pairs, shape ``(n, 2, *shape)``: first the start, then the datum.

    Attributes:
        flow: Network and integration of the flow, and the source from which it draws, which is to be the law of the
            starts.
    """

    flow: FlowMatching = FlowMatching()

    def check(self, spec: Spec) -> None:
        if not spec.shape or spec.shape[0] != 2:
            raise DataError(
                f"PairedFlow takes pairs of a start and a datum, shape (n, 2, ...); one row has shape {spec.shape}. "
                f"Stack them: numpy.stack([start, x], 1)."
            )
        if not isinstance(self.flow.coupling, Independent):
            raise MethodError(
                f"PairedFlow got a flow with the coupling {type(self.flow.coupling).__name__}, but its pairs are given. "
                f"Leave coupling out, and pair the data with couple(coupling, ...)."
            )
        self.flow.check(_of_one(spec))

    def build(self, key: PRNGKey, spec: Spec) -> Regressor:
        return self.flow.build(key, _of_one(spec))

    def adapt(self, key: PRNGKey, net: Regressor, x: Array, condition: Array | None) -> Regressor:
        return net.adapted(x[:, 1], condition)

    def loss(self, key: PRNGKey, net: Regressor, x: Array, condition: Array | None, now: Now) -> Scalar:
        both = jax.vmap(jax.vmap(net.units.inward))(x)
        given = None if condition is None else jax.vmap(net.given)(condition)
        return velocity_loss(key, net, both[:, 0], both[:, 1], given)

    def distribution(self, net: Regressor, spec: Spec) -> LearnedVelocity:
        # With independent pairs a flow would offer a score.
        return dataclasses.replace(self.flow, coupling=GivenPairs()).distribution(net, _of_one(spec))


def _of_one(spec: Spec) -> Spec:
    return Spec(spec.shape[1:], spec.condition)


def couple(
    coupling: Coupling,
    start: Array | np.ndarray,
    x: Array | np.ndarray,
    condition: Array | np.ndarray | None = None,
    *,
    batch: int = 1024,
    seed: int | jax.Array = 0,
) -> Array:
    """Pairs of starts and data, for ``PairedFlow``.

    Args:
        coupling: How starts are paired with data.
        start: As many starts as data, in the units of the data; independent of them and in random order, for a batch is
            a run of rows.
        x: Data, shape ``(n, *shape)``, in random order too.
        condition: Their conditions, shape ``(n, *condition)``.
        batch: Rows within which starts are exchanged. The cost grows with its cube or so; the last batch may be smaller.
        seed: An int or a typed JAX key, for couplings that draw.

    Returns:
        Starts and data, shape ``(n, 2, *shape)``; data, and so conditions, stay in their order.

    Raises:
        DataError: If starts, data and conditions do not match.
        MethodError: If the batch is not a size, or the coupling needs conditions.
    """
    start, x = jnp.asarray(start, jnp.float32), jnp.asarray(x, jnp.float32)
    count = len(x)
    if start.shape != x.shape:
        raise DataError(f"start has shape {start.shape}, but the data {x.shape}. Draw one start for each datum.")
    if condition is not None and len(condition) != count:
        raise DataError(f"condition has {len(condition)} rows, but the data {count}. Give one for each datum.")
    if coupling.needs_condition and condition is None:
        raise MethodError(f"the coupling {type(coupling).__name__} needs conditions. Give condition=.")
    if not is_count(batch):
        raise MethodError(f"couple got batch={batch!r}, expected an int of at least 1. Use 1024.")
    inward = jax.vmap(Standardisation(x.shape[1:]).adapted(x).inward)
    flat = [inward(a).reshape(count, -1) for a in (start, x)]
    given = None if condition is None else jnp.asarray(condition, jnp.float32).reshape(count, -1)
    pair = eqx.filter_jit(coupling.pair)
    keys = jax.random.split(as_key(seed), -(-count // batch))
    rows = []
    for key, first in zip(keys, range(0, count, batch), strict=True):
        some = slice(first, first + batch)
        rows.append(first + pair(key, flat[0][some], flat[1][some], None if given is None else given[some]))
    return jnp.stack([start[jnp.concatenate(rows)], x], 1)
