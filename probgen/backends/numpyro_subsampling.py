r"""NumPyro's ``HMCECS`` around NUTS: Hamiltonian Monte Carlo that sees a mini-batch of the data.

The chain holds coordinates :math:`u` and, for each subsampled plate, indices of :math:`m` of its :math:`N` rows, drawn
with replacement. With :math:`q_i`, the second-order Taylor polynomial of the log likelihood :math:`\ell_i` of row
:math:`i` around a reference point, and :math:`d_j = \ell_{i_j}(u) - q_{i_j}(u)`, the log likelihood is estimated as

.. math:: \hat\ell(u) = \sum_{i=1}^N q_i(u) + \frac Nm \sum_{j=1}^m d_j - \tfrac12 \hat\sigma^2,
    \qquad \hat\sigma^2 = \frac{N^2}m \operatorname{var}(d)

(Dang, Quiroz, Kohn, Tran and Villani 2019). A draw proposes new rows for a part of the batch, accepts
them by :math:`\hat\ell`, and moves :math:`u` by NUTS at fixed rows.

NumPyro sees a vector ``u``, the plates, and one factor per plate; its own Taylor proxy would pass over all rows again
wherever it is built, which here is every step, and takes the transforms of one execution. The proxy here keeps the sums
over all rows in the state, with the same interface.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.infer import HMCECS, NUTS

from probgen.backends.numpyro_state import FLAT, dense, like, rekeyed
from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.kernels.climb import reference_point
from probgen.kernels.kernel import Draw, Kernel
from probgen.program.density import Density
from probgen.program.rows import RowDensity

__all__ = ["KERNELS"]

type Rows = dict[str, Array]


class Taylor(NamedTuple):
    """Quadratic polynomials: arrays of shape ``(...)``, ``(..., dim)`` and ``(..., dim, dim)``."""

    value: Array
    slope: Array
    curvature: Array

    def __call__(self, step: Array) -> Array:
        """The polynomials at a distance ``step``, shape ``(dim,)``, from where they were expanded."""
        return self.value + self.slope @ step + 0.5 * (self.curvature @ step) @ step


class Surrogate(NamedTuple):
    """The reference point, and the sum over all rows of the polynomials around it, by plate."""

    reference: Position
    sums: dict[str, Taylor]


class Subsampled(NamedTuple):
    """State of a chain: what stays, and NumPyro's own."""

    surrogate: Surrogate
    engine: Any


def expand(density: RowDensity, reference: Position, rows: Rows) -> dict[str, Taylor]:
    """The polynomial of every row in ``rows``, by plate."""

    def terms(u: Position) -> Rows:
        return density.of(rows).by_row(u)[0]

    slope = jax.jacfwd(terms)
    parts = terms(reference), slope(reference), jax.jacfwd(slope)(reference)
    return {name: Taylor(*(part[name] for part in parts)) for name in rows}


def expand_sum(density: RowDensity, reference: Position) -> dict[str, Taylor]:
    """The sum of the polynomials of all rows, by plate."""

    def sums(u: Position) -> dict[str, Scalar]:
        return jax.tree.map(jnp.sum, density.by_row(u)[0])

    slope = jax.jacrev(sums)
    parts = sums(reference), slope(reference), jax.jacfwd(slope)(reference)
    return {name: Taylor(*(part[name] for part in parts)) for name in density.rows}


