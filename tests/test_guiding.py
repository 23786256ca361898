"""Backward filtering, forward guiding: exact where the process is linear-Gaussian or finite, unbiased elsewhere.

The truth: dense multivariate normals, enumeration, and quadrature on a grid (trapezoidal, so exact to many digits for
smooth densities), none of which shares code with the library.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import logsumexp

from probgen.base.errors import DataError, MethodError, ModelError
from probgen.feynman_kac.guiding import GuidedChain, GuidedTree, guide
from probgen.feynman_kac.markov_tree import SDE, MarkovTree
from probgen.feynman_kac.messages import Gaussian
from probgen.feynman_kac.resampling import Systematic
from probgen.feynman_kac.smc import Settings, smc
from probgen.feynman_kac.smoothing import backward_sample
from probgen.testing import assert_mean, assert_unbiased_evidence

PARENTS = np.array([-1, 0, 0, 1, 1, 2, 2, 4])
SHAPES = {"chain": None, "tree": PARENTS}
RNG = np.random.default_rng(20)


def draws(guided, count, seed=0):
    return jax.vmap(guided.draw)(jax.random.split(jax.random.key(seed), count))


# --- linear-Gaussian: everything is exact ---------------------------------------------------------------------------


def dense(parents, m0, L0, kernels, emissions, y):
    """Log evidence, posterior mean and covariance of all states of a linear-Gaussian tree, by one big normal law.

    ``kernels[v] = (B, beta, L)`` and ``emissions = (C, R)`` with covariance ``R``; NaN in ``y`` is missing.
    """
    n, d = len(parents), len(m0)
    mean, noises = np.zeros((n, d)), []
    root = np.zeros((n, d, sum([L0.shape[1]] + [kernels[v][2].shape[1] for v in range(1, n)])))
    at = 0
    for v in range(n):
        L = L0 if v == 0 else kernels[v][2]
        if v == 0:
            mean[0] = m0
        else:
            B, beta, _ = kernels[v]
            mean[v] = B @ mean[parents[v]] + beta
            root[v] = B @ root[parents[v]]
        root[v][:, at : at + L.shape[1]] += L
        at += L.shape[1]
        noises.append(at)
    A = root.reshape(n * d, -1)
    C = np.kron(np.eye(n), emissions[0])
    R = np.kron(np.eye(n), emissions[1])
    keep = ~np.isnan(y.ravel())
    C, R, y = C[keep], R[np.ix_(keep, keep)], y.ravel()[keep]
    S, r = C @ A @ A.T @ C.T + R, y - C @ mean.ravel()
    gain = A @ A.T @ C.T @ np.linalg.inv(S)
    posterior = mean.ravel() + gain @ r
    return (
        stats.multivariate_normal(np.zeros(len(y)), S).logpdf(r),
        posterior.reshape(n, d),
        A @ A.T - gain @ C @ A @ A.T,
    )


@functools.cache  # the same functions again are the same compiled programs
def linear_tree(shape):
    """Three coordinates, a kernel and singular noise (two noises) for each vertex, some observations missing."""
    parents = SHAPES[shape]
    n, d = len(PARENTS if parents is None else parents), 3
    rng = np.random.default_rng(1)
    Bs, betas = 0.6 * rng.normal(size=(n, d, d)), rng.normal(size=(n, d))
    Ls = rng.normal(size=(n, d, 2))
    C, R = rng.normal(size=(2, d)), np.diag([0.3, 0.1])
    m0, L0 = rng.normal(size=d), np.tril(rng.normal(size=(d, d)))
    y = rng.normal(size=(n, 2)) * 2
    y[[0, 2]] = np.nan
    y[4, 1] = np.nan  # in part: the components are independent
    tree = MarkovTree(
        Gaussian(jnp.asarray(m0), jnp.asarray(L0)),
        lambda t, x: Gaussian(t["B"] @ x + t["beta"], t["L"]),
        lambda t, x: dist.Normal(C @ x, np.sqrt(np.diag(R))),
        y,
        inputs={"B": Bs, "beta": betas, "L": Ls},
        parents=parents,
    )
    order = np.arange(-1, n - 1) if parents is None else parents
    return tree, dense(order, m0, L0, list(zip(Bs, betas, Ls, strict=True)), (C, R), y)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_gaussian_evidence_is_exact_and_all_weights_are_equal(shape):
    tree, (log_z, mean, covariance) = linear_tree(shape)
    guided = guide(tree)
    assert isinstance(guided, GuidedChain if shape == "chain" else GuidedTree)
    assert guided.log_evidence == pytest.approx(log_z, abs=1e-9)
    # At the fixed point of the refinement, the reference path is the posterior mean.
    np.testing.assert_allclose(guided.anchors, mean, atol=1e-9)
    # Evidence and weights do not depend on the reference path, at which all is linearised.
    elsewhere = guide(tree, refinements=0, anchors=jnp.asarray(RNG.normal(size=mean.shape)))
    for g in (guided, elsewhere):
        x, log_w = jax.jit(lambda g: draws(g, 8_000))(g)
        np.testing.assert_allclose(log_w, log_z, atol=1e-9)  # log_corr = 0
    flat = np.asarray(x).reshape(40, -1, mean.size)  # 40 replicates
    assert_mean(flat.mean(1), mean.ravel(), detects=0.2 * np.sqrt(np.diag(covariance)) + 1e-9)
    second = ((flat - mean.ravel())[..., :, None] * (flat - mean.ravel())[..., None, :]).mean(1)
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert_mean(second, covariance, detects=0.25 * spread + 1e-9)


@pytest.mark.parametrize("shape", ["tree", pytest.param("chain", marks=pytest.mark.slow)])
def test_linear_gaussian_particles_never_lose_weight(shape):
    tree, (log_z, _, _) = linear_tree(shape)
    settings = Settings(16, Systematic(), ess_threshold=0.9)
    result = jax.jit(lambda key, guided: smc(key, guided, settings))(jax.random.key(3), guide(tree))
    assert result.log_z == pytest.approx(log_z, abs=1e-9)
    np.testing.assert_allclose(result.steps.ess, 16, rtol=1e-9)
    assert not result.steps.resampled.any()


def test_the_kalman_filter_agrees_on_a_long_chain_in_single_precision():
    rng = np.random.default_rng(4)
    y = np.cumsum(rng.normal(size=400)) + 50 + 0.1 * rng.normal(size=400)
    m, P, log_z = 50.0, 4.0, 0.0
    for t, value in enumerate(y):
        if t:
            P = P + 1.0
        log_z += stats.norm(m, np.sqrt(P + 0.01)).logpdf(value)
        m, P = m + P / (P + 0.01) * (value - m), P * 0.01 / (P + 0.01)
    with jax.enable_x64(False):
        tree = MarkovTree(
            dist.Normal(jnp.full(1, 50.0), 2.0),
            lambda t, x: dist.Normal(x, 1.0),
            lambda t, x: dist.Normal(x[0], 0.1),
            jnp.asarray(y, jnp.float32),
        )
        guided = guide(tree)
        assert guided.log_evidence.dtype == jnp.float32
        _, log_w = jax.jit(lambda g: draws(g, 10))(guided)
    assert guided.log_evidence == pytest.approx(log_z, rel=1e-5)
    # Messages are kept around the reference path, so nothing cancels: 400 corrections sum up to rounding.
    np.testing.assert_allclose(log_w, log_z, rtol=1e-4)


def test_parameters_are_leaves_and_the_evidence_has_the_right_gradient():
    """An Ornstein-Uhlenbeck process on a phylogeny with branch lengths, one trait at the tips."""
    length = jnp.asarray([0.0, 0.5, 1.2, 0.7, 0.7, 0.1, 0.4, 0.3])
    tips = np.setdiff1d(np.arange(8), PARENTS)
    y = np.full(8, np.nan)
    y[tips] = RNG.normal(size=len(tips))

    def transition(log_rate, t, x):
        decay = jnp.exp(-jnp.exp(log_rate) * t)
        return dist.Normal(decay * x, jnp.sqrt(1 - decay**2))

    def emission(t, x):
        return dist.Normal(x[0], 0.1)

    def tree(log_rate, y):
        kernel = jax.tree_util.Partial(transition, log_rate)
        return MarkovTree(dist.Normal(jnp.zeros(1), 1.0), kernel, emission, y, inputs=length, parents=PARENTS)

    def exact(log_rate):
        """Traits of tips have covariance exp(-rate * distance)."""

        def path(v):
            return [] if v < 0 else [*path(PARENTS[v]), v]

        distance = [[sum(length[v] for v in set(path(a)) ^ set(path(b))) for b in tips] for a in tips]
        S = jnp.exp(-jnp.exp(log_rate) * jnp.asarray(distance)) + 0.01 * jnp.eye(len(tips))
        return dist.MultivariateNormal(jnp.zeros(len(tips)), S).log_prob(jnp.asarray(y[tips]))

    traces = []

    @jax.jit
    @jax.value_and_grad
    def evidence(log_rate, y):
        traces.append(1)
        return guide(tree(log_rate, y)).log_evidence

    for log_rate in (-0.3, 0.8):
        expected, slope = jax.value_and_grad(exact)(log_rate)
        found, gradient = evidence(log_rate, y)
        assert found == pytest.approx(float(expected), abs=1e-10)
        assert gradient == pytest.approx(float(slope), abs=1e-8)
    assert len(traces) == 1
    # As an argument of a compiled function, a tree with other parameters and data is the same program.
    compiled = jax.jit(lambda tree: guide(tree).log_evidence)
    assert compiled(tree(-0.3, y)) == pytest.approx(float(exact(-0.3)), abs=1e-10)
    compiled(tree(0.1, 2 * y))
    assert compiled._cache_size() == 1


# --- finite spaces --------------------------------------------------------------------------------------------------

STATES = 3
FINITE_Y = np.array([0, 1, -1, 1, -1, 0, 1, 1])
ROOT = np.array([0.5, 0.3, 0.2])
P = RNG.dirichlet(np.ones(STATES), (len(PARENTS), STATES))
EMIT = np.array([0.1, 0.5, 0.8])


@functools.cache
def finite_tree(shape):
    return MarkovTree(
        dist.Categorical(jnp.asarray(ROOT)),
        lambda p, x: dist.Categorical(p[x]),
        lambda p, x: dist.Bernoulli(jnp.asarray(EMIT)[x]),
        np.maximum(FINITE_Y, 0),
        inputs=P,
        parents=SHAPES[shape],
        observed=FINITE_Y >= 0,
    )


@functools.cache
def enumerated(shape):
    """Log evidence and posterior marginals over all 3^8 configurations."""
    parents = SHAPES[shape]
    order = np.arange(-1, len(PARENTS) - 1) if parents is None else parents
    configurations = np.array(list(itertools.product(range(STATES), repeat=len(order))))
    log_p = np.log(ROOT)[configurations[:, 0]]
    for v in range(1, len(order)):
        log_p = log_p + np.log(P[v][configurations[:, order[v]], configurations[:, v]])
    for v, value in enumerate(FINITE_Y):
        if value >= 0:
            log_p = log_p + stats.bernoulli(EMIT[configurations[:, v]]).logpmf(value)
    log_z = logsumexp(log_p)
    w = np.exp(log_p - log_z)
    return log_z, np.array([[w[configurations[:, v] == k].sum() for k in range(STATES)] for v in range(len(order))])


@pytest.mark.parametrize("shape", SHAPES)
def test_finite_trees_are_exact(shape):
    log_z, marginals = enumerated(shape)
    guided = guide(finite_tree(shape))
    assert guided.log_evidence == pytest.approx(log_z, abs=1e-12)
    x, log_w = jax.jit(lambda g: draws(g, 8_000))(guided)
    np.testing.assert_allclose(log_w, log_z, atol=1e-12)
    found = (np.asarray(x).reshape(40, -1, len(PARENTS), 1) == np.arange(STATES)).mean(1)
    assert_mean(found, marginals, detects=0.07)


def test_finite_trees_are_unbiased_under_another_auxiliary_process():
    log_z, marginals = enumerated("tree")
    guided = guide(finite_tree("tree"), auxiliary=lambda p, x: dist.Categorical(jnp.full(STATES, 1 / STATES)))

    def replicate(key):
        x, log_w = draws_of(guided, key, 300)
        w = jnp.exp(log_w - log_z) / len(log_w)
        return jax.nn.logsumexp(log_w) - jnp.log(len(log_w)), jnp.einsum("i,ivk->vk", w, x[..., None] == jnp.arange(3))

    found, weighted = jax.jit(jax.vmap(replicate))(jax.random.split(jax.random.key(7), 400))
    assert np.std(found) > 0.005  # the weights do vary
    assert_unbiased_evidence(found, log_z, detects=0.02)
    assert_mean(weighted, marginals, detects=0.02)


def draws_of(guided, key, count):
    return jax.vmap(guided.draw)(jax.random.split(key, count))


def test_impossible_data_give_an_evidence_of_zero():
    def stuck(y):
        return MarkovTree(
            dist.Categorical(jnp.ones(2) / 2),
            lambda t, x: dist.Categorical(jnp.eye(2)[x]),
            lambda t, x: dist.Delta(x),
            np.array(y),
        )

    guided = guide(stuck([0, 1, 0]))
    assert guided.log_evidence == -np.inf
    assert (draws(guided, 3)[1] == -np.inf).all()
    assert guide(stuck([1, 1, 1])).log_evidence == pytest.approx(np.log(0.5))


# --- nonlinear: unbiased, against quadrature ------------------------------------------------------------------------

GRID = np.linspace(-9, 9, 1801)
STEP = GRID[1] - GRID[0]


def on_grid(parents, root, kernel, likelihood):
    """Log evidence and posterior means of a scalar process, by messages on a grid."""
    n = len(parents)
    matrices = [None] + [kernel(v) for v in range(1, n)]
    up = [likelihood(v) for v in range(n)]
    passed = [None] * n
    for v in range(n - 1, 0, -1):
        passed[v] = matrices[v] @ up[v] * STEP
        up[parents[v]] = up[parents[v]] * passed[v]
    z = (root * up[0]).sum() * STEP
    joint, means = [root * up[0]], []
    for v in range(1, n):
        above = joint[parents[v]] / np.maximum(passed[v], 1e-300)
        joint.append((above @ matrices[v] * STEP) * up[v])
    means = [(GRID * p).sum() / p.sum() for p in joint]
    return np.log(z), np.array(means)


@functools.cache
def nonlinear(shape):
    """A bistable map with counts, from the mode on the left to data that belong to the right."""
    parents = SHAPES[shape]
    n = len(PARENTS)
    order = np.arange(-1, n - 1) if parents is None else parents
    y = np.array([0.0, np.nan, 1.0, 4.0, np.nan, 2.0, 5.0, 3.0])
    tree = MarkovTree(
        dist.Normal(jnp.full(1, -1.0), 0.7),
        lambda t, x: dist.Normal(x + 0.3 * jnp.sin(2 * x), 0.5 + 0.3 * jnp.cos(x) ** 2),
        lambda t, x: dist.Poisson(jnp.exp(0.3 + 0.6 * x[0])),
        y,
        parents=parents,
    )
    mean, scale = GRID + 0.3 * np.sin(2 * GRID), 0.5 + 0.3 * np.cos(GRID) ** 2
    matrix = stats.norm(mean[:, None], scale[:, None]).pdf(GRID)

    def likelihood(v):
        return np.ones_like(GRID) if np.isnan(y[v]) else stats.poisson(np.exp(0.3 + 0.6 * GRID)).pmf(y[v])

    return tree, on_grid(order, stats.norm(-1, 0.7).pdf(GRID), lambda v: matrix, likelihood)


@pytest.mark.parametrize("threshold", [pytest.param(0.0, marks=pytest.mark.slow), 1.0], ids=["importance", "resampled"])
@pytest.mark.parametrize("shape", SHAPES)
def test_nonlinear_processes_have_an_unbiased_evidence_and_the_right_means(shape, threshold):
    tree, (log_z, means) = nonlinear(shape)
    guided = guide(tree)
    settings = Settings(200, Systematic(), ess_threshold=threshold)

    @jax.jit
    @jax.vmap
    def replicate(key):
        result = smc(key, guided, settings)
        last = result.cloud.x[..., 0] if shape == "chain" else result.cloud.x[:, -1, 0]
        return result.log_z, jnp.exp(result.log_z - log_z + result.cloud.log_w) @ last, result.steps.ess[-1]

    found, last, ess = replicate(jax.random.split(jax.random.key(11), 300))
    assert_unbiased_evidence(found, log_z, detects=0.05)
    assert_mean(last, means[-1], detects=0.1)
    assert np.mean(ess) > 60  # of 200: it is guided


@pytest.mark.parametrize("refinements", [0, 1])
def test_the_reference_path_changes_the_variance_only(refinements):
    tree, (log_z, means) = nonlinear("tree")
    guided = guide(tree, refinements=refinements)

    def replicate(key):
        x, log_w = draws_of(guided, key, 300)
        return jax.nn.logsumexp(log_w) - jnp.log(300), jnp.exp(log_w - log_z) @ x[..., 0] / 300

    found, weighted = jax.jit(jax.vmap(replicate))(jax.random.split(jax.random.key(5), 300))
    assert_unbiased_evidence(found, log_z, detects=0.1)
    assert_mean(weighted, means, detects=0.3)


def test_the_density_of_a_path_is_that_of_the_program():
    tree, _ = nonlinear("chain")
    guided = guide(tree)
    x = jnp.asarray(RNG.normal(size=(8, 1)))
    space = tree.space
    total = space.density(tree.initial, x[0]) + space.value(
        jax.tree.map(lambda m: m[0], guided.messages), x[0], guided.anchors[0]
    )
    total += guided._seen(0, x[0])
    total += sum(guided.log_transition(t, x[t - 1], x[t]) for t in range(1, 8))
    expected = dist.Normal(-1.0, 0.7).log_prob(x[0, 0])
    for t in range(8):
        if t:
            expected += tree.transition(t, x[t - 1]).log_prob(x[t]).sum()
        if tree.observed[t]:
            expected += dist.Poisson(jnp.exp(0.3 + 0.6 * x[t, 0])).log_prob(tree.y[t])
    assert total == pytest.approx(float(expected), abs=1e-9)


def test_backward_sampling_smooths_a_guided_chain():
    """The weights on the way are those of the guided process; with its transition density, paths are the posterior's."""
    tree, (_, means) = nonlinear("chain")
    guided = guide(tree)

    @jax.jit
    @jax.vmap
    def replicate(key):
        key_run, key_paths = jax.random.split(key)
        history = smc(key_run, guided, Settings(200, Systematic(), 1.0, history=True)).history()
        return backward_sample(key_paths, guided, history, 100)[..., 0]

    paths = np.asarray(replicate(jax.random.split(jax.random.key(6), 60)))
    assert_mean(paths.mean(1), means, detects=0.25)


