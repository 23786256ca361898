r"""A prior that is cut off where a posterior is known to be negligible.

An estimate of the posterior has a region of highest density, :math:`R = \{u : g(u) \ge c\}`, where :math:`c` is the
quantile of :math:`g` over the estimate's own draws below which a share :math:`\epsilon` of them falls. :math:`R` has all
but :math:`\epsilon` of the estimate's mass whatever :math:`g` is; here it is a mixture of t laws fitted to the draws (see
``mixture``), so that every estimator is treated alike. Of several regions the intersection counts:

.. math:: \tilde p(u) \propto p(u) \prod_r \mathbf 1[u \in R_r].

Draws of :math:`\tilde p` are found by rejection. Candidates come from the prior: exact. Where fewer than one in a hundred
of these is inside, they come from an envelope :math:`h` with weights :math:`w = p\,\mathbf 1[\cdot] / h` and are kept with
chance :math:`w / \max w`, the largest weight being that of the candidates (Caffo, Booth and Davis 2002): exact but for
what is beyond the largest weight seen. The envelope is adapted to :math:`\tilde p` by a few turns of importance
resampling (population Monte Carlo; Cappé, Guillin, Marin and Robert 2004). Either way :math:`\bar w` estimates the prior
mass of the regions.
"""

from __future__ import annotations

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.amortized.learned_density import LearnedDensity
from probgen.amortized.mixture import DRAWS_TO_FIT, Mixture, mixture_of
from probgen.amortized.simulations import Design, Points, with_arguments
from probgen.base.errors import MethodError, ProbgenWarning
from probgen.base.typing import PRNGKey, Scalar
from probgen.program.density import Density
from probgen.run.compiled import compile_all
from probgen.run.driver import to_host

__all__ = ["Drawn", "Region", "TruncatedPrior"]

_BATCH = 4096
_TRIED = 4
"""Batches after which it is judged whether the prior will do."""
_RARE = 0.01
"""Share of the draws of the prior inside, below which candidates come from an envelope."""
_MOST = 1000
"""Candidates per draw, at most."""
_TURNS = 4
_WIDER = 1.5


