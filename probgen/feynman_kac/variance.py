r"""The variance of the evidence, from the genealogy of a single run.

Particles that descend from one root share their fate; with :math:`F_r` the weight of all that descend from root
:math:`r`, the variance of :math:`\hat Z` in units of :math:`\mathbb{E} \hat Z^2` is estimated by

.. math::

    \hat V = 1 - \Big(1 - \sum_r F_r^2\Big) \frac{N}{N - 1} \prod_k \frac{1}{1 - c_k}, \qquad
    c_k = \frac{1}{N^2} \sum_i \mathrm{Var}(N_i^{(k)})

where :math:`k` runs over the resamplings since the roots, and :math:`c_k` takes away what the numbers of offspring alone
contribute to :math:`\sum_r F_r^2`. For multinomial resampling this is the estimator of Chan and Lai (2013), unbiased in
the sense of Lee and Whiteley (2018); for schemes of smaller variance it holds to leading order. :math:`\hat Z` is about
log-normal, hence :math:`\mathrm{Var} \log \hat Z \approx -\log(1 - \hat V)`.

After some time all particles descend from one root, and the estimate breaks down. What happens to a particle now does
not matter to its descendants much later, though, so lineages are followed for a limited time (Olsson and Douc 2019): with
roots at times :math:`0, L, 2L \dots`, the part of the variance that arises between :math:`kL` and :math:`(k + 1)L` is
:math:`-\log(1 - \hat V)` of the roots at :math:`kL` minus that of the roots at :math:`(k + 1)L`, both at time
:math:`(k + 2)L`.

References: Chan and Lai (2013), Annals of Statistics 41(6); Lee and Whiteley (2018), Biometrika 105(3); Olsson and Douc
(2019), Bernoulli 25(2).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Scalar

__all__ = ["Lineage", "lag_of"]

_LEAST_LAG = 20


def lag_of(particles: int) -> int:
    """Steps between roots: long enough to be forgotten, and so short that many roots survive twice as long."""
    return max(_LEAST_LAG, particles // 50)


class Lineage(eqx.Module):
    """From which of two generations of roots each particle descends.

    Attributes:
        old: Root of each particle in the older generation, shape ``(particles,)``.
        new: The same in the younger one.
        old_scale: Log of the product over resamplings, since the older roots.
        new_scale: The same since the younger ones.
        settled: Variance that arose before the older roots.
    """

    old: Array
    new: Array
    old_scale: Scalar
    new_scale: Scalar
    settled: Scalar

    @staticmethod
    def begin(particles: int, dtype: jnp.dtype) -> Lineage:
        """Every particle is a root."""
        roots, zero = jnp.arange(particles, dtype=jnp.int32), jnp.zeros((), dtype)
        return Lineage(roots, roots, zero, zero, zero)

    def resampled(self, ancestors: Array, count_variance: Scalar, offspring: int) -> Lineage:
        """After a resampling; ``offspring`` particles for each of the ancestors, one after the other."""
        parents = jnp.repeat(ancestors, offspring, total_repeat_length=self.old.shape[0])
        scale = -jnp.log1p(-count_variance / ancestors.shape[0] ** 2)
        return Lineage(
            self.old[parents], self.new[parents], self.old_scale + scale, self.new_scale + scale, self.settled
        )

    def rotated(self, log_w: Array) -> Lineage:
        """Settle what arose between the two generations; the particles become a new one."""
        now = jnp.arange(log_w.shape[0], dtype=jnp.int32)
        part = _variance(self.old, self.old_scale, log_w) - _variance(self.new, self.new_scale, log_w)
        return Lineage(self.new, now, self.new_scale, jnp.zeros_like(self.new_scale), self.settled + part)

    def variance(self, log_w: Array) -> Scalar:
        """Estimated variance of the log evidence."""
        return self.settled + _variance(self.old, self.old_scale, log_w)


def _variance(roots: Array, scale: Scalar, log_w: Array) -> Scalar:
    count = log_w.shape[0]
    w = jnp.exp(log_w - jnp.max(log_w))
    families = jax.ops.segment_sum(w / jnp.sum(w), roots, count)
    # One family left says that the variance is large, and nothing of how large.
    apart = jnp.maximum(1 - jnp.sum(families**2), 1 / count)
    return -jnp.log(apart * count / max(count - 1, 1)) - scale