def test_the_derivative_of_the_evidence_is_unbiased():
    """Of counts at the tips of a tree, with respect to a rate; the reference path and what it rests on are held."""
    y = np.array([np.nan, np.nan, np.nan, 4.0, np.nan, 2.0, 0.0, 3.0])

    def transition(rate, t, x):
        return dist.Normal(rate * x, 0.7)

    def evidence(rate, key):
        kernel, root = jax.tree_util.Partial(transition, rate), dist.Normal(jnp.ones(1), 1.0)
        count = lambda t, x: dist.Poisson(jnp.exp(0.3 + 0.6 * x[0]))  # noqa: E731
        log_w = draws_of(guide(MarkovTree(root, kernel, count, y, parents=PARENTS)), key, 100)[1]
        return jnp.exp(jax.nn.logsumexp(log_w) - jnp.log(100))

    def exact(rate):
        matrix = stats.norm(rate * GRID[:, None], 0.7).pdf(GRID)

        def likelihood(v):
            return np.ones_like(GRID) if np.isnan(y[v]) else stats.poisson(np.exp(0.3 + 0.6 * GRID)).pmf(y[v])

        return np.exp(on_grid(PARENTS, stats.norm(1.0, 1.0).pdf(GRID), lambda v: matrix, likelihood)[0])

    slope = (exact(0.801) - exact(0.799)) / 0.002
    keys = jax.random.split(jax.random.key(8), 200)
    found = jax.jit(jax.vmap(jax.grad(evidence), (None, 0)))(0.8, keys)
    assert_mean(found / slope, 1.0, detects=0.3)