class SubsamplingKernel(Kernel):
    """NumPyro's ``HMCECS`` with a Taylor proxy, around NUTS.

    Attributes:
        warmup: Adaptation steps.
        target: Acceptance rate that the step size of NUTS aims at.
        max_tree_depth: Depth limit of NUTS.
        num_blocks: In how many draws, on average, a batch is proposed anew.
    """

    warmup: int = eqx.field(static=True)
    target: float = eqx.field(static=True)
    max_tree_depth: int = eqx.field(static=True)
    num_blocks: int = eqx.field(static=True)

    def _engine(
        self, key: PRNGKey, density: RowDensity, surrogate: Surrogate, u: Position, rows: Rows
    ) -> tuple[HMCECS, Any]:
        def program() -> None:
            u = numpyro.sample(FLAT, dist.ImproperUniform(dist.constraints.real_vector, (), (density.dim,)))
            plates = {p.name: numpyro.plate(p.name, p.size, p.subsample) for p in density.plates}
            shown: Rows = {}
            for name, plate in plates.items():
                with plate as rows:
                    shown[name] = rows
            with handlers.block():
                terms, rest = density.of(shown).by_row(jnp.asarray(u))
            numpyro.factor("_rest", rest)
            for name, plate in plates.items():
                with plate:
                    numpyro.factor(f"_{name}", terms[name])

        def proxy(*_: Any, **__: Any) -> tuple[Any, Any, Any]:
            def values(params: Any, names: Any, batch: dict[str, Taylor]) -> tuple[Any, Any]:
                step = params[FLAT] - surrogate.reference
                return {n: surrogate.sums[n](step) for n in names}, {n: batch[n](step) for n in names}

            def start(_: PRNGKey, rows: Rows) -> dict[str, Taylor]:
                return expand(density, surrogate.reference, rows)

            def update(key: PRNGKey, rows: Rows, batch: dict[str, Taylor]) -> tuple[Rows, dict[str, Taylor]]:
                where, fresh = {}, {}
                for key_plate, plate in zip(jax.random.split(key, len(rows)), density.plates, strict=True):
                    key_where, key_rows = jax.random.split(key_plate)
                    size = -(-plate.subsample // self.num_blocks)
                    first = jax.random.randint(key_where, (), 0, plate.subsample)
                    where[plate.name] = (first + jnp.arange(size)) % plate.subsample
                    fresh[plate.name] = jax.random.randint(key_rows, (size,), 0, plate.size)
                expanded = expand(density, surrogate.reference, fresh)
                put = {name: lambda old, new, at=at: old.at[at].set(new) for name, at in where.items()}
                return (
                    {name: put[name](rows[name], fresh[name]) for name in rows},
                    {name: jax.tree.map(put[name], batch[name], expanded[name]) for name in rows},
                )

            return values, start, update

        inner = NUTS(
            program,
            dense_mass=dense("auto", density.dim),
            target_accept_prob=self.target,
            max_tree_depth=self.max_tree_depth,
        )
        engine = HMCECS(inner, proxy=proxy)
        return engine, engine.init(key, self.warmup, {FLAT: u, **rows}, (), {})

    def init(self, key: PRNGKey, density: Density, u: Position) -> Subsampled:
        """See ``Kernel.init``: the chain starts at the reference point, which is a mode that it reaches from ``u``."""
        assert isinstance(density, RowDensity)
        key_rows, key_engine = jax.random.split(key)
        reference = reference_point(density, u)
        surrogate = Surrogate(reference, expand_sum(density, reference))
        keys = jax.random.split(key_rows, len(density.plates))
        rows = {
            p.name: jax.random.randint(k, (p.subsample,), 0, p.size) for k, p in zip(keys, density.plates, strict=True)
        }
        return Subsampled(surrogate, self._engine(key_engine, density, surrogate, reference, rows)[1])

    def step(self, key: PRNGKey, density: Density, state: Subsampled) -> tuple[Subsampled, Draw]:
        """See ``Kernel.step``."""
        assert isinstance(density, RowDensity)
        key_engine, key_step = jax.random.split(key)
        surrogate, old = state
        rows = {plate.name: old.z[plate.name] for plate in density.plates}
        engine, _ = self._engine(key_engine, density, surrogate, old.z[FLAT], rows)
        new = like(old, engine.sample(rekeyed(old, key_step), (), {}))
        moved = new.hmc_state
        stats = {
            "lp": -moved.potential_energy,
            "energy": moved.energy,
            "diverging": moved.diverging,
            "acceptance_rate": moved.accept_prob,
            "n_steps": moved.num_steps,
            "tree_depth": jnp.floor(jnp.log2(moved.num_steps)).astype(moved.num_steps.dtype) + 1,
            "step_size": old.hmc_state.adapt_state.step_size,
            "batch_acceptance_rate": new.accept_prob,
        }
        return Subsampled(surrogate, new), Draw(new.z[FLAT], stats)


def hmcecs_kernel(method: Any, warmup: int) -> Kernel:
    """The kernel of ``HMCECS``."""
    return SubsamplingKernel(warmup, method.target_accept, method.max_tree_depth, method.num_blocks)


KERNELS = {"hmcecs": hmcecs_kernel}
