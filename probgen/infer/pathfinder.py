r"""Pathfinder: the best of the Gaussians that L-BFGS meets on its way to the mode.

At step :math:`l` of L-BFGS, with point :math:`u_l`, gradient :math:`g_l = \nabla \log p(u_l, y)` and estimated
inverse curvature :math:`\Sigma_l`, the candidate is :math:`N(u_l + \Sigma_l g_l, \Sigma_l)`; the one with the highest
ELBO is kept (Zhang, Carpenter, Gelman and Vehtari 2022, JMLR 23(306), algorithms 1, 3 and 4). Several paths from
random starts give a mixture. Draws are taken from it in equal parts and weighted by :math:`p / q` with the density of
the *mixture* for :math:`q` (the balance heuristic: Owen and Zhou 2000); the paper weighs by the path's own Gaussian,
which counts a mode as often as paths have found it. Then, unless told otherwise, draws are resampled by their
Pareto-smoothed weights.

L-BFGS and its inverse curvature are BlackJAX's. Its own ``pathfinder`` is not used: in 1.7.1 it centres the
candidates at :math:`u_l - \Sigma_l g_l` and never looks at the last step.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm

from probgen.base.errors import Ended, MethodError
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.infer.approximate import check_plan, evaluate, split, weigh, weighted_run
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.sampling import no_start
from probgen.kernels.loop import find_start
from probgen.program.density import Density
from probgen.run.compiled import compile_all
from probgen.run.driver import Worker, drive, to_host
from probgen.run.progress import Progress

__all__ = ["FactoredNormal", "Path", "Pathfinder", "find_path"]


class FactoredNormal(eqx.Module):
    r"""Gaussian with covariance :math:`A A^\top`, :math:`A = D (I + Q (L - I) Q^\top)`; every operation is O(dim rank).

    Attributes:
        mean: Shape ``(dim,)``.
        scale: Diagonal of :math:`D`, shape ``(dim,)``.
        basis: :math:`Q`, orthonormal columns, shape ``(dim, rank)``.
        root: :math:`L`, lower triangular, shape ``(rank, rank)``.
    """

    mean: Array
    scale: Array
    basis: Array
    root: Array

    @classmethod
    def at(cls, u: Array, grad: Array, alpha: Array, beta: Array, gamma: Array) -> FactoredNormal:
        r"""The candidate at a point of the path, with :math:`\Sigma = \operatorname{diag}(\alpha) + \beta \gamma
        \beta^\top`."""
        scale = jnp.sqrt(alpha)
        basis, r = jnp.linalg.qr(beta / scale[:, None])
        root = jnp.linalg.cholesky(jnp.eye(r.shape[0]) + r @ gamma @ r.T)
        return cls(u + alpha * grad + beta @ (gamma @ (beta.T @ grad)), scale, basis, root)

    def push(self, z: Array) -> Array:
        """The draw that standard normal numbers ``z``, shape ``(dim,)``, become."""
        along = self.basis.T @ z
        return self.mean + self.scale * (z + self.basis @ (self.root @ along - along))

    def log_prob(self, u: Position) -> Scalar:
        """Log density at ``u``."""
        z = (u - self.mean) / self.scale
        along = self.basis.T @ z
        z = z + self.basis @ (jax.scipy.linalg.solve_triangular(self.root, along, lower=True) - along)
        return jnp.sum(norm.logpdf(z) - jnp.log(self.scale)) - jnp.sum(jnp.log(jnp.diag(self.root)))

    def variance(self) -> Array:
        """Marginal variances, shape ``(dim,)``."""
        inner = self.root @ self.root.T - jnp.eye(self.root.shape[0])
        return self.scale**2 * (1 + jnp.sum((self.basis @ inner) * self.basis, -1))


class Path(eqx.Module):
    """What one path found.

    Attributes:
        normal: The candidate with the highest ELBO.
        elbo: Estimated ELBO at each point of the path, shape ``(max_steps + 1,)``; ``-inf`` where there is none.
        steps: Steps that L-BFGS took.
        ok: Whether there is a candidate with a finite ELBO.
    """

    normal: FactoredNormal
    elbo: Array
    steps: Array
    ok: Array


def find_path(key: PRNGKey, density: Density, max_steps: int, history: int, elbo_draws: int, tolerance: float) -> Path:
    """One path, from a random start."""
    from blackjax.optimizers.lbfgs import lbfgs_inverse_hessian_factors, minimize_lbfgs

    key_start, key_elbo = jax.random.split(key)
    start, found = find_start(key_start, density)

    def loss(u: Position) -> Scalar:
        value = -density.log_density(u)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    (_, status), trail = minimize_lbfgs(
        loss, start, maxiter=max_steps, maxcor=history, gtol=1e-10, ftol=tolerance, maxls=50
    )
    steps = jnp.asarray(status.iter_num, int)
    used = trail.update_mask[1:]
    s = jnp.where(used, jnp.diff(trail.x, axis=0), 0.0)
    z = jnp.where(used, jnp.diff(trail.g, axis=0), 0.0)
    s, z = jnp.pad(s, ((history, 0), (0, 0))), jnp.pad(z, ((history, 0), (0, 0)))
    noise = jax.random.normal(key_elbo, (elbo_draws, density.dim))

    def candidate(step: Array) -> FactoredNormal:
        before = step + jnp.arange(history)  # the last updates before this step, after the padding
        beta, gamma = lbfgs_inverse_hessian_factors(s[before].T, z[before].T, trail.alpha[step])
        return FactoredNormal.at(trail.x[step], -trail.g[step], trail.alpha[step], beta, gamma)

    def elbo(step: Array) -> Scalar:
        normal = candidate(step)
        u = jax.vmap(normal.push)(noise)
        value = jnp.mean(jax.vmap(density.log_density)(u) - jax.vmap(normal.log_prob)(u))
        return jnp.where(jnp.isfinite(value), value, -jnp.inf)

    def taken(step: Array) -> Scalar:
        return jax.lax.cond(step <= steps, elbo, lambda _: jnp.asarray(-jnp.inf, start.dtype), step)

    elbos = jax.lax.map(taken, jnp.arange(max_steps + 1))
    best = jnp.argmax(elbos)
    return Path(candidate(best), elbos, steps, found & jnp.isfinite(elbos[best]))


def draw_mixture(
    key: PRNGKey, density: Density, normals: FactoredNormal, count: int
) -> tuple[Array, Array, Array, Values]:
    """``count`` draws, in equal parts from each component: ``u``, log density of the mixture, of the target, and
    values.

    Args:
        key: Randomness.
        density: The target.
        normals: The components, stacked along the first axis.
        count: Number of draws; draw ``i`` comes from component ``i % components``.
    """
    components = normals.mean.shape[0]
    each = -(-count // components)
    key_noise, key_discrete = jax.random.split(key)
    noise = jax.random.normal(key_noise, (components, each, density.dim))
    u = jax.vmap(lambda normal, z: jax.vmap(normal.push)(z))(normals, noise)
    u = jnp.swapaxes(u, 0, 1).reshape(-1, density.dim)[:count]
    share = np.bincount(np.arange(count) % components, minlength=components) / count
    with np.errstate(divide="ignore"):  # fewer draws than paths: the others have no part in the mixture
        log_share = jnp.asarray(np.log(share))
    log_q = jax.vmap(lambda normal: jax.vmap(normal.log_prob)(u))(normals)
    lp, values = evaluate(key_discrete, density, u)
    return u, jax.scipy.special.logsumexp(log_q + log_share[:, None], axis=0), lp, values


class Pathfinder(Method):
    """Gaussians along L-BFGS paths, corrected by importance resampling.

    With ``resample=True`` the draws are resampled with replacement by their Pareto-smoothed weights: they are
    *unweighted* draws from (nearly) the posterior, some of them equal. With ``resample=False`` they are draws from
    the mixture, and ``sample_stats`` has their weights (``log_weight``). Either way the result is approximate;
    ``attrs["pareto_k"]`` and ``attrs["importance_ess"]`` say how good. Group ``optimization`` keeps the ELBO along
    each path, and the weights of the draws before resampling.

    Attributes:
        backend: ``"blackjax"``.
        paths: Number of paths, from random starts; a path that fails is left out, and counted in
            ``attrs["failed_paths"]``.
        resample: Whether to resample by the weights.
        max_steps: Limit of L-BFGS steps per path.
        history: Updates that L-BFGS remembers.
        elbo_draws: Draws to estimate each ELBO.
        tolerance: A path ends where the log density changes by less than this part of itself.
    """

    backend: str = eqx.field(static=True, default="")
    paths: int = eqx.field(static=True, default=4)
    resample: bool = eqx.field(static=True, default=True)
    max_steps: int = eqx.field(static=True, default=200)
    history: int = eqx.field(static=True, default=6)
    elbo_draws: int = eqx.field(static=True, default=64)
    tolerance: float = eqx.field(static=True, default=1e-8)

    name: ClassVar = "pathfinder"
    summary: ClassVar = "Gaussians along L-BFGS paths, importance resampling; approximate"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = frozenset({Need.gradient})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        for name, usual in (("paths", 4), ("max_steps", 200), ("history", 6), ("elbo_draws", 64)):
            if getattr(self, name) < 1:
                raise MethodError(f"{name} must be at least 1, got {getattr(self, name)}. {usual} is usual.")
        if not self.tolerance > 0:
            raise MethodError(f"tolerance must be positive, got {self.tolerance}. 1e-8 is usual.")

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If no path has a finite ELBO anywhere.
        """
        check_plan(self, plan)
        key_path, key_draw, key_resample = jax.random.split(key, 3)
        settings = (self.max_steps, self.history, self.elbo_draws, self.tolerance)
        count = plan.chains * plan.draws

        def drawn(shapes: list[Any]) -> tuple[Any, ...]:
            normal = shapes[0].normal
            stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.paths, *x.shape), x.dtype), normal)
            return key, density, stacked, count

        (finder, drawer), compiling = compile_all([(find_path, (key, density, *settings)), (draw_mixture, drawn)])
        began = time.perf_counter()
        found: dict[int, Path] = {}

        def worker(index: int) -> Worker:
            def work(first: int, last: int) -> dict[str, float]:
                found[index] = to_host(finder(jax.random.fold_in(key_path, index), density, *settings))
                return {"elbo": float(found[index].elbo.max())}

            return work

        labels = [f"path {i}" for i in range(self.paths)]
        interrupted = drive(
            [worker(i) for i in range(self.paths)], [(0, 1)], Progress(labels, 1, plan.progress, "paths")
        )
        if not found:
            raise KeyboardInterrupt
        paths = [found[i] for i in sorted(found)]
        good = [p for p in paths if p.ok]
        if not good:
            raise no_start(density, key_path)
        best = max(good, key=lambda p: float(p.elbo.max()))
        # A path that failed is replaced by the best one: shapes, and so the compiled program, stay.
        normals = [p.normal if p.ok else best.normal for p in paths] + [best.normal] * (self.paths - len(paths))
        mixture = jax.tree.map(lambda *xs: jnp.stack(xs), *normals)
        u, log_q, lp, values = to_host(drawer(key_draw, density, mixture, count))
        climbing = int(best.steps) >= self.max_steps
        ended = Ended.interrupted if interrupted else Ended.not_converged if climbing else Ended.completed
        if self.resample:
            run = self._resampled(key_resample, density, plan, u, values, lp, lp - log_q, ended)
        else:
            sentence = "Draws from a mixture of Gaussians along L-BFGS paths, not from the posterior."
            run = weighted_run(density, plan, u, values, lp, lp - log_q, sentence, ended)
        length = max(int(p.steps) for p in paths) + 1
        run.groups["optimization"] = {
            "elbo": (("path", "step"), np.stack([p.elbo[:length] for p in paths])),
            "steps": (("path",), np.stack([p.steps for p in paths])),
            "best_elbo": (("path",), np.stack([p.elbo.max() for p in paths])),
            "candidate_log_weight": (("candidate",), weigh(lp - log_q).smoothed),
            "candidate_path": (("candidate",), np.arange(count) % self.paths),
        }
        run.attrs |= {"failed_paths": len(paths) - len(good), "elbo": float(best.elbo.max())}
        run.seconds = {"compile": compiling, "sampling": time.perf_counter() - began}
        return run

    def _resampled(
        self,
        key: PRNGKey,
        density: Density,
        plan: Plan,
        u: np.ndarray,
        values: Values,
        lp: np.ndarray,
        raw: np.ndarray,
        ended: Ended,
    ) -> Run:
        sentence = "Draws from a mixture of Gaussians along L-BFGS paths, importance-resampled towards the posterior."
        run = weighted_run(density, plan, u, values, lp, raw, sentence, ended)
        weights = np.exp(run.stats["log_weight"].ravel())
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        chosen = generator.choice(weights.size, weights.size, p=weights / weights.sum())
        # The weights are spent; nobody shall apply them twice.
        run.stats = {"lp": split(lp[chosen], plan)}
        run.values = {name: split(np.asarray(value)[chosen], plan) for name, value in values.items()}
        run.u = split(u[chosen], plan)
        run.attrs["unique_draws"] = int(np.unique(chosen).size)
        return run
