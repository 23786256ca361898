"""Energy-conserving subsampling: closed forms, the perturbed posterior by enumeration, what a run says of itself."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import probgen as pg
from probgen.infer import hmcecs
from probgen.infer.hmcecs import HMCECS, log_weights
from probgen.infer.methods import methods
from probgen.program.density import Density
from probgen.program.rows import RowDensity
from probgen.run.compiled import compile_count

ROWS, BATCH, CHAINS = 500, 50, 24
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 3))
B = np.array([1.0, -0.5, 0.3])
BINARY = (RNG.random(ROWS) < 1 / (1 + np.exp(-X @ B))).astype(float)


def linear(x, y, z):
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with numpyro.plate("row", x.shape[0], subsample_size=BATCH) as rows:
        numpyro.deterministic("residual", y[rows] - x[rows] @ b)
        numpyro.sample("y", dist.Normal(x[rows] @ b, 1.0), obs=y[rows])
    with numpyro.plate("other", z.shape[0], subsample_size=7) as rows:
        numpyro.sample("z", dist.Normal(b[0], 0.5), obs=z[rows])


Z = RNG.normal(1.0, 0.5, 40)
LINEAR = {"x": X, "y": X @ B, "z": Z}
COUNTS = {"chains": CHAINS, "draws": 500, "warmup": 300}


def logistic(x, y):
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("row", x.shape[0], subsample_size=BATCH):
        x, y = numpyro.subsample(x, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def assert_moments(z, detects=0.1):
    """Mean 0 and second moment 1 in every coordinate, by the spread over independent chains."""
    for numbers, expected in (z.mean(1), 0.0), ((z**2).mean(1), 1.0):
        error = numbers.std(0, ddof=1) / np.sqrt(len(z))
        assert (5.5 * error < 3 * detects).all()
        assert (abs(numbers.mean(0) - expected) < 5.5 * error).all()


@pytest.fixture(scope="module")
def tree():
    return pg.infer(pg.Model(linear, LINEAR), HMCECS(), **COUNTS, seed=0)


def test_a_gaussian_linear_model_is_exact(tree):
    """Rows are quadratic, so nothing is lost."""
    precision = X.T @ X + np.eye(3) / 4 + np.diag([len(Z) / 0.25, 0.0, 0.0])
    mean = np.linalg.solve(precision, LINEAR["y"] @ X + [Z.sum() / 0.25, 0.0, 0.0])
    assert_moments((tree["posterior/b"].values - mean) @ np.linalg.cholesky(precision))


def test_a_second_fit_compiles_nothing_and_the_same_seed_gives_the_same_bits(tree):
    before = compile_count()
    model = pg.Model(linear, LINEAR)
    again = pg.infer(model, HMCECS(), **COUNTS, seed=0)
    np.testing.assert_array_equal(tree["posterior/b"], again["posterior/b"])
    other = pg.infer(model.with_data(y=-X @ B, z=-Z), HMCECS(), **COUNTS, seed=1)
    assert compile_count() == before
    assert abs(other["posterior/b"].values.mean((0, 1)) + B).max() < 0.05


def test_what_a_run_says_of_itself(tree):
    assert tree.attrs["perturbation"] < 1e-6
    assert tree.attrs["approximate"].startswith("mini-batches perturb the posterior")
    assert "residual" not in tree["posterior"]
    stats = tree["sample_stats"]
    assert (stats["batch_acceptance_rate"] > 0.999).all()
    assert (stats["step_size"].values == stats["step_size"].values[:, :1]).all()
    # With nothing lost, the estimate of the log density is the log density.
    density = Density(pg.Model(whole, LINEAR))
    exact = jax.vmap(jax.vmap(density.log_density))(tree["posterior/b"].values)
    np.testing.assert_allclose(stats["lp"], exact, rtol=1e-9)
    assert (stats["energy"].values >= -stats["lp"].values).mean() > 0.9


def whole(x, y, z):
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)
    with numpyro.plate("other", z.shape[0]):
        numpyro.sample("z", dist.Normal(b[0], 0.5), obs=z)


def test_a_large_perturbation_is_a_warning(tree, monkeypatch):
    monkeypatch.setattr(hmcecs, "_PERTURBED", 0.0)
    with pytest.warns(pg.ProbgenWarning, match=r"perturb the posterior by up to .* Raise subsample_size"):
        pg.infer(pg.Model(linear, LINEAR), HMCECS(), **COUNTS, seed=0)


def logistic_posterior():
    """Mean and standard deviation with all rows, by importance sampling from a wide Gaussian at the mode."""

    def log_density(b):
        return BINARY @ (X @ b.T) - np.logaddexp(0, X @ b.T).sum(0) - (b**2).sum(-1) / 8

    mode = np.zeros(3)
    for _ in range(20):
        p = 1 / (1 + np.exp(-X @ mode))
        curvature = (X.T * (p * (1 - p))) @ X + np.eye(3) / 4
        mode = mode + np.linalg.solve(curvature, X.T @ (BINARY - p) - mode / 4)
    z = np.random.default_rng(4).normal(size=(100_000, 3)) * 1.2
    b = mode + z @ np.linalg.inv(np.linalg.cholesky(curvature))
    log_w = log_density(b) + (z**2).sum(-1) / 2 / 1.2**2
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    assert 1 / (w**2).sum() > 50_000
    return w @ b, np.sqrt(w @ (b - w @ b) ** 2)


@pytest.mark.slow
def test_a_logistic_regression_agrees_with_the_posterior_of_all_rows():
    mean, sd = logistic_posterior()
    tree = pg.infer(pg.Model(logistic, {"x": X, "y": BINARY}), HMCECS(), **COUNTS, seed=0)
    assert 0 < tree.attrs["perturbation"] < 0.01  # and the importance sampler knows the mean to 0.004
    assert_moments((tree["posterior/b"].values - mean) / sd)


# -- the perturbed posterior, by enumeration of all batches ----------------------------------------------------------

FEW, SMALL, OFF, PRIOR = 12, 4, 1.0, 0.7
X_FEW = np.array(sorted(np.random.default_rng(1).standard_t(5, size=FEW), key=abs))  # the last row matters most
Y_FEW = (np.random.default_rng(2).random(FEW) < 1 / (1 + np.exp(-X_FEW))).astype(float)
GRID = np.linspace(-4, 6, 1001)


@pytest.fixture(scope="module")
def enumerated():
    """On a grid: the posterior, and what the batches make of it when rows are expanded around ``OFF``."""
    x, y = X_FEW, Y_FEW
    p = 1 / (1 + np.exp(-OFF * x))
    step = GRID[:, None] - OFF
    rows = y * GRID[:, None] * x - np.logaddexp(0, GRID[:, None] * x)
    taylor = y * OFF * x - np.logaddexp(0, OFF * x) + (y - p) * x * step - 0.5 * p * (1 - p) * x**2 * step**2
    batches = np.array(list(itertools.combinations_with_replacement(range(FEW), SMALL)))
    counts = np.array([[np.count_nonzero(b == i) for i in range(FEW)] for b in batches])
    orders = 1.0 / np.array([1, 1, 2, 6, 24])[counts].prod(1)  # how often a batch occurs, whatever its order
    orders /= orders.sum()
    off = (rows - taylor)[:, batches]
    estimate = taylor.sum(1)[:, None] + FEW * off.mean(-1) - FEW**2 / SMALL * off.var(-1) / 2
    prior = -((GRID / PRIOR) ** 2) / 2
    perturbed = prior + np.log(np.exp(estimate - estimate.max()) @ orders) + estimate.max()
    laws = []
    for log_density in prior + rows.sum(1), perturbed:
        weight = np.exp(log_density - log_density.max())
        laws.append(weight / weight.sum())
    return laws


def few(x, y):
    b = numpyro.sample("b", dist.Normal(0.0, PRIOR))
    with numpyro.plate("row", FEW, subsample_size=SMALL) as rows:
        numpyro.sample("y", dist.Bernoulli(logits=x[rows] * b), obs=y[rows])


def chain_draws(method, model, ys, draws, warmup=300):
    """Draws of ``b``, one chain per data set, each with a key of its own, in one program: ``(chains, draws, dim)``."""
    density = method.density(model)

    @jax.jit
    @jax.vmap
    def draw(y, key):
        here = eqx.tree_at(lambda d: d.model.leaves["y"], density, y)
        return method.draw(key, here, draws=draws, warmup=warmup, chains=1).values["b"][0]

    return np.asarray(draw(jnp.asarray(ys), jax.random.split(jax.random.key(1), len(ys))))


def test_the_draws_follow_the_perturbed_posterior(enumerated):
    """Far from the limit of large batches: a wrong proxy, correction or acceptance test would show."""
    exact, perturbed = enumerated
    mean = perturbed @ GRID
    sd = np.sqrt(perturbed @ (GRID - mean) ** 2)
    method = HMCECS(reference={"b": OFF}, num_blocks=2)
    draws = chain_draws(method, pg.Model(few, {"x": X_FEW, "y": Y_FEW}), np.broadcast_to(Y_FEW, (64, FEW)), draws=4000)
    assert_moments((draws[..., None] - mean) / sd)
    truth = np.array([exact @ GRID, exact @ (GRID - mean) ** 2])
    found = np.array([draws.mean(), ((draws - mean) ** 2).mean()])
    assert abs((found - truth) / [sd, sd**2]).max() > 0.2  # the perturbation is one that the test sees


def test_the_perturbation_is_measured(enumerated, monkeypatch):
    exact, perturbed = enumerated
    index = np.flatnonzero(perturbed > 1e-4 * perturbed.max())[::10]
    density = HMCECS(reference={"b": OFF}).density(pg.Model(few, {"x": X_FEW, "y": Y_FEW}))
    monkeypatch.setattr(hmcecs, "_BATCHES", 20_000)
    found = jax.jit(log_weights)(jax.random.key(0), density, jnp.asarray(GRID[None, index, None]))[0]
    expected = np.log(exact / perturbed)[index]
    centre = np.argmin(abs(GRID[index] - OFF))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(found - found[centre], expected - expected[centre], atol=0.02)


# -- rows ------------------------------------------------------------------------------------------------------------


def mixture_of_plates(x, y, z, few, some):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    numpyro.sample("all", dist.Normal(mu, 1.0), obs=0.5)
    with numpyro.plate("row", 12, subsample_size=few, dim=-2) as rows, numpyro.plate("column", 3):
        numpyro.sample("y", dist.Normal(mu, scale), obs=y[rows])
        numpyro.factor("f", -jnp.square(mu - x[rows])[:, None] * jnp.ones(3))
    with numpyro.plate("other", 7, subsample_size=some) as rows, handlers.scale(scale=0.5):
        numpyro.sample("z", dist.StudentT(3.0, mu, scale).mask(z[rows] > 0), obs=z[rows])


def test_rows_add_up_to_the_density_of_all_rows():
    data = {"x": RNG.normal(size=12), "y": RNG.normal(size=(12, 3)), "z": RNG.normal(size=7)}
    full = Density(pg.Model(mixture_of_plates, {**data, "few": 12, "some": 7}))
    density = RowDensity(pg.Model(mixture_of_plates, {**data, "few": 5, "some": 2}))
    u = jnp.array([0.3, -0.4])
    terms, rest = density.by_row(u)
    assert {name: term.shape for name, term in terms.items()} == {"row": (12,), "other": (7,)}
    np.testing.assert_allclose(sum(jnp.sum(term) for term in terms.values()) + rest, full.log_density(u))
    np.testing.assert_allclose(density.log_density(u), full.log_density(u))
    np.testing.assert_allclose(density.unconstrain(density.constrain(u)), u)
    rows = {"row": jnp.array([3, 3, 0]), "other": jnp.array([6])}
    some, same = density.of(rows).by_row(u)
    np.testing.assert_allclose(same, rest)
    for name, index in rows.items():
        np.testing.assert_allclose(some[name], terms[name][index])


def test_a_step_does_not_pass_over_all_rows():
    method = HMCECS()
    kernel = method.kernel(10)

    def flops(rows):
        x = np.random.default_rng(0).normal(size=(rows, 3))
        density = method.density(pg.Model(logistic, {"x": x, "y": (x[:, 0] > 0).astype(float)}))
        state = jax.eval_shape(lambda: kernel.init(jax.random.key(0), density, jnp.zeros(3)))
        step = jax.jit(lambda key, density, state: kernel.step(key, density, state))
        return step.lower(jax.random.key(0), density, state).compile().cost_analysis()["flops"]

    assert flops(20_000) < 1.05 * flops(1000)


# -- errors ----------------------------------------------------------------------------------------------------------


def test_programs_and_settings_that_make_no_sense():
    assert "a plate with subsample_size" in next(row for row in methods() if row.name == "hmcecs").needs
    good = pg.Model(linear, LINEAR)
    with pytest.raises(pg.MethodError, match=r"no plate of the model has subsample_size .* use pg.NUTS"):
        pg.infer(pg.Model(whole, LINEAR), HMCECS())
    with pytest.raises(pg.MethodError, match="num_blocks must be an int of at least 1, got 0"):
        pg.infer(good, HMCECS(num_blocks=0))
    with pytest.raises(pg.MethodError, match="reference must map the name"):
        pg.infer(good, HMCECS(reference=[1.0]))
    with pytest.raises(pg.MethodError, match="reference names 'c', which is no latent site"):
        pg.infer(good, HMCECS(reference={"c": 1.0}))
    with pytest.raises(pg.MethodError, match=r"reference has shape \(2,\) for site 'b', expected \(3,\)"):
        pg.infer(good, HMCECS(reference={"b": [1.0, 2.0]}))
    with pytest.raises(pg.MethodError, match="reference lacks the site 'b'"):
        pg.infer(good, HMCECS(reference={}))
    data = {"x": np.zeros(12), "y": np.zeros((12, 3)), "z": np.ones(7), "few": 5, "some": 2}
    with pytest.raises(pg.MethodError, match="reference lies outside the support, or on its edge, at scale"):
        pg.infer(pg.Model(mixture_of_plates, data), HMCECS(reference={"mu": 0.0, "scale": -1.0}))


def test_programs_that_cannot_be_cut_into_rows():
    def local(y):
        with numpyro.plate("row", 10, subsample_size=5) as rows:
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    with pytest.raises(pg.MethodError, match="'z' is latent inside a plate with subsample_size"):
        pg.infer(pg.Model(local, {"y": np.zeros(10)}), HMCECS())

    def fixed(y):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("row", 10, subsample_size=len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    for rows in 5, 1:
        with pytest.raises(
            pg.MethodError, match=r"must run over all its rows here, which failed: .* Pass the whole data"
        ):
            pg.infer(pg.Model(fixed, {"y": np.zeros(rows)}), HMCECS())

    def crossed(y):
        mu = numpyro.sample("mu", dist.Normal())
        row, column = numpyro.plate("row", 10, subsample_size=5, dim=-2), numpyro.plate("column", 4, subsample_size=2)
        with row as rows, column as columns:
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows][:, columns])

    with pytest.raises(pg.MethodError, match=r"site 'y' stands in several plates with subsample_size \((row|column), "):
        pg.infer(pg.Model(crossed, {"y": np.zeros((10, 4))}), HMCECS())


def test_a_program_without_second_derivatives():
    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (g,))

    def reverse_only(y):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("row", 10, subsample_size=5) as rows:
            numpyro.sample("y", dist.Normal(same(mu), 1.0), obs=y[rows])

    with pytest.raises(pg.MethodError, match=r"without forward-mode derivatives, .* use pg.NUTS"):
        pg.infer(pg.Model(reverse_only, {"y": np.zeros(10)}), HMCECS())