# --- diffusions -----------------------------------------------------------------------------------------------------


def double_well():
    """Euler steps of a diffusion in a double well with state-dependent noise, seen twice, on either side."""
    n, dt = 61, 0.05
    y = np.full(n, np.nan)
    y[30], y[60] = -0.9, 1.1
    drift = lambda t, x: 2 * x * (1 - x**2)  # noqa: E731
    diffusion = lambda t, x: (0.8 + 0.2 * jnp.sin(x))[:, None]  # noqa: E731
    tree = MarkovTree(
        jnp.array([-1.0]),
        SDE(drift, diffusion),
        lambda t, x: dist.Normal(x[0], 0.1),
        y,
        inputs=(dt * jnp.arange(-1.0, n - 1), jnp.full(n, dt)),
    )
    grid = np.linspace(-4, 4, 1601)
    h = grid[1] - grid[0]
    matrix = stats.norm(
        (grid + dt * 2 * grid * (1 - grid**2))[:, None], ((0.8 + 0.2 * np.sin(grid)) * np.sqrt(dt))[:, None]
    ).pdf(grid)
    message = np.ones_like(grid)
    for v in range(n - 1, 0, -1):
        if not np.isnan(y[v]):
            message = message * stats.norm(grid, 0.1).pdf(y[v])
        if v > 1:
            message = matrix @ message * h
    start = stats.norm(-1.0, (0.8 + 0.2 * np.sin(-1.0)) * np.sqrt(dt)).pdf(grid)
    return tree, np.log((start * message).sum() * h)


