r"""An amortized posterior as proposal, corrected by the density of the program.

Draws :math:`u_i \sim q` get the weights :math:`w_i = p(u_i, y) / q(u_i)`. Where Pareto :math:`\hat k` says that these can
be trusted, and they are worth at least half as many draws as are asked for, draws are taken in proportion to the smoothed
weights. Where not (a few points would be repeated over and over), the particles of a sequential Monte Carlo sampler are
carried from :math:`q` to the posterior along :math:`q^{1 - \beta} p^{\beta}`, moved at each step by kernels that leave it
invariant. Either way the result has the evidence, which is unbiased for the weights and consistent for the particles.
``attrs["correction"]`` says which was needed.

:math:`q` must be a law with a density. That of a flow is one; for laws that are only drawn from cheaply (flow matching,
diffusion) a mixture is fitted to their draws, and the weights are those of the mixture: exact, if of more variance.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.amortized.amortized import Amortized
from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.infer.approximate import GOOD_K, check_plan, split, weigh
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.smc import SMC, values_of
from probgen.kernels.moves import DifferentialEvolution
from probgen.program.bridged import BridgedDensity
from probgen.program.density import Density
from probgen.run.compiled import compile_all
from probgen.run.driver import to_host

__all__ = ["ImportanceSampling"]

_FEWEST = 1000
_WORTH = 0.5
"""Effective draws among the weighted ones, per draw of the result, under which they are moved."""
_BATCH = 256


class ImportanceSampling(Method):
    """Draws of an amortized posterior, corrected by the density of the model.

    The draws of the result follow the posterior, with equal weights; those of one chain come from one pool of draws of
    the proposal, so the chains are independent.

    Attributes:
        backend: ``"probgen"``.
        proposal: From ``pg.amortize``.
        pool: Draws of the proposal per draw of the result.
        correct: What carries particles on where weights cannot be trusted or are too unequal. ``None``: ``pg.SMC`` with
            differential-evolution moves and as many particles as draws are asked for, at least 1,000.
        always_move: Whether to do so even where they can.
    """

    backend: str = eqx.field(static=True)
    proposal: Amortized
    pool: int = eqx.field(static=True)
    correct: SMC | None = eqx.field(static=True)
    always_move: bool = eqx.field(static=True)

    name: ClassVar = "importance"
    summary: ClassVar = "An amortized posterior corrected by the model's density; evidence"
    backends: ClassVar = ("probgen",)
    needs: ClassVar = frozenset({Need.prior_draws, Need.likelihood})

    def __init__(
        self,
        proposal: Amortized,
        *,
        pool: int = 4,
        correct: SMC | None = None,
        always_move: bool = False,
        backend: str = "",
    ) -> None:
        self.proposal, self.pool, self.always_move, self.backend = proposal, pool, always_move, backend
        self.correct = correct

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        if not isinstance(self.proposal, Amortized):
            raise MethodError(
                f"proposal must be what pg.amortize returned, got {type(self.proposal).__name__}. Write "
                f"pg.ImportanceSampling(amortized)."
            )
        if not is_count(self.pool):
            raise MethodError(f"pool must be an int of at least 1, got {self.pool!r}. 4 is usual.")
        if self.correct is not None:
            if not isinstance(self.correct, SMC):
                raise MethodError(f"correct must be a pg.SMC(), got {self.correct!r}. Leave it out for the default.")
            self.correct.check()
            if self.correct.path is not None:
                raise MethodError(
                    "correct has path=pg.DataTempering(), which begins at the prior, and the particles begin at the "
                    "amortized posterior. Leave path out."
                )
        if self.proposal.question.outside:
            raise MethodError(
                "the observations are those of a simulator, whose density is not known, so nothing can be corrected by it. "
                "Use the amortized posterior itself: pg.infer(model, amortized.condition(...))."
            )

    def described(self) -> dict[str, Any]:
        """See ``Method.described``."""
        return {
            "pool": self.pool,
            "correct": self.correct,
            "always_move": self.always_move,
            **self.proposal.described(),
        }

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If the model is not the one that was amortized, or the posterior is zero at all draws.
            DataError: If the observation has another shape, or is not finite.
        """
        check_plan(self, plan)
        key_fit, key_pool, key_chosen, key_values, key_move = jax.random.split(key, 5)
        began = time.perf_counter()
        proposal, about = self.proposal.proposal(key_fit, density)
        size = plan.chains * plan.draws * self.pool
        call = (key_pool, proposal, density, size)
        (program,), compiling = compile_all([(_weighed, call)])
        u, lp, raw = to_host(program(*call))
        weights = weigh(raw)
        if not np.isfinite(weights.raw).any():
            raise MethodError(
                "the density of the model is zero or not a number at all draws of the proposal. Look at whether the "
                "observation is one that the model could have drawn."
            )
        about |= {
            "pareto_k": weights.pareto_k,
            "importance_ess": weights.ess,
            "warmup": 0,
            "thin": 1,
        }
        short = weights.ess < _WORTH * plan.chains * plan.draws
        if self.always_move or short or not weights.pareto_k <= GOOD_K:
            correct = self.correct or SMC(particles=max(plan.draws, _FEWEST), kernel=DifferentialEvolution())
            run = correct.run(key_move, BridgedDensity(density, proposal), plan)
            run.attrs |= about | {
                "correction": f"sequential Monte Carlo from the proposal, {size} draws of which are worth {weights.ess:.0f} "
                f"(Pareto k-hat {weights.pareto_k:.2f})"
            }
            return run
        chosen = _chosen(np.asarray(jax.random.uniform(key_chosen, (plan.chains,))), weights.smoothed, plan)
        picked = u[chosen]
        call = (key_values, density, jnp.asarray(picked).reshape(plan.chains, plan.draws, -1))
        (program,), more = compile_all([(values_of, call)])
        values = to_host(program(*call))
        run = Run(values, {"lp": split(lp[chosen], plan)}, split(picked, plan))
        run.attrs = about | {
            "correction": f"importance weights (Pareto k-hat {weights.pareto_k:.2f})",
            "distinct_draws": len(np.unique(chosen)),
            "log_evidence": weights.log_evidence,
            "log_evidence_se": weights.log_evidence_se,
            "log_evidence_by": "importance sampling from the amortized posterior",
        }
        run.seconds = {"compile": compiling + more, "sampling": time.perf_counter() - began - compiling - more}
        return run


def _weighed(key: PRNGKey, proposal: Any, density: Density, size: int) -> tuple[Array, Array, Array]:
    """Draws of the proposal, their log densities under the target, and their log weights."""
    u = proposal.sample(key, (size,)).astype(float)
    lp = jax.lax.map(density.log_density, u, batch_size=_BATCH)
    return u, lp, lp - proposal.log_prob(u)


def _chosen(starts: np.ndarray, log_w: np.ndarray, plan: Plan) -> np.ndarray:
    """Rows in proportion to their weights, by systematic resampling within the pool of each chain, in random order."""
    pools = log_w.reshape(plan.chains, -1)
    rows = []
    for i, (start, pool) in enumerate(zip(starts, pools, strict=True)):
        w = np.exp(pool - pool.max())
        edges = np.cumsum(w) / w.sum()
        at = np.searchsorted(edges, (np.arange(plan.draws) + start) / plan.draws)
        rows.append(i * pools.shape[1] + np.minimum(at, pools.shape[1] - 1))
    return np.concatenate(rows)
