"""Posteriors in closed form, for the programs that have one."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Values
from probgen.infer.method import Method, Plan, Run
from probgen.program.closed_form import Limits, Recognised, recognise
from probgen.program.density import Density
from probgen.program.joint import Joint, Posterior
from probgen.program.model import Model
from probgen.program.sites import Kind
from probgen.run.compiled import compile_all

__all__ = ["Exact", "Solution"]

_AT_ONCE = 256
"""Draws for which the program is replayed side by side."""


class Solution(eqx.Module):
    """A solved program: how it was cut, and the posterior of each block."""

    recognised: Recognised = eqx.field(static=True)
    posteriors: tuple[Posterior, ...]
    log_evidence: Array
    seconds: float = eqx.field(static=True)


class Exact(Method):
    r"""Exact posterior, independent draws from it, and the exact log evidence.

    The latent sites are cut into blocks that are independent given the data. A block is solved when

    - all its sites are discrete with finitely many values: along a ``scan`` by forward and backward messages, in time
      linear in its length (whatever the observations); elsewhere by visiting all joint states,
    - all its sites are Gaussian, locations affine in the latent sites, covariances constant (missing data too): along a
      ``scan`` by a Kalman filter and smoother, in time linear in its length; elsewhere as one multivariate normal,
    - it is Gaussian with one unknown common scale (normal-gamma, normal-inverse-gamma; conjugate linear regression),
    - its priors are beta, uniform on (0, 1), gamma, exponential, inverse gamma or Dirichlet, and the posterior stays in
      that family.

    Along a ``scan`` means: sites before it may enter the steps, all observations of the chain stand in its body or before
    it, and (discrete sites) the carry knows the values of the last step only. Where all sites share a plate, its rows are
    solved one by one. Chains that do not fit are solved as a whole, while they are small.

    Other programs are refused with the first site that does not fit. Each closed form but the enumeration of all states is
    compared with the program's own density at test points; a relative difference above ``1e-9`` (``1e-5`` in 32-bit)
    refuses the program too. "Exact" is up to that rounding.

    The group ``exact`` of the tree describes the posterior: marginal probabilities, means and covariance blocks, or
    parameters of the family. Along a scan it has means and standard deviations, or probabilities and the most probable
    path, given all data, and ``filtered`` ones given the data up to the step. ``attrs`` has ``log_evidence``,
    ``log_evidence_se`` (0), and the rule of each site. The warm-up and the thinning of the call do nothing.

    Attributes:
        backend: ``"probgen"``.
        max_states: Most joint states of a finite block; of a chain, of two steps that follow one another.
        max_dim: Most coordinates of a Gaussian block. A chain may have more: its matrices hold together no more numbers
            than the covariance of such a block.
    """

    backend: str = eqx.field(static=True, default="")
    max_states: int = eqx.field(static=True, default=2**20)
    max_dim: int = eqx.field(static=True, default=4096)

    name: ClassVar = "exact"
    summary: ClassVar = "closed forms: finite discrete, linear-Gaussian and conjugate programs"
    backends: ClassVar = ("probgen",)

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        for name in ("max_states", "max_dim"):
            if getattr(self, name) < 1:
                raise MethodError(f"{name} must be at least 1, got {getattr(self, name)}. Correct {name}.")

    def solve(self, model: Model) -> Solution:
        """Recognise a program and solve it.

        Raises:
            MethodError: If it has no closed form that is known here; names the first site that does not fit.
        """
        model = model.unlabelled()
        tolerance = 1e-9 if jax.config.jax_enable_x64 else 1e-5
        recognised = recognise(model, Limits(self.max_states, self.max_dim))
        posteriors, log_evidence, seconds = _solved(model, recognised)
        if any(
            block.lane and not float(p.residual) <= tolerance
            for block, p in zip(recognised.blocks, posteriors, strict=True)
        ):
            # The rows of a plate know of one another: they are one chain.
            recognised = recognise(model, Limits(self.max_states, self.max_dim, lanes=False))
            posteriors, log_evidence, more = _solved(model, recognised)
            seconds += more
        for block, posterior in zip(recognised.blocks, posteriors, strict=True):
            where = f"site {block.sites[0]!r}"
            if not bool(posterior.proper):
                raise MethodError(
                    f"no closed form: {where} has no proper posterior by the rule {block.rule!r} (log evidence "
                    f"{float(posterior.log_evidence):g}). Check its prior and its data, or use pg.NUTS()."
                )
            if not float(posterior.residual) <= tolerance:
                others = ", ".join(name for name in block.terms if name not in block.sites) or "no likelihood"
                raise MethodError(
                    f"no closed form: {where} with {others} is not {block.rule.split(':')[0]}; the form misses the "
                    f"program's density by {float(posterior.residual):.1e} (relative). Use pg.NUTS(), or another "
                    f"method of pg.methods()."
                )
        return Solution(recognised, posteriors, log_evidence, seconds)

    def density(self, model: Model) -> Density:
        """See ``Method.density``; discrete sites stay as they are."""
        return Density(model)

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``."""
        began = time.perf_counter()
        model = density.model
        solution = self.solve(model)
        # A request to keep the warm-up gets as many further draws: they come from the posterior too.
        count = plan.draws + (plan.warmup // plan.thin if plan.keep_warmup else 0)
        keys = jax.vmap(lambda c: jax.random.fold_in(key, c))(jnp.arange(plan.chains))
        call = (keys, density, solution.recognised, solution.posteriors, count)
        (program,), seconds = compile_all([(_draw, call)])
        values, lp, u = jax.tree.map(np.asarray, program(*call))
        compiled = solution.seconds + seconds
        return Run(
            values,
            {"lp": lp},
            u,
            attrs={
                "log_evidence": float(solution.log_evidence),
                "log_evidence_se": 0.0,
                "rules": {site: block.rule for block in solution.recognised.blocks for site in block.sites},
            },
            groups={"exact": _summary(model, solution)},
            seconds={"compile": compiled, "sampling": time.perf_counter() - began - compiled},
        )


def _solved(model: Model, recognised: Recognised) -> tuple[tuple[Posterior, ...], Array, float]:
    (program,), seconds = compile_all([(_solve, (model, recognised))])
    return *program(model, recognised), seconds


def _solve(model: Model, recognised: Recognised) -> tuple[tuple[Posterior, ...], Array]:
    joint = Joint(model)
    posteriors = tuple(block.solve(joint) for block in recognised.blocks)
    constant = joint({}, recognised.constants)[0]
    return posteriors, constant + sum(posterior.log_evidence for posterior in posteriors)


def _draw(
    keys: Array, density: Density, recognised: Recognised, posteriors: tuple[Posterior, ...], count: int
) -> tuple[Values, Array, Array | None]:
    """Draws of reported sites, log densities and coordinates, with leading axes ``(chains, draws)``."""
    model = density.model
    joint = Joint(model)
    reported = [s.name for s in model.of_kind(Kind.continuous, Kind.discrete, Kind.deterministic) if not s.auxiliary]
    names = tuple(s.name for s in model.of_kind(Kind.continuous, Kind.discrete, Kind.observed, Kind.factor))
    discrete = bool(model.of_kind(Kind.discrete))

    def chain(key: PRNGKey) -> Values:
        drawn: Values = {}
        for i, (block, posterior) in enumerate(zip(recognised.blocks, posteriors, strict=True)):
            drawn |= block.draw(jax.random.fold_in(key, i), model, posterior.parameters, count)
        return drawn

    def replay(values: Values) -> tuple[Values, Array, Array | None]:
        traced = joint.run(values)
        u = None if discrete else density.unconstrain(values)
        lp = joint(values, names)[0] if u is None else density.log_density(u)
        return {name: traced[name]["value"] for name in reported}, lp, u

    drawn = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(chain)(keys))
    total = keys.shape[0] * count
    out = jax.lax.map(replay, drawn, batch_size=_divisor(total))
    return jax.tree.map(lambda x: x.reshape(keys.shape[0], count, *x.shape[1:]), out)


def _divisor(total: int) -> int:
    """The largest divisor that is at most ``_AT_ONCE``: a remainder would compile the program twice."""
    return max(size for size in range(1, min(_AT_ONCE, total) + 1) if total % size == 0)


def _summary(model: Model, solution: Solution) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    for block, posterior in zip(solution.recognised.blocks, solution.posteriors, strict=True):
        variables |= block.summary(model, posterior.parameters)
    return {name: (dims, np.asarray(value)) for name, (dims, value) in variables.items()}
