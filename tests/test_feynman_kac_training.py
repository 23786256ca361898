"""Training by particles: the gradient of the evidence, its maximum, the posterior there, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import probgen as pg
from probgen.feynman_kac.protocol import Cloud
from probgen.feynman_kac.smc import advance, begin
from probgen.infer import feynman_kac_training
from probgen.infer.feynman_kac_training import FeynmanKacTraining
from probgen.infer.smc import SMC
from probgen.kernels.evidence_ascent import evidence_gradient
from probgen.kernels.moves import Tuning
from probgen.program.enumerated import density_of
from probgen.program.parametrised import ParametrisedDensity, initial_params
from probgen.testing import assert_draws, assert_mean

positive = dist.constraints.positive

# -- a conjugate model: y_i = slope * w + N(0, sd), w ~ N(1, 1) ------------------------------------------------------

Y = np.array([1.9, 0.4, 2.8, 1.1, 3.0, 1.6])


def slope(y=None):
    """A stochastic weight, two deterministic ones."""
    slope = numpyro.param("slope", 0.6)
    sd = numpyro.param("sd", 1.5, constraint=positive)
    w = numpyro.sample("w", dist.Normal(1.0, 1.0))
    with numpyro.plate("row", len(Y)):
        numpyro.sample("y", dist.Normal(slope * w, sd), obs=y)


def exact_log_z(free):
    """The evidence of ``slope``, its parameters free of constraints."""
    a, sd, n = free["slope"], jnp.exp(free["sd"]), len(Y)
    covariance = sd**2 * jnp.eye(n) + a**2 * jnp.ones((n, n))
    return jax.scipy.stats.multivariate_normal.logpdf(jnp.asarray(Y), a * jnp.ones(n), covariance)


def exact_posterior(free):
    """Mean and standard deviation of ``w`` given the data."""
    a, sd = free["slope"], jnp.exp(free["sd"])
    precision = 1 + len(Y) * a**2 / sd**2
    return (1 + a * jnp.sum(Y) / sd**2) / precision, precision**-0.5


SLOPE = pg.Model(slope, {"y": Y})
FREE = {"slope": jnp.asarray(0.6), "sd": jnp.log(1.5)}


def posterior_at(free):
    return ParametrisedDensity(density_of(SLOPE), free)


def test_the_density_has_the_parameters_that_it_is_given():
    free = {"slope": jnp.asarray(-0.7), "sd": jnp.log(0.8)}
    density = posterior_at(FREE).at(free)
    prior, likelihood = density.parts(jnp.array([0.3]))
    assert prior == pytest.approx(scipy.stats.norm(1, 1).logpdf(0.3))
    assert likelihood == pytest.approx(scipy.stats.norm(-0.21, 0.8).logpdf(Y).sum())
    assert jax.tree.map(float, density.params) == pytest.approx({"slope": -0.7, "sd": 0.8})
    start = initial_params(jax.random.key(0), SLOPE)
    assert jax.tree.map(float, start) == pytest.approx(jax.tree.map(float, FREE))
    assert jnp.isfinite(density.draw_prior(jax.random.key(0))).all()


def test_initial_values_may_be_drawn_and_supports_follow_the_parameters():
    def program():
        low = numpyro.param("low", lambda key: jax.random.normal(key, (2,)))
        numpyro.sample("x", dist.Uniform(low, low + 1).to_event(1))

    model = pg.Model(program)
    a, b = (initial_params(jax.random.key(seed), model)["low"] for seed in (0, 1))
    assert not np.allclose(a, b)
    density = ParametrisedDensity(density_of(model), {"low": jnp.array([5.0, -5.0])})
    x = density.constrain(density.draw_prior(jax.random.key(2)))["x"]
    assert (x > np.array([5, -5])).all()
    assert (x < np.array([6, -4])).all()


# -- the gradient, and the particles that follow ---------------------------------------------------------------------


def test_particles_give_the_gradient_of_the_log_evidence():
    """Weighted draws: from a law next to the posterior, so that a forgotten weight shows."""
    mean, sd = exact_posterior(FREE)
    far = mean + 0.7 * sd

    @jax.jit
    @jax.vmap
    def gradient(key):
        u = far + 1.2 * sd * jax.random.normal(key, (4000, 1))
        log_w = scipy_normal(u[:, 0], mean, sd) - scipy_normal(u[:, 0], far, 1.2 * sd)
        return evidence_gradient(posterior_at(FREE), u, jax.nn.log_softmax(log_w))

    found = gradient(jax.random.split(jax.random.key(0), 100))
    exact = jax.grad(exact_log_z)(FREE)
    for name in FREE:  # self-normalised weights leave a bias of order 1 / 4000
        assert_mean(found[name], exact[name], detects=0.05, tolerance=0.002)


def scipy_normal(x, mean, sd):
    return jax.scipy.stats.norm.logpdf(x, mean, sd)


def test_a_particle_of_density_zero_leaves_the_gradient_alone():
    def program():
        a = numpyro.param("a", 1.0)
        x = numpyro.sample("x", dist.Normal())
        numpyro.factor("f", jnp.where(x > 0, a * jnp.sqrt(x), -jnp.inf))

    density = ParametrisedDensity(density_of(pg.Model(program)), {"a": jnp.asarray(1.0)})
    gradient = evidence_gradient(density, jnp.array([[-1.0], [4.0]]), jnp.array([-jnp.inf, 0.0]))
    assert gradient["a"] == pytest.approx(2.0)


RATE = 0.1


@pytest.fixture(scope="module")
def followed():
    """Replicates of 60 quick steps with one weak move each: what is not weighted lags behind."""
    method = FeynmanKacTraining(particles=200, learning_rate=RATE, posterior=SMC())
    mean, sd = exact_posterior(FREE)

    @jax.jit
    @jax.vmap
    def climb(key):
        key_start, key_begin, key_climb = jax.random.split(key, 3)
        u = mean + sd * jax.random.normal(key_start, (200, 1))
        cloud = Cloud(u, jnp.full(200, -jnp.log(200.0)))
        tuning = Tuning(jnp.eye(1), jnp.asarray(0.3))
        fk = method.climb(posterior_at(FREE), cloud, tuning, jnp.asarray(1.0), 60)
        state, _ = begin(key_begin, fk, method.settings)
        state, steps, taken = advance(key_climb, fk, method.settings, state, 0, 60)
        return state.cloud.x.point.u[:, 0], state.cloud.log_w, state.log_z, state.context.free, steps, taken

    return climb(jax.random.split(jax.random.key(1), 200))


def test_the_evidence_is_tracked_while_it_is_climbed(followed):
    _, _, log_z, free, steps, taken = followed
    assert (taken == 60).all()
    exact = jax.vmap(exact_log_z)(free) - exact_log_z(FREE)
    assert exact.min() > 0.5  # something was gained
    assert steps.resampled.any()  # and the particles had to be resampled on the way
    # Parameters that follow the particles leave a bias of order 1 / 200.
    assert_mean(log_z - exact, 0.0, detects=0.08, tolerance=0.015)
    np.testing.assert_array_equal(steps.log_z[:, -1], log_z)


def test_the_particles_are_those_of_the_posterior_at_the_new_parameters(followed):
    u, log_w, _, free, _, _ = followed
    mean, sd = jax.vmap(exact_posterior)(free)
    z = (u - mean[:, None]) / sd[:, None]
    w = np.exp(log_w)
    np.testing.assert_allclose(w.sum(1), 1)
    assert_mean((w * z).sum(1), 0.0, detects=0.1, tolerance=0.02)
    assert_mean((w * z**2).sum(1), 1.0, detects=0.1, tolerance=0.03)


# -- the whole method ------------------------------------------------------------------------------------------------

EFFECTS = np.random.default_rng(0).normal(0, np.sqrt(5), 8)


def effects(y=None):
    """The evidence is N(y; 0, 1 + tau^2), so that the best tau is known."""
    tau = numpyro.param("tau", 1.0, constraint=positive)
    with numpyro.plate("i", len(EFFECTS)):
        x = numpyro.sample("x", dist.Normal(0.0, tau))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


QUICK = FeynmanKacTraining(particles=200, learning_rate=0.05, posterior=SMC(particles=500, kernel=pg.HMC()))
COUNTS = {"draws": 250, "chains": 4, "progress": False}


@pytest.fixture(scope="module")
def trained():
    return pg.infer(pg.Model(effects, {"y": EFFECTS}), QUICK, seed=0, **COUNTS)


def marginal(tau):
    return scipy.stats.norm(0, np.sqrt(1 + tau**2)).logpdf(EFFECTS).sum()


def test_the_parameters_are_where_the_evidence_is_largest(trained):
    tau = float(trained["params/tau"])
    assert trained.attrs["ended"] == "completed"
    assert marginal(np.sqrt(np.mean(EFFECTS**2) - 1)) - marginal(tau) < 0.02
    np.testing.assert_array_equal(trained["posterior/tau"], tau)
    assert trained["posterior/tau"].dims == ("chain", "draw")


def test_the_posterior_and_its_evidence_are_those_at_the_trained_parameters(trained):
    tau, attrs = float(trained["params/tau"]), trained.attrs
    assert abs(attrs["log_evidence"] - marginal(tau)) < 4.5 * attrs["log_evidence_se"]
    assert 0 < attrs["log_evidence_se"] < 0.1
    assert abs(attrs["training_log_evidence"] - marginal(tau)) < 0.6
    shrunk = tau**2 / (1 + tau**2)
    assert_draws(
        {"x": trained["posterior/x"].values},
        means={"x": shrunk * EFFECTS},
        sds={"x": np.full(len(EFFECTS), np.sqrt(shrunk))},
        detects=0.5,
    )


def test_the_course_of_the_training_is_kept(trained):
    course = trained["optimization"]
    assert set(course.data_vars) == {"objective", "learning_rate", "ess", "acceptance_rate", "gradient_norm"}
    assert course.sizes["step"] == trained.attrs["steps"]
    assert trained.attrs["skipped_steps"] == 0
    objective = course["objective"].values
    assert objective[-1] == trained.attrs["training_log_evidence"] > objective[0]
    assert course["ess"].values.min() > 20
    assert 0.5 < course["acceptance_rate"].values.mean() < 0.95
    assert float(course["gradient_norm"][-50:].mean()) < 0.5


def test_predictions_take_the_trained_parameters(trained):
    predicted = pg.predict(pg.Model(effects, {"y": EFFECTS}), trained, seed=1)["posterior_predictive/y"]
    tau = float(trained["params/tau"])
    shrunk = tau**2 / (1 + tau**2)
    error = (predicted.mean(("chain", "draw")) - shrunk * EFFECTS) / np.sqrt(1 + shrunk)
    assert np.abs(error).max() < 5 / np.sqrt(1000 / 3)


# -- two modes -------------------------------------------------------------------------------------------------------

BENT = np.array([2.2, 1.7, 2.1, 2.6, 1.5, 1.9])


def bent(y=None):
    """The sign of the weight is seen by its prior only."""
    scale = numpyro.param("scale", 1.0, constraint=positive)
    w = numpyro.sample("w", dist.Normal(0.4, 1.0))
    with numpyro.plate("row", len(BENT)):
        numpyro.sample("y", dist.Normal(scale * w**2, 0.5), obs=y)


def right_share(scale):
    """Mass of the mode of positive weights, and the log evidence, by quadrature."""
    w = np.linspace(-6, 6, 200_001)
    log_p = scipy.stats.norm(0.4, 1).logpdf(w) + sum(scipy.stats.norm(scale * w**2, 0.5).logpdf(y) for y in BENT)
    p = np.exp(log_p - log_p.max())
    return p[w > 0].sum() / p.sum(), np.log(p.sum() * (w[1] - w[0])) + log_p.max()


@pytest.mark.slow
def test_both_modes_of_a_weight_have_their_mass_where_the_mean_field_has_one():
    model = pg.Model(bent, {"y": BENT})
    method = FeynmanKacTraining(particles=300, learning_rate=0.05, posterior=SMC(particles=1000, kernel=pg.HMC()))
    tree = pg.infer(model, method, seed=3, **COUNTS)
    scale = float(tree["params/scale"])
    share, log_z = right_share(scale)
    best = max(right_share(s)[1] for s in np.geomspace(0.5, 5, 60))
    assert best - log_z < 0.03
    assert 0.6 < share < 0.9
    # 4000 particles from the prior; tempering leaves a mode's mass uncertain by about twice as much as draws would.
    right = float((tree["posterior/w"] > 0).mean())
    assert abs(right - share) < 4.5 * 2 * np.sqrt(share * (1 - share) / 1000)
    assert abs(tree.attrs["log_evidence"] - log_z) < 4.5 * tree.attrs["log_evidence_se"]

    with pytest.warns(pg.ProbgenWarning):
        mean_field = pg.infer(model, pg.SVI(steps=3000), seed=3, **COUNTS)
    assert float((mean_field["posterior/w"] > 0).mean()) in (0.0, 1.0)


# -- how it runs -----------------------------------------------------------------------------------------------------

SHORT = FeynmanKacTraining(particles=40, steps=150, window=50, posterior=SMC(particles=60))


def same(a, b):
    for group in ("posterior", "params", "optimization", "particles"):
        for name, value in a[group].data_vars.items():
            np.testing.assert_array_equal(value.values, b[group][name].values, err_msg=name)


def test_interrupted_it_goes_on_where_it_was(tmp_path, monkeypatch):
    model, counts = pg.Model(slope, {"y": Y}), {"draws": 10, "chains": 1, "seed": 4, "progress": False}
    with pytest.warns(pg.ProbgenWarning, match="converged"):
        plain = pg.infer(model, SHORT, **counts)
    advance, calls = feynman_kac_training._Training.advance, []

    def counted(self, state, first, last):
        calls.append(first)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return advance(self, state, first, last)

    monkeypatch.setattr(feynman_kac_training._Training, "advance", counted)
    with pytest.raises(KeyboardInterrupt):
        pg.infer(model, SHORT, store=tmp_path / "run.zarr", **counts)
    with pytest.warns(pg.ProbgenWarning, match="converged"):
        resumed = pg.infer(model, SHORT, store=tmp_path / "run.zarr", **counts)
    assert calls == [0, 50, 100, 100]  # what was done was not done again
    same(plain, resumed)


def test_interrupted_after_the_training_it_is_not_trained_again(tmp_path, monkeypatch):
    model, counts = pg.Model(slope, {"y": Y}), {"draws": 10, "chains": 1, "seed": 4, "progress": False}

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feynman_kac_training, "particle_runs", stopped)
        with pytest.raises(KeyboardInterrupt):
            pg.infer(model, SHORT, store=tmp_path / "run.zarr", **counts)
    monkeypatch.setattr(feynman_kac_training._Training, "advance", stopped)
    with pytest.warns(pg.ProbgenWarning, match="converged"):
        resumed = pg.infer(model, SHORT, store=tmp_path / "run.zarr", **counts)
    assert resumed["optimization"].sizes["step"] == 150
    monkeypatch.undo()
    with pytest.warns(pg.ProbgenWarning, match="converged"):
        plain = pg.infer(model, SHORT, **counts)
    same(plain, resumed)


def test_other_data_of_the_same_shape_compile_nothing():
    from probgen.run.compiled import compile_count

    counts = {"draws": 10, "chains": 1, "seed": 4, "progress": False}
    with pytest.warns(pg.ProbgenWarning, match="converged"):
        pg.infer(pg.Model(slope, {"y": Y}), SHORT, **counts)
    before = compile_count()
    with pytest.warns(pg.ProbgenWarning, match="converged"):
        other = pg.infer(pg.Model(slope, {"y": Y + 1}), SHORT, **counts)
    assert compile_count() == before
    assert other["params/slope"] > 0.6


@pytest.mark.slow
def test_it_runs_in_32_bits():
    with jax.enable_x64(False), pytest.warns(pg.ProbgenWarning, match="converged"):
        tree = pg.infer(pg.Model(slope, {"y": Y}), SHORT, draws=10, chains=1, progress=False)
    assert tree["params/slope"].dtype == np.float32
    assert np.isfinite(tree["posterior/w"].values).all()


# -- what is refused -------------------------------------------------------------------------------------------------


def infer(program, method=SHORT, **data):
    return pg.infer(pg.Model(program, data), method, draws=10, chains=1, progress=False)


def test_a_program_without_params_belongs_to_smc():
    def program(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("w", dist.Normal()), 1), obs=y)

    with pytest.raises(pg.MethodError, match=r"no numpyro\.param.*pg\.SMC\(\)"):
        infer(program, y=1.0)


def test_a_program_without_stochastic_sites_has_nothing_to_infer():
    def program(y):
        numpyro.sample("y", dist.Normal(numpyro.param("w", 0.0), 1), obs=y)

    with pytest.raises(pg.ModelError, match="no latent site"):
        infer(program, y=1.0)


def test_mini_batches_are_refused():
    def program(y):
        w = numpyro.sample("w", dist.Normal(numpyro.param("a", 0.0), 1))
        with numpyro.plate("row", len(y), subsample_size=2) as i:
            numpyro.sample("y", dist.Normal(w, 1), obs=y[i])

    with pytest.raises(pg.MethodError, match=r"plate 'row' sees 2 of 6 rows.*Drop subsample_size"):
        infer(program, y=Y)


def test_an_improper_prior_is_refused():
    def program(y):
        w = numpyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(numpyro.param("a", 1.0) * w, 1), obs=y)

    with pytest.raises(pg.MethodError, match="'w' has an improper prior"):
        infer(program, y=1.0)


@pytest.mark.parametrize("first", [-0.5, 1.0])
def test_a_param_that_starts_outside_its_constraint_is_named(first):
    def program(y):
        mean = numpyro.param("mean", first, constraint=dist.constraints.unit_interval)
        numpyro.sample("y", dist.Normal(numpyro.sample("w", dist.Normal()) + mean, 1), obs=y)

    with pytest.raises(pg.MethodError, match=r"'mean' is a numpyro\.param whose first value lies outside"):
        infer(program, y=1.0)


def test_a_param_that_is_no_array_is_named():
    def program(y):
        net = numpyro.param("net", {"a": jnp.ones(2)})
        numpyro.sample("y", dist.Normal(numpyro.sample("w", dist.Normal()) + net["a"].sum(), 1), obs=y)

    with pytest.raises(pg.MethodError, match=r"'net' is a numpyro\.param of dict"):
        infer(program, y=1.0)


def test_a_likelihood_that_is_zero_everywhere_is_named():
    with pytest.raises(pg.MethodError, match=r"zero or not a number at all 40 particles.*y \(-inf\)"):
        infer(slope, y=np.full(len(Y), 1e200))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 1}, "particles must be an int of at least 2, got 1"),
        ({"moves": 0}, "moves must be an int of at least 1"),
        ({"steps": 0}, "steps must be an int of at least 1"),
        ({"window": 10}, "window must be an int of at least 50, got 10"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number"),
        ({"tolerance": 0.0}, "tolerance must be a positive number"),
        ({"posterior": pg.NUTS()}, r"posterior must be a pg\.SMC\(\)"),
        ({"optimizer": 0.1}, "optimizer must be a function"),
        ({"posterior": SMC(waste_free=32)}, "waste_free=32 of posterior plays no part"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(pg.MethodError, match=message):
        FeynmanKacTraining(**settings).check()
