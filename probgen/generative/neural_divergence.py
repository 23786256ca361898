r"""How far a generative model is from held-out data, as a trained critic sees it.

A critic with logit :math:`\ell` is trained to tell data from draws, and judged on data and draws that it has not seen:

.. math:: \hat D = \log 2 - \tfrac12 E_p \log(1 + e^{-\ell(x)}) - \tfrac12 E_q \log(1 + e^{\ell(x)}) \le JS(p, q)

up to the error of the last two averages. For any critic this is below the Jensen-Shannon divergence (nats, 0 to
log 2 = 0.693) on average, because the critic does not depend on the points it is judged on; a better critic comes
closer. It *generalises*: a model that repeats its training data returns to the same points again and again, where held-out
data hardly ever are. The critic learns those points, and the model is far from the data however like them every one of
its draws is. (A distance of two samples, or the log of a nearest neighbour, would take it for perfect.)

A small value shows that *this critic* saw no difference.

Reference: Gulrajani, Raffel and Metz (2019), "Towards GAN benchmarks which require generalization". (They train with
the Wasserstein penalty; here the divergence is Jensen-Shannon's, which has units and a bound.)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from probgen.base.errors import DataError, MethodError
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Training
from probgen.generative.gan import critic_loss
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP

__all__ = ["Critic", "NeuralDivergence", "neural_divergence"]

_TRAINING = Training(steps=2000, batch=256, learning_rate=2e-3)


class Critic(eqx.Module):
    """A trained critic.

    Attributes:
        units: In which it sees the data.
        net: The network.
    """

    units: Standardisation
    net: MLP

    def __call__(self, x: Array) -> Scalar:
        """The logit at one point: the estimate of log density of the data over that of the draws."""
        return self.net(self.units.inward(x).reshape(-1))[0]


class NeuralDivergence(NamedTuple):
    """What a critic found.

    Attributes:
        value: The lower bound of the divergence, in nats; chance puts it a little below 0 where there is none.
        error: Its standard error, from the points on which the critic was judged.
        critic: The critic.
    """

    value: float
    error: float
    critic: Critic


def neural_divergence(
    model: Any,
    data: Any,
    *,
    training: Training = _TRAINING,
    width: int = 128,
    depth: int = 3,
    seed: int | jax.Array = 0,
) -> NeuralDivergence:
    """How far a model is from data.

    Args:
        model: What has ``sample(key, (n,))``: a fitted model, or any NumPyro distribution.
        data: Data that were *not* used to fit it, one per row, at least 100. Half of them train the critic, the other half
            and as many draws judge it.
        training: How the critic is trained; its ``ema`` and ``validation`` are not used.
        width: Length of the hidden layers of the critic.
        depth: Their number.
        seed: An int or a typed JAX key.

    Raises:
        DataError: If the data are too few, not finite, or of another shape than the draws.
        MethodError: If ``model`` cannot be sampled.
    """
    x = np.asarray(data, np.float32)
    if x.ndim < 1 or len(x) < 100 or not np.isfinite(x).all():
        raise DataError(
            f"data has shape {x.shape}, expected at least 100 rows of finite numbers: half train the critic, half judge it."
        )
    if not callable(getattr(model, "sample", None)):
        raise MethodError(
            f"model is a {type(model).__name__}, expected what has sample(key, shape), as distributions do."
        )
    key_split, key_draws, key_net, key_train = jax.random.split(as_key(seed), 4)
    x = jnp.asarray(x)[jax.random.permutation(key_split, len(x))]
    half = len(x) // 2
    # Draws cost nothing but time: the critic gets more of them than there are data, so that it cannot learn them by heart.
    draws = jnp.asarray(model.sample(key_draws, (4 * half + len(x) - half,)), jnp.float32)
    if draws.shape[1:] != x.shape[1:]:
        raise DataError(
            f"a draw has shape {draws.shape[1:]}, a datum {x.shape[1:]}. Give data as the model draws them."
        )
    units = Standardisation(x.shape[1:]).adapted(x[:half])
    critic = Critic(units, MLP(key_net, math.prod(x.shape[1:]), 1, width, depth))
    critic = _trained(key_train, critic, x[:half], draws[: 4 * half], training)
    real, made = (jax.jit(jax.vmap(critic))(points) for points in (x[half:], draws[4 * half :]))
    parts = [np.asarray(jax.nn.softplus(sign * logit), float) for sign, logit in ((-1, real), (1, made))]
    value = math.log(2) - (parts[0].mean() + parts[1].mean()) / 2
    return NeuralDivergence(value, math.sqrt(sum(p.var(ddof=1) / len(p) for p in parts)) / 2, critic)


def _trained(key: PRNGKey, critic: Critic, x: Array, draws: Array, training: Training) -> Critic:
    """The critic after descent."""
    optimiser = training.optimiser()
    weights, fixed = eqx.partition(critic.net, eqx.is_inexact_array)

    def loss(weights: Any, rows: Array, others: Array) -> Scalar:
        logit = jax.vmap(Critic(critic.units, eqx.combine(weights, fixed)))
        return critic_loss(logit(x[rows]), logit(draws[others]))

    def step(state: tuple[Any, Any], key: PRNGKey) -> tuple[tuple[Any, Any], None]:
        weights, memory = state
        key_rows, key_others = jax.random.split(key)
        rows = jax.random.randint(key_rows, (training.batch,), 0, len(x))
        others = jax.random.randint(key_others, (training.batch,), 0, len(draws))
        updates, memory = optimiser.update(jax.grad(loss)(weights, rows, others), memory, weights)
        return (optax.apply_updates(weights, updates), memory), None

    begin = weights, optimiser.init(weights)
    run = jax.jit(lambda key: jax.lax.scan(step, begin, jax.random.split(key, training.steps))[0][0])
    return Critic(critic.units, eqx.combine(run(key), fixed))
