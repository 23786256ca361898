r"""Approximations: what every method shares that draws from some :math:`q` and not from the posterior.

Draws :math:`u_i \sim q` come with :math:`\log w_i = \log p(u_i, y) - \log q(u_i)`. The weights tell three things: how
far :math:`q` is from the posterior (Pareto :math:`\hat k`, Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR
25(72)), expectations under the posterior (smoothed weights), and the evidence, :math:`\hat Z = \frac1n \sum_i w_i`,
which is unbiased.

Results carry in ``sample_stats``: ``lp`` (:math:`\log p(u, y)`), ``log_q``, ``log_weight_raw`` (their difference) and
``log_weight`` (Pareto-smoothed, and normalised over all draws: they sum to one). The draws are *not* weighted: they
follow :math:`q`; an expectation under the posterior is the sum over draws of ``exp(log_weight) * f``.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import Ended, MethodError, ProbgenWarning
from probgen.base.typing import Values
from probgen.infer.method import Method, Plan, Run
from probgen.program.density import Density
from probgen.program.sites import Kind

__all__ = ["GOOD_K", "Weights", "check_plan", "evaluate", "has_evidence", "split", "weigh", "weighted_run"]

GOOD_K = 0.7
"""Pareto k-hat above which weights cannot be trusted at any practical number of draws."""
_BATCH = 256
_EQUAL = 0.05
"""Largest log weights closer together than this have no tail worth fitting: k-hat does not see how small it is."""
_LEAST_TAIL = 5


@dataclasses.dataclass(frozen=True)
class Weights:
    """What importance weights say.

    Attributes:
        raw: Log weights, shape ``(n,)``.
        smoothed: Pareto-smoothed, normalised log weights.
        pareto_k: Shape of the tail of the weights; ``-inf`` where the largest are within 5 % of one another, NaN for fewer than 21 draws.
        ess: Effective sample size of the smoothed weights, between 1 and ``n``.
        log_evidence: Log of the mean raw weight.
        log_evidence_se: Its standard error (delta method).
    """

    raw: np.ndarray
    smoothed: np.ndarray
    pareto_k: float
    ess: float
    log_evidence: float
    log_evidence_se: float


def weigh(raw: np.ndarray) -> Weights:
    """Judge raw log weights, shape ``(n,)``; those that are not finite count as zero weight."""
    raw = np.where(np.isfinite(raw), raw, -np.inf)
    if not np.isfinite(raw).any():
        nothing = np.full(raw.shape, -math.log(raw.size))
        return Weights(raw, nothing, math.inf, math.nan, -math.inf, math.nan)
    top = raw.max()
    w = np.exp(raw - top)
    log_evidence = top + math.log(w.mean())
    se = float(w.std(ddof=1) / math.sqrt(w.size) / w.mean()) if w.size > 1 else math.nan
    smoothed, pareto_k = _pareto(raw)
    smoothed = smoothed - np.logaddexp.reduce(smoothed)
    ess = float(1 / np.sum(np.exp(2 * smoothed)))
    return Weights(raw, smoothed, pareto_k, ess, float(log_evidence), se)


def _pareto(raw: np.ndarray) -> tuple[np.ndarray, float]:
    tail = math.ceil(min(raw.size / 5, 3 * math.sqrt(raw.size)))
    if tail < _LEAST_TAIL:
        return raw, math.nan
    largest = np.sort(raw)[-tail - 1 :]
    if largest[-1] - largest[0] < _EQUAL:
        return raw, -math.inf
    from arviz_stats.base import array_stats

    # ArviZ takes log likelihoods, whose inverses are the weights of leave-one-out: hence the sign.
    smoothed, pareto_k = array_stats.psislw(-raw)
    return np.asarray(smoothed), float(pareto_k)


def check_plan(method: Method, plan: Plan) -> None:
    """Refuse what independent draws cannot have."""
    if plan.keep_warmup:
        raise MethodError(f"keep_warmup=True, but {type(method).__name__} has no warm-up. Leave keep_warmup out.")


def has_evidence(density: Density) -> bool:
    """Whether the evidence is defined: no prior is improper."""
    return all(site.proper for site in density.model.of_kind(Kind.continuous))


def evaluate(key: Array, density: Density, u: Array) -> tuple[Array, Values]:
    """Log density and constrained values of draws, shape ``(n, dim)``; in batches, to bound the memory.

    Discrete sites that the density has summed out are drawn back, from ``key``.
    """
    keys = jax.random.split(key, u.shape[0])
    return jax.lax.map(lambda one: (density.log_density(one[1]), density.values(*one)), (keys, u), batch_size=_BATCH)


def split(x: Any, plan: Plan) -> np.ndarray:
    """Arrange ``chains * draws`` rows by chain and draw."""
    x = np.asarray(x)
    return x.reshape(plan.chains, plan.draws, *x.shape[1:])


def weighted_run(
    density: Density,
    plan: Plan,
    u: Any,
    values: Values,
    lp: Any,
    raw: Any,
    sentence: str,
    ended: Ended = Ended.completed,
) -> Run:
    """The run of ``chains * draws`` independent draws from an approximation, with their weights; warns when these
    cannot be trusted.

    Args:
        density: The target.
        plan: How many draws.
        u: Draws, unconstrained, shape ``(n, dim)``.
        values: The same draws in constrained space.
        lp: Log density of the draws, shape ``(n,)``.
        raw: Raw log weights, shape ``(n,)``.
        sentence: What the draws are, in words.
        ended: How the fit ended.
    """
    lp, raw = np.asarray(lp, float), np.asarray(raw, float)
    weights = weigh(raw)
    stats = {"lp": lp, "log_q": lp - raw, "log_weight_raw": weights.raw, "log_weight": weights.smoothed}
    run = Run({k: split(v, plan) for k, v in values.items()}, {k: split(v, plan) for k, v in stats.items()})
    run.u = split(u, plan)
    run.ended = ended if np.isfinite(run.u).all() else Ended.diverged
    run.attrs = {**about(sentence), **judged(weights)}
    if has_evidence(density):
        run.attrs |= {
            "log_evidence": weights.log_evidence,
            "log_evidence_se": weights.log_evidence_se,
            "log_evidence_by": "importance sampling from the approximation",
        }
    warn(weights.pareto_k)
    return run


def about(sentence: str) -> dict[str, Any]:
    """Attributes of every approximation: it has no warm-up, and nothing to thin."""
    return {"kind": "approximate", "approximate": sentence, "warmup": 0, "thin": 1}


def judged(weights: Weights) -> dict[str, Any]:
    """Attributes that tell how good the approximation is."""
    return {"pareto_k": weights.pareto_k, "importance_ess": weights.ess}


def warn(pareto_k: float) -> None:
    """Warn when the approximation is too far from the posterior for its weights to help."""
    if pareto_k > GOOD_K:
        warnings.warn(
            f"Pareto k-hat is {pareto_k:.2f}, above {GOOD_K}: the approximation is far from the posterior, and weights "
            f"cannot correct it. Use a richer approximation, or pg.NUTS().",
            ProbgenWarning,
            stacklevel=4,
        )


def draw_normal(
    key: Array, density: Density, mean: Array, root: Array, count: int
) -> tuple[Array, Array, Array, Values]:
    r"""Draws :math:`u = m + L z` with their log density under :math:`q` and the target, and constrained values.

    Args:
        key: Randomness.
        density: The target.
        mean: :math:`m`, shape ``(dim,)``.
        root: :math:`L`, shape ``(dim, dim)``; :math:`L L^\top` is the covariance.
        count: Number of draws.
    """
    key_draw, key_discrete = jax.random.split(key)
    z = jax.random.normal(key_draw, (count, mean.shape[0]), mean.dtype)
    log_det = jnp.linalg.slogdet(root)[1]
    log_q = jnp.sum(jax.scipy.stats.norm.logpdf(z), -1) - log_det
    u = mean + z @ root.T
    lp, values = evaluate(key_discrete, density, u)
    return u, log_q, lp, values
