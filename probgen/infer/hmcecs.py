"""Hamiltonian Monte Carlo with energy-conserving subsampling."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError, ProbgenWarning, suggestion
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.infer.method import KernelMethod, Need, Plan, Run
from probgen.infer.settings import check_count, check_fraction
from probgen.kernels.climb import reference_point
from probgen.kernels.loop import Drawn
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.rows import RowDensity
from probgen.program.sites import Kind
from probgen.run.compiled import compile_all

__all__ = ["HMCECS"]

_LOOKS = 64
"""Draws at which the perturbation is measured."""
_BATCHES = 1000
"""Batches that measure it."""
_PERTURBED = 0.5
"""Perturbation above which the run warns."""

type _Frozen = tuple[tuple[str, Any], ...]


def _frozen(reference: Any) -> Any:
    """A mapping as tuples, which can be hashed."""

    def nested(value: Any) -> Any:
        return tuple(nested(part) for part in value) if isinstance(value, list) else value

    if not isinstance(reference, Mapping):
        return reference
    return tuple((str(name), nested(np.asarray(value).tolist())) for name, value in reference.items())


class HMCECS(KernelMethod):
    r"""NUTS on mini-batches: the log likelihood is estimated from a batch of rows that changes slowly.

    Dang, Quiroz, Kohn, Tran and Villani (2019). The program asks for the batch,
    ``numpyro.plate("row", N, subsample_size=m)``, and takes its rows by the indices that the plate gives. A draw costs
    passes over :math:`m` rows; all :math:`N` are seen at the start and at the end only. Rows are compared with their
    second-order Taylor polynomials around a reference point.

    The draws are *approximate*: they follow a posterior :math:`\tilde p` that the batches perturb, since the estimate
    is corrected for its variance as if its errors were normal. The run measures how much: at some of the draws it
    computes the weights :math:`w = p / \tilde p` with all rows, and ``attrs["perturbation"]`` is their standard
    deviation over their mean. No posterior mean is off by more than that number of its standard deviations, by the
    inequality of Cauchy and Schwarz; the number itself is an estimate from few draws. Where every row is quadratic in
    the unconstrained coordinates (a Gaussian linear model with known scales) it is 0, and the draws are exact.
    ``lp`` and ``energy`` are those of the estimate. Batches want dozens of rows: in batches of a few, one row that is
    drawn again and again has some weight, and the far tails of :math:`\tilde p` may rise. Subsampling without the
    polynomials is not offered: it draws from a posterior that is wrong by many standard deviations (Betancourt 2015).

    Attributes:
        backend: ``"numpyro"``.
        num_blocks: A draw proposes a fraction ``1 / num_blocks`` of the batch anew, at least one row: more blocks are
            accepted more often, but keep a batch for longer.
        reference: Values of every latent site, in constrained space, around which to expand. ``None``: the mode of
            the unconstrained density of all rows, which each chain finds by L-BFGS. Chains start there.
        target_accept: Acceptance rate that the step size of NUTS aims at, in (0, 1).
        max_tree_depth: Depth limit of NUTS.
    """

    backend: str = eqx.field(static=True, default="")
    num_blocks: int = eqx.field(static=True, default=10)
    reference: Mapping[str, Any] | _Frozen | None = eqx.field(static=True, default=None, converter=_frozen)
    target_accept: float = eqx.field(static=True, default=0.8)
    max_tree_depth: int = eqx.field(static=True, default=10)

    name: ClassVar = "hmcecs"
    summary: ClassVar = "NUTS on mini-batches with a Taylor proxy of the log likelihood (approximate)"
    backends: ClassVar = ("numpyro",)
    needs: ClassVar = frozenset({Need.gradient, Need.subsampling})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_count("num_blocks", self.num_blocks, 1, 10)
        check_count("max_tree_depth", self.max_tree_depth, 1, 10)
        check_fraction("target_accept", self.target_accept, 0.8)
        if self.reference is not None and not isinstance(self.reference, tuple):
            raise MethodError(
                f"reference must map the name of each latent site to its value, got {self.reference!r}. "
                f"Pass a dict, or None to have it found."
            )

    def density(self, model: Model) -> RowDensity:
        """See ``Method.density``.

        Raises:
            MethodError: If the program does not fit (see ``RowDensity``), or ``reference`` does not.
        """
        density = RowDensity(model, self._values(model))
        if density.reference is not None and not np.isfinite(np.asarray(density.reference)).all():
            bad = density.names[int(np.argmin(np.isfinite(np.asarray(density.reference))))]
            raise MethodError(f"reference lies outside the support, or on its edge, at {bad}. Give a value inside.")
        return density

    def _values(self, model: Model) -> Values | None:
        if self.reference is None:
            return None
        values = {name: jnp.asarray(value, float) for name, value in dict(self.reference).items()}
        sites = {site.name: site for site in model.of_kind(Kind.continuous)}
        for name, value in values.items():
            if name not in sites:
                raise MethodError(f"reference names {name!r}, which is no latent site. {suggestion(name, sites)}")
            if value.shape != sites[name].shape:
                raise MethodError(
                    f"reference has shape {value.shape} for site {name!r}, expected {sites[name].shape}. Give one "
                    f"value per entry of the site."
                )
        for name in sites:
            if name not in values:
                raise MethodError(f"reference lacks the site {name!r}. Give a value for every latent site.")
        return values

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If the program has no second derivatives, or no start is finite.
        """
        assert isinstance(density, RowDensity)
        key_run, key_look = jax.random.split(key)
        try:
            run = super().run(key_run, density, plan)
        except TypeError as error:
            if "forward-mode" not in str(error):
                raise
            raise MethodError(
                f"the program has a part without forward-mode derivatives, which the polynomials need: {error} "
                f"Drop subsample_size, and use pg.NUTS()."
            ) from error
        assert run.u is not None
        u = run.u
        some = np.linspace(0, u.shape[1] - 1, min(u.shape[1], -(-_LOOKS // len(u)))).astype(int)
        look = (key_look, density, jnp.asarray(u[:, some]))
        (program,), seconds = compile_all([(log_weights, look)])
        log_w = np.asarray(program(*look))
        w = np.exp(log_w - log_w.max())
        size = float(w.std() / w.mean())
        run.seconds["compile"] += seconds
        run.attrs["perturbation"] = size
        run.attrs["approximate"] = (
            f"mini-batches perturb the posterior: posterior means are off by up to about {size:.2g} standard deviations"
        )
        if not size < _PERTURBED:
            warnings.warn(
                f"mini-batches perturb the posterior by up to {size:.2g} standard deviations (attrs['perturbation']). "
                f"Raise subsample_size, or use a method that sees all rows.",
                ProbgenWarning,
                stacklevel=2,
            )
        return run

    def draw(
        self, key: PRNGKey, density: Density, *, draws: int, warmup: int, chains: int, thin: int | Array = 1
    ) -> Drawn:
        """See ``KernelMethod.draw``."""
        if not isinstance(density, RowDensity):
            density = self.density(density.model)
        return super().draw(key, density, draws=draws, warmup=warmup, chains=chains, thin=thin)


def log_weights(key: PRNGKey, density: RowDensity, u: Array) -> Array:
    r"""Log weights, up to a constant, that would make the draws follow the posterior of all rows.

    With errors :math:`d_i` of the Taylor polynomials of all rows at a draw, the estimate :math:`\hat\ell` of any batch
    is known, and the log weight is :math:`-\log E \exp(\hat\ell - \ell)`, the mean taken over random batches, the same
    for all draws.

    Args:
        key: Draws the batches.
        density: The density, whose rows are all rows.
        u: Some of the draws, unconstrained, shape ``(chains, n, dim)``.

    Returns:
        Shape ``(chains, n)``.
    """
    keys = jax.random.split(key, _BATCHES)

    def log_weight(u: Position, reference: Position) -> Scalar:
        def along(t: Scalar) -> dict[str, Array]:
            return density.by_row(reference + t * (u - reference))[0]

        slope = jax.jacfwd(along)
        zero = jnp.zeros((), u.dtype)
        exact, parts = along(zero + 1), (along(zero), slope(zero), jax.jacfwd(slope)(zero))
        off = {name: exact[name] - (parts[0][name] + parts[1][name] + 0.5 * parts[2][name]) for name in exact}

        def error(key: PRNGKey) -> Scalar:
            total = zero
            for key_plate, plate in zip(jax.random.split(key, len(off)), density.plates, strict=True):
                size, every = plate.size, off[plate.name]
                batch = every[jax.random.randint(key_plate, (plate.subsample,), 0, size)]
                total += size * (jnp.mean(batch) - jnp.mean(every)) - size**2 / plate.subsample * jnp.var(batch) / 2
            return total

        return -jax.nn.logsumexp(jax.lax.map(error, keys))

    def chain(u: Array) -> Array:
        reference = reference_point(density, u[-1])
        return jax.lax.map(lambda here: log_weight(here, reference), u)

    return jax.lax.map(chain, u)
