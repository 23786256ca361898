"""Linear algebra of small matrices, one per particle.

XLA calls LAPACK once per matrix, which for thousands of matrices of a few rows costs far more than the arithmetic. Here
the loops over rows are written out while tracing, so that the arithmetic runs over all particles at once.
"""

from __future__ import annotations

import jax.numpy as jnp
import jax.scipy.linalg
from jax import Array

__all__ = ["cholesky", "solve_lower"]

_SMALL = 4
"""Most rows for which loops are written out."""


def cholesky(matrix: Array) -> Array:
    """Lower Cholesky factor of a symmetric matrix, shape ``(n, n)``; NaN where it is not positive definite."""
    n = matrix.shape[0]
    if n > _SMALL:
        return jnp.linalg.cholesky(matrix)
    rows: list[list[Array]] = []
    for i in range(n):
        row: list[Array] = []
        for j in range(i + 1):
            rest = matrix[i, j] - sum((row[k] * (row[k] if j == i else rows[j][k]) for k in range(j)), start=0.0)
            row.append(jnp.sqrt(rest) if j == i else rest / rows[j][j])
        rows.append(row)
    zero = jnp.zeros((), matrix.dtype)
    whole = [jnp.stack([*row, *([zero] * (n - len(row)))]) for row in rows]
    # LAPACK leaves nothing finite behind where it fails.
    factor = jnp.stack(whole) if n else matrix
    return jnp.where(jnp.all(jnp.isfinite(factor)), factor, jnp.nan)


def solve_lower(factor: Array, right: Array, *, transposed: bool = False) -> Array:
    """Solve with a lower triangular matrix, or with its transpose.

    Args:
        factor: Shape ``(n, n)``.
        right: A vector, shape ``(n,)``, or columns, shape ``(n, m)``.
        transposed: Whether to solve with the transpose.
    """
    n = right.shape[0]
    if n > _SMALL:
        return jax.scipy.linalg.solve_triangular(factor, right, lower=True, trans=1 if transposed else 0)
    solved: dict[int, Array] = {}
    for i in reversed(range(n)) if transposed else range(n):
        taken = sum(((factor[j, i] if transposed else factor[i, j]) * x for j, x in solved.items()), start=0.0)
        solved[i] = (right[i] - taken) / factor[i, i]
    return jnp.stack([solved[i] for i in range(n)]) if n else right