def test_a_bridge_of_a_diffusion_is_unbiased_and_far_better_than_forward_simulation():
    tree, log_z = double_well()
    guided = guide(tree)
    # A user's own auxiliary process: a Brownian motion with drift.
    brownian = guide(tree, auxiliary=lambda t, x: Gaussian(x, 0.8 * jnp.sqrt(t[1])[None, None]))
    settings = Settings(100, Systematic(), ess_threshold=0.5)
    keys = jax.random.split(jax.random.key(2), 300)
    spread = []
    for g in (guided, brownian):
        log_zs = jax.jit(jax.vmap(lambda key, g=g: smc(key, g, settings).log_z))(keys)
        assert_unbiased_evidence(log_zs, log_z, detects=0.1 if g is guided else 0.2)
        spread.append(np.std(log_zs))
    assert spread[0] < 0.25


def test_a_linear_diffusion_with_singular_noise_is_exact():
    """Position and velocity: noise on the velocity only, position observed twice."""
    n, dt = 41, 0.1
    y = np.full(n, np.nan)
    y[20], y[40] = 1.0, -0.5
    A = np.array([[0.0, 1.0], [-1.0, -0.5]])
    tree = MarkovTree(
        jnp.zeros(2),
        SDE(lambda t, x: A @ x + jnp.stack([0.0, jnp.sin(t)]), lambda t, x: jnp.array([[0.0], [0.7]])),
        lambda t, x: dist.Normal(x[0], 0.05),
        y,
        inputs=(dt * jnp.arange(-1.0, n - 1), jnp.full(n, dt)),
    )
    L = np.array([[0.0], [0.7]]) * np.sqrt(dt)
    kernels = [None, *[(np.eye(2) + dt * A, dt * np.array([0, np.sin(dt * (v - 1))]), L) for v in range(1, n)]]
    log_z, mean, _ = dense(
        np.arange(-1, n - 1), np.zeros(2), np.zeros((2, 1)), kernels, (np.array([[1.0, 0.0]]), np.array([[0.0025]])), y
    )
    guided = guide(tree)
    np.testing.assert_allclose(jax.jit(lambda g: draws(g, 10))(guided)[1], log_z, atol=1e-8)
    np.testing.assert_allclose(guided.anchors, mean, atol=1e-8)
    with pytest.raises(ModelError, match="1 noises in 2 dimensions has no density"):
        guided.log_transition(1, jnp.zeros(2), jnp.zeros(2))