class Region(eqx.Module):
    """Where a density is at least so high.

    Attributes:
        shape: The density.
        least: Its least logarithm, shape ``()``.
    """

    shape: Mixture
    least: Array

    @classmethod
    def of(cls, u: Array, outside: float) -> Region:
        """The region of highest density of draws.

        Args:
            u: Draws, shape ``(n, dim)``; a mixture is fitted to the first.
            outside: Share of the draws that is left out.
        """
        shape = mixture_of(u[:DRAWS_TO_FIT])
        # A quantile that is one of the draws: between two of them more would be left out than was said.
        return cls(shape, jnp.quantile(shape.log_prob(u), outside, method="lower"))

    def inside(self, u: Array) -> Array:
        """Which points are inside, shape that of ``u`` without the last axis."""
        return self.shape.log_prob(u) >= self.least


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Attributes:
        points: The draws.
        acceptance: Share of the candidates that were kept.
        prior_mass: What of the prior is inside, estimated.
    """

    points: Points
    acceptance: float
    prior_mass: float


@dataclasses.dataclass(frozen=True)
class TruncatedPrior:
    """The prior of a model inside of regions.

    Attributes:
        density: Of the model, for its prior.
        regions: The draws are in all of them.
        design: Draws arguments of the program, which are drawn with the parameters.
    """

    density: Density
    regions: tuple[Region, ...]
    design: Design | None = None

    def inside(self, u: np.ndarray) -> np.ndarray:
        """Which points are inside, shape ``(n,)``."""
        return np.asarray(_inside(self.regions, jnp.asarray(u)))

    def draw(self, key: PRNGKey, count: int, near: np.ndarray) -> Drawn:
        """Independent draws; warns if there are fewer than ``count``.

        Args:
            key: Randomness.
            count: How many.
            near: Draws of an estimate of the posterior, shape ``(n, dim)``, from which an envelope is adapted if need be.

        Raises:
            MethodError: If there are none.
        """
        key_prior, key_adapt, key_envelope = jax.random.split(key, 3)
        drawn = self._rejected(key_prior, count, None)
        if drawn is None:
            drawn = self._rejected(key_envelope, count, self._envelope(key_adapt, near))
        assert drawn is not None
        found = len(drawn.points.u)
        if not found:
            raise MethodError(
                f"none of {_MOST * count} candidates for {count} draws of the truncated prior was inside. Use fewer rounds, "
                f"more simulations for each, or a larger outside= share."
            )
        if found < count:
            warnings.warn(
                f"{_MOST * count} candidates gave {found} of {count} draws of the truncated prior; the round goes on with "
                f"those. Use fewer rounds, or more simulations for each.",
                ProbgenWarning,
                stacklevel=5,
            )
        return drawn

    def _rejected(self, key: PRNGKey, count: int, envelope: Mixture | None) -> Drawn | None:
        """Draws by rejection; ``None`` if the prior itself is the envelope, and will not do."""
        parts, tried, total, scores = [], 0, 0.0, np.zeros(0)
        while tried < _MOST * count:
            indices = jnp.arange(tried, tried + _BATCH)
            points, log_w, threshold = self._candidates(key, indices, envelope)
            tried += _BATCH
            some = np.isfinite(log_w)
            total += float(np.exp(log_w[some]).sum())
            parts.append((points.at(some), log_w[some], threshold[some]))
            # The largest weight may rise with any candidate, so all are judged again.
            log_ws = np.concatenate([part[1] for part in parts])
            scores = log_ws - log_ws.max(initial=-np.inf) - np.concatenate([part[2] for part in parts])
            kept = int(np.sum(scores >= 0))
            if kept >= count:
                break
            if envelope is None and tried >= _TRIED * _BATCH and kept < _RARE * tried:
                return None
        chosen = np.flatnonzero(scores >= 0)
        points = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(part[0] for part in parts))
        return Drawn(points.at(chosen[:count]), len(chosen) / tried, total / tried)

    def _candidates(
        self, key: PRNGKey, indices: Array, envelope: Mixture | None
    ) -> tuple[Points, np.ndarray, np.ndarray]:
        """Candidates, their log weights, and the logarithms of what they are compared with."""
        call = (key, self.density, self.regions, self.design, envelope, indices)
        (program,), _ = compile_all([(_candidates, call)])
        u, arguments, log_w, threshold = to_host(program(*call))
        return Points(u, arguments), log_w, threshold

    def _envelope(self, key: PRNGKey, near: np.ndarray) -> Mixture:
        """A mixture that covers the truncated prior."""
        law = mixture_of(jnp.asarray(near[:DRAWS_TO_FIT]))
        for turn in range(_TURNS):
            key_turn, key_chosen = jax.random.split(jax.random.fold_in(key, turn))
            # The prior is flatter than a posterior, so what is proposed is wider than what was found.
            wider = eqx.tree_at(lambda m: m.roots, law, _WIDER * law.roots)
            points, log_w, _ = self._candidates(key_turn, jnp.arange(2 * DRAWS_TO_FIT), wider)
            if not np.isfinite(log_w).any():
                return law
            chosen = jax.random.categorical(key_chosen, jnp.asarray(log_w), shape=(DRAWS_TO_FIT,))
            law = mixture_of(jnp.asarray(points.u[np.asarray(chosen)]))
        return law


class _NoLikelihood(eqx.Module):
    """The log likelihood of nothing."""

    def __call__(self, u: Array) -> Scalar:
        return jnp.zeros((), u.dtype)


@eqx.filter_jit
def _inside(regions: tuple[Region, ...], u: Array) -> Array:
    return jnp.stack([region.inside(u) for region in regions]).all(0)


def _candidates(
    key: PRNGKey,
    density: Density,
    regions: tuple[Region, ...],
    design: Design | None,
    envelope: Mixture | None,
    indices: Array,
) -> tuple[Array, dict[str, Array], Array, Array]:
    def one(index: Array) -> tuple[Array, dict[str, Array], Array, Array]:
        key_design, key_u, key_threshold = jax.random.split(jax.random.fold_in(key, index), 3)
        arguments = {} if design is None else {name: jnp.asarray(v) for name, v in design(key_design).items()}
        here = with_arguments(density, arguments)
        threshold = jnp.log(jax.random.uniform(key_threshold))
        if envelope is None:
            u = here.draw_prior(key_u)
            return u, arguments, jnp.zeros((), u.dtype), threshold
        u = envelope.sample(key_u).astype(float)
        # Of programs with random keys of their own, whose sites have a prior density all the same.
        log_prior = LearnedDensity(here, _NoLikelihood()).log_density(u)
        return u, arguments, log_prior - envelope.log_prob(u), threshold

    u, arguments, log_w, threshold = jax.vmap(one)(indices)
    return u, arguments, jnp.where(_inside(regions, u) & jnp.isfinite(log_w), log_w, -jnp.inf), threshold
