"""Linear algebra that is written out agrees with LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probgen.base.small import cholesky, solve_lower


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5])
def test_small_matrices_are_factored_and_solved(n):
    with jax.enable_x64(True):
        rng = np.random.default_rng(n)
        roots = rng.normal(size=(7, n, n))
        matrices = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(n)
        right = rng.normal(size=(7, n))
        factors = jax.vmap(cholesky)(jnp.asarray(matrices))
        np.testing.assert_allclose(factors, np.linalg.cholesky(matrices), atol=1e-12)
        forward = jax.vmap(solve_lower)(factors, right)
        back = jax.vmap(lambda f, b: solve_lower(f, b, transposed=True))(factors, right)
        columns = solve_lower(factors[0], jnp.asarray(roots[0]))
        np.testing.assert_allclose(np.asarray(factors[0]) @ columns, roots[0], atol=1e-9)
        for factor, b, x, y in zip(np.asarray(factors), right, forward, back, strict=True):
            np.testing.assert_allclose(factor @ x, b, atol=1e-9)
            np.testing.assert_allclose(factor.T @ y, b, atol=1e-9)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_what_is_not_positive_definite_is_nan(n):
    matrix = jnp.eye(n).at[n - 1, n - 1].set(-1.0)
    assert np.isnan(cholesky(matrix)[n - 1, n - 1])
    assert not np.isfinite(cholesky(matrix)).all()
