r"""Control of a trained generator by moments, in its noise: no data, no training of the generator.

Of all laws with :math:`\mathbb{E} f(x) = \mu`, the nearest to the generator's in relative entropy is a tilt of it, and so
is its law in noise space (Wu et al. 2022),

.. math:: p_\lambda(z) \propto N(z; 0, I)\, e^{\lambda^\top f(G(z))},
          \qquad \lambda = \arg\min_\lambda\ \log \mathbb{E}\, e^{\lambda^\top (f(G(z)) - \mu)},

a convex problem, solved on draws of the generator. A flow :math:`q` is then fitted by reverse relative entropy,
:math:`\min_q \mathbb{E}_q [\log q(z) - \log N(z; 0, I) - \lambda^\top f(G(z))]`: draws of the controlled law are
:math:`G` of draws of the flow. They are as good as the flow, which ``log_weight`` can tell: weighted draws are exact for
the tilt, whatever the flow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Spec
from probgen.generative.flow import Flow, FlowNet
from probgen.generative.learned import Learned
from probgen.generative.point_distribution import PointDistribution
from probgen.nets.constant import trainable

__all__ = ["MomentControlled", "moment_control"]


def moment_control(
    generator: Learned,
    features: Callable[[Array], Array],
    target: Any,
    *,
    flow: Flow | None = None,
    draws: int = 8192,
    steps: int = 800,
    batch: int = 256,
    learning_rate: float = 3e-3,
    seed: int | Array = 0,
) -> MomentControlled:
    """The law nearest to a generator's in which features have given means.

    Args:
        generator: A model with a ``noise_map``.
        features: From one point, shape ``event_shape``, to features, a scalar or shape ``(k,)``; differentiable.
        target: Their means.
        flow: The flow in noise space; a small spline coupling flow if ``None``.
        draws: Draws of the generator on which the tilt is found.
        steps: Steps of the fit of the flow.
        batch: Draws per step.
        learning_rate: Of Adam, falling along a cosine.
        seed: An int or a typed JAX key.

    Raises:
        MethodError: If the generator has no noise map, or no draw comes near the target: the tilt does not exist.
    """
    if not hasattr(generator, "noise_map"):
        raise MethodError(f"generator must have a noise_map, got {type(generator).__name__}. Give a flow, say.")
    flow = Flow(count=4, width=32) if flow is None else flow
    key_draws, key_build, key_fit = jax.random.split(as_key(seed), 3)
    goal = jnp.atleast_1d(jnp.asarray(target, float))

    def value(z: Array) -> Array:
        return jnp.atleast_1d(features(generator.noise_map(z)))

    noise = jax.random.normal(key_draws, (draws, *generator.noise_shape), goal.dtype)
    seen = jax.jit(jax.vmap(value))(noise)
    if seen.shape[1:] != goal.shape:
        raise MethodError(f"features has shape {seen.shape[1:]}, but target {goal.shape}. Give one target per feature.")
    tilt = _tilt(np.asarray(seen, float) - np.asarray(goal, float))
    net = _fit(key_fit, key_build, flow, lambda z: jnp.asarray(tilt, goal.dtype) @ value(z), generator.noise_shape, steps,
               batch, learning_rate)  # fmt: skip
    return MomentControlled(generator, features, jnp.asarray(tilt), net)


def _tilt(f: np.ndarray) -> np.ndarray:
    """The minimum of the log mean of exp(tilt . f), by Newton steps that are halved until they descend."""

    def dual(tilt: np.ndarray) -> tuple[float, np.ndarray]:
        logits = f @ tilt
        top = logits.max()
        weights = np.exp(logits - top)
        return float(np.log(weights.mean()) + top), weights / weights.sum()

    tilt = np.zeros(f.shape[1])
    value, weights = dual(tilt)
    for _ in range(100):
        mean = weights @ f
        spread = (f - mean).T @ (weights[:, None] * (f - mean))
        if np.abs(mean).max() < 1e-9 * max(1.0, np.abs(f).max()):
            return tilt
        if not np.trace(spread) > 1e-9 * f.var(0).sum():
            break  # all weight on few draws: the target is out of reach
        step = np.linalg.solve(spread + 1e-12 * np.trace(spread) * np.eye(len(tilt)), -mean)
        size = 1.0
        while size > 1e-10 and not dual(tilt + size * step)[0] < value:
            size /= 2
        if size <= 1e-10:
            break
        tilt = tilt + size * step
        value, weights = dual(tilt)
    if np.abs(weights @ f).max() < 1e-4 * max(1e-300, f.std()):
        return tilt
    raise MethodError(
        f"no tilt gives the features these means: on {len(f)} draws of the generator they range from "
        f"{f.min(0).tolist()} to {f.max(0).tolist()} about the target. Choose a target within, or raise draws."
    )


def _fit(
    key: PRNGKey,
    key_build: PRNGKey,
    flow: Flow,
    bonus: Callable[[Array], Scalar],
    shape: tuple[int, ...],
    steps: int,
    batch: int,
    learning_rate: float,
) -> FlowNet:
    """A flow near the tilted noise, in reverse relative entropy."""
    net = flow.build(key_build, Spec(shape))
    weights, fixed = eqx.partition(net, trainable(net))
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    )

    def divergence(weights: Any, key: PRNGKey) -> Scalar:
        net = eqx.combine(weights, fixed)

        def one(noise: Array) -> Scalar:
            z, gained = net.outward(noise, None)
            return 0.5 * jnp.sum(z**2) - gained - bonus(z)

        return jnp.mean(jax.vmap(one)(jax.random.normal(key, (batch, *shape), jnp.float32)))

    @jax.jit
    def run(weights: Any) -> Any:
        def step(carried: tuple[Any, Any], key: PRNGKey) -> tuple[tuple[Any, Any], None]:
            weights, memory = carried
            updates, memory = optimiser.update(jax.grad(divergence)(weights, key), memory, weights)
            return (optax.apply_updates(weights, updates), memory), None

        return jax.lax.scan(step, (weights, optimiser.init(weights)), jax.random.split(key, steps))[0][0]

    return eqx.combine(run(weights), fixed)


class MomentControlled(PointDistribution):
    """A generator with a flow before it. It has draws, ``noise_map`` and ``log_weight``, no density.

    Attributes:
        generator: What is controlled.
        features: Of which means were asked.
        tilt: :math:`\\lambda`, shape ``(k,)``.
        net: The flow from noise to the generator's noise.
    """

    pytree_data_fields = ("generator", "tilt", "net")
    pytree_aux_fields = ("features",)

    def __init__(self, generator: Learned, features: Callable[[Array], Array], tilt: Array, net: FlowNet) -> None:
        self.generator, self.features, self.tilt, self.net = generator, features, tilt, net
        super().__init__((), generator.event_shape)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise."""
        return self.generator.noise_shape

    def noise_map(self, z: Array) -> Array:
        """From standard normal noise, shape ``(..., *noise_shape)``, to draws."""
        return self.pointwise(lambda here, z: here._push(z), (jnp.asarray(z), len(self.noise_shape)))

    def _push(self, z: Array) -> Array:
        return self.generator.noise_map(self.net.outward(z, None)[0])

    def draw(self, key: PRNGKey) -> Array:
        return self._push(jax.random.normal(key, self.noise_shape))

    def density(self, x: Array) -> Scalar:
        """There is none."""
        raise MethodError(
            "a controlled generator has draws and no density: the tilt's normaliser and the generator's inverse are not "
            "known. Use sample, noise_map and log_weight."
        )

    def log_weight(self, z: Array) -> Array:
        """Log weight, up to a constant, of the draw from noise ``z``, shape ``(..., *noise_shape)``, which makes weighted
        draws exact for the tilt; constant if the flow is perfect."""

        def one(here: MomentControlled, z: Array) -> Scalar:
            moved, gained = here.net.outward(z, None)
            bonus = here.tilt @ jnp.atleast_1d(here.features(here.generator.noise_map(moved)))
            return bonus - 0.5 * jnp.sum(moved**2) + 0.5 * jnp.sum(z**2) + gained

        return self.pointwise(one, (jnp.asarray(z), len(self.noise_shape)))
