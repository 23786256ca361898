r"""Do points follow the posterior? Let Hamiltonian Monte Carlo move them, and see whether the set changes.

HMC leaves the posterior as it is. If points :math:`u_1 \dots u_n` follow it, and :math:`u_i'` is where a few
transitions take each, then :math:`E[f(u') - f(u)] = 0` for every :math:`f`; the differences are independent, and a mean
that is far from 0 in their standard errors shows that the points are not where they should be. Asked are the location
and the spread of every coordinate, and the log density. An error that passes is small beside the error of as many
independent draws, or one that HMC does not mend in a few transitions, such as the probability of a separated mode, or a
single point lost far out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.typing import PRNGKey
from probgen.program.density import Density

__all__ = ["Drift", "Moved", "judge_drift", "move_points"]

_TUNING, _TRANSITIONS, _LEAPS = 15, 30, 10
_ACCEPT = 0.8
_FALSE_ALARM = 1e-3


class Moved(eqx.Module):
    """Points before and after, and their log densities.

    Attributes:
        before: Shape ``(n, dim)``.
        after: Likewise.
        lp_before: Shape ``(n,)``.
        lp_after: Likewise.
    """

    before: Array
    after: Array
    lp_before: Array
    lp_after: Array


@dataclasses.dataclass(frozen=True)
class Drift:
    """How the set changed, in standard errors.

    Attributes:
        location: Change of the mean of each coordinate, shape ``(dim,)``.
        spread: Change of the squared distance from the mean that the points had, shape ``(dim,)``.
        lp: Change of the log density.
        limit: What the largest of these exceeds once in 1,000 sets of points that follow the posterior.
        worst: The coordinate or ``"lp"`` that changed most, in words.
    """

    location: np.ndarray
    spread: np.ndarray
    lp: float
    limit: float
    worst: str

    @property
    def largest(self) -> float:
        """The largest change."""
        return float(np.max(np.abs([*self.location, *self.spread, self.lp])))

    @property
    def found(self) -> bool:
        """Whether the points moved more than points of the posterior would."""
        return not self.largest < self.limit


def move_points(key: PRNGKey, density: Density, u: Array) -> Moved:
    """Move every point by HMC in units of the points' standard deviations; the step size is tuned on copies.

    Args:
        key: Randomness.
        density: The target.
        u: Points in unconstrained coordinates, shape ``(n, dim)``.
    """
    from blackjax.mcmc import hmc

    count, dim = u.shape
    scale = jnp.std(u, axis=0) + jnp.finfo(u.dtype).tiny
    kernel = hmc.build_kernel()

    def target(z: Array) -> Array:
        return density.log_density(scale * z)

    def transition(key: PRNGKey, states: Any, step: Array) -> tuple[Any, Array]:
        key_step, key_move = jax.random.split(key)
        jittered = step * jax.random.uniform(key_step, (count,), u.dtype, 0.8, 1.2)

        def one(key: PRNGKey, state: Any, step: Any) -> tuple[Any, Any]:
            metric: Any = jnp.ones(dim, u.dtype)
            state, info = kernel(key, state, target, step, metric, _LEAPS)
            return state, info.acceptance_rate

        states, rates = jax.vmap(one)(jax.random.split(key_move, count), states, jittered)
        return states, jnp.mean(rates)

    def tune(carry: tuple[Any, Array], key: PRNGKey) -> tuple[tuple[Any, Array], None]:
        states, rate = transition(key, carry[0], jnp.exp(carry[1]))
        return (states, carry[1] + rate - _ACCEPT), None

    def move(states: Any, key: PRNGKey) -> tuple[Any, None]:
        return transition(key, states, step)[0], None

    key_tune, key_move = jax.random.split(key)
    start: Any = jax.vmap(lambda z: hmc.init(z, target))(u / scale)
    guess = jnp.log(jnp.asarray(dim**-0.25, u.dtype))
    (_, log_step), _ = jax.lax.scan(tune, (start, guess), jax.random.split(key_tune, _TUNING))
    step = jnp.exp(log_step)
    end, _ = jax.lax.scan(move, start, jax.random.split(key_move, _TRANSITIONS))
    return Moved(u, scale * end.position, start.logdensity, end.logdensity)


def judge_drift(moved: Moved, names: tuple[str, ...]) -> Drift:
    """Compare points before and after.

    Args:
        moved: The points, as NumPy arrays.
        names: Names of the coordinates.
    """
    import scipy.stats  # slow to import

    before, after = np.asarray(moved.before), np.asarray(moved.after)
    centre = before.mean(0)
    changes = [after - before, (after - centre) ** 2 - (before - centre) ** 2]
    changes.append((np.asarray(moved.lp_after) - np.asarray(moved.lp_before))[:, None])
    count, dim = before.shape
    errors = [change.std(0, ddof=1) / np.sqrt(count) for change in changes]
    with np.errstate(divide="ignore", invalid="ignore"):  # points that do not move at all tell nothing
        location, spread, lp = (
            np.where(error > 0, change.mean(0) / error, 0.0) for change, error in zip(changes, errors, strict=True)
        )
    limit = float(scipy.stats.t.ppf(1 - _FALSE_ALARM / (2 * (2 * dim + 1)), count - 1))
    labels = [*(f"the mean of {n}" for n in names), *(f"the spread of {n}" for n in names), "the log density"]
    worst = labels[int(np.argmax(np.abs([*location, *spread, *lp])))]
    return Drift(location, spread, float(lp[0]), limit, worst)