# --- bad input ------------------------------------------------------------------------------------------------------


def walk(**changes):
    arguments = {
        "initial": dist.Normal(jnp.zeros(2), 1.0),
        "transition": lambda t, x: dist.Normal(x, 1.0),
        "observation": lambda t, x: dist.Normal(x, 1.0),
        "y": np.zeros((4, 2)),
    } | changes
    return MarkovTree(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"parents": [-1, 0, 2, 1]}, DataError, r"parents\[2\] is 2, expected a vertex before it, 0 to 1"),
        ({"parents": [0, 0, 1, 1]}, DataError, r"parents\[0\] is 0, expected -1"),
        ({"parents": [-1, 0]}, DataError, "expected 4 integers"),
        ({"inputs": np.zeros(3)}, DataError, r"inputs has an array of shape \(3,\), expected 4 entries"),
        ({"y": np.full((4, 2), np.nan)}, DataError, "no observation of some component"),
        ({"y": np.array([[0, 1], [np.inf, 0], [0, 0], [0, 0]])}, DataError, "y has infinite entries"),
        ({"observed": np.ones(3, bool)}, DataError, "expected booleans"),
        ({"initial": dist.Gamma(1.0, 1.0)}, ModelError, "initial is Gamma"),
        ({"initial": dist.Normal(0.0, 1.0)}, ModelError, r"with shape \(\), expected a Gaussian on a vector"),
        (
            {"transition": lambda t, x: dist.StudentT(3.0, x, 1.0)},
            ModelError,
            r"transition\(t, x\) returns is StudentT",
        ),
        ({"transition": lambda t, x: dist.Normal(x[:1], 1.0)}, ModelError, "on 1 coordinates, expected 2"),
        ({"transition": lambda t, x: dist.Categorical(jnp.ones(2))}, ModelError, "expected a Gaussian"),
        ({"observation": lambda t, x: dist.Normal(x[0], 1.0)}, ModelError, r"shape \(\), expected .* shape \(2,\)"),
        ({"observation": lambda t, x: x}, ModelError, "expected a distribution of shape"),
        (
            {
                "observation": lambda t, x: dist.Normal(x, 1.0).to_event(1),
                "y": np.array([[0, np.nan], [0, 0], [0, 0], [0, 0.0]]),
            },
            DataError,
            "missing in part",
        ),
        (
            {
                "initial": dist.Categorical(logits=jnp.ones(3)),
                "observation": lambda t, x: dist.Normal(jnp.zeros(2), 1.0),
            },
            ModelError,
            "returns is Normal, expected Categorical",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_at_once(changes, error, message):
    with pytest.raises(error, match=message):
        walk(**changes)


def test_settings_of_guide_are_checked():
    with pytest.raises(MethodError, match="refinements must be a non-negative int"):
        guide(walk(), refinements=-1)
    with pytest.raises(ModelError, match=r"anchors has shape \(4,\), expected \(4, 2\)"):
        guide(walk(), anchors=jnp.zeros(4))
    with pytest.raises(ModelError, match="a finite tree has no reference path"):
        guide(finite_tree("chain"), anchors=jnp.zeros(8))
    with pytest.raises(ModelError, match="returns is StudentT"):
        guide(walk(), auxiliary=lambda t, x: dist.StudentT(3.0, x, 1.0))
