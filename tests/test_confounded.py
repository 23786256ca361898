"""A confounder in the program: exact laws with the confounder integrated out, its posterior, and the bias per draw."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
import xarray
from matplotlib.figure import Figure
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.base.errors import DataError, MethodError, ModelError
from probgen.causal import (
    CinelliHazlett,
    ConfoundedEffect,
    ConfounderPosterior,
    LinearEffect,
    PosteriorBias,
    Regression,
)
from probgen.testing import assert_draws, assert_proportion, assert_same_distribution


@pytest.fixture(autouse=True, scope="module")
def _in_64_bits():
    with jax.enable_x64(True):
        yield


R_T, R_Y = 0.3, 0.2
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def unit(cause, effect):
    """A program of units with given mechanisms."""

    def program(t, y):
        with numpyro.plate("units", t.shape[0]):
            t = numpyro.sample("T", cause(), obs=t)
            numpyro.sample("Y", effect(t), obs=y)

    return program


def given_the_confounder(cause, effect, t, y, r2_t=R_T, r2_y=R_Y, alignment=1.0):
    """Distributions of treatment and outcome of one unit, at the nodes of a quadrature over its confounder."""
    ones = np.ones(len(NODES))
    model = pg.Model(unit(cause, effect), {"t": jnp.asarray(t * ones), "y": jnp.asarray(y * ones)})
    model = pg.causal.confound(model, treatment="T", outcome="Y", r2_T=r2_t, r2_Y=r2_y, alignment=alignment)
    held = handlers.substitute(model.bind(), data={"confounder": jnp.asarray(NODES)})
    traced = handlers.trace(handlers.seed(held, jax.random.key(0))).get_trace()
    prior = traced["confounder"]["fn"].log_prob(NODES)
    np.testing.assert_allclose(prior, scipy.stats.norm.logpdf(NODES), rtol=0, atol=1e-12)
    return traced["T"]["fn"], traced["Y"]["fn"]


def integrated(cause, effect, t, y, **strengths):
    """The density of treatment and outcome, and of the treatment alone, without the confounder."""
    of_t, of_y = given_the_confounder(cause, effect, t, y, **strengths)
    of_t, of_y = np.exp(of_t.log_prob(t)), np.exp(of_y.log_prob(y))
    return WEIGHTS @ (of_t * of_y), WEIGHTS @ of_t


# -- the law without the confounder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "y", "alignment"), [(0.3, 1.0, 1.0), (-2.0, 2.5, -0.4)])
def test_normal_sites_keep_their_scales_and_the_slope_moves_by_the_bias(t, y, alignment):
    m_t, s_t, tau, s_y = 0.5, 1.3, 0.7, 2.1
    both, alone = integrated(
        lambda: dist.Normal(m_t, s_t), lambda t: dist.Normal(1 + tau * t, s_y), t, y, alignment=alignment
    )
    assert alone == pytest.approx(scipy.stats.norm.pdf(t, m_t, s_t), rel=1e-10)
    bias = alignment * math.sqrt(R_Y * R_T / (1 - R_T)) * s_y / s_t
    mean = 1 + tau * t + bias * (t - m_t)
    assert both / alone == pytest.approx(scipy.stats.norm.pdf(y, mean, s_y), rel=1e-9)


@pytest.mark.parametrize("logits", [-3.0, 1.2])
def test_a_binary_treatment_keeps_its_probability(logits):
    p = 1 / (1 + math.exp(-logits))
    sites = (lambda: dist.Bernoulli(logits=logits), lambda t: dist.Normal(t, 1.5))
    for t, expected in ((1.0, p), (0.0, 1 - p)):
        assert integrated(*sites, t, 0.4)[1] == pytest.approx(expected, rel=1e-9)
    # The shares are those of the variances, on average over the treatment: law of total variance, by the nodes.
    of_t, of_y = given_the_confounder(*sites, 1.0, 0.0)
    treated = np.exp(of_t.log_prob(1.0))
    means = np.asarray(of_y.mean) - 1.0
    explained = 0.0
    for chance, weights in ((p, WEIGHTS * treated), (1 - p, WEIGHTS * (1 - treated))):
        share = weights / weights.sum()
        explained += chance * (share @ means**2 - (share @ means) ** 2)
    assert explained == pytest.approx(R_Y * 1.5**2, rel=1e-8)
    assert explained + np.asarray(of_y.variance)[0] == pytest.approx(1.5**2, rel=1e-8)


@pytest.mark.parametrize("family", ["Bernoulli", "Poisson"])
def test_discrete_outcomes_keep_their_mean_under_an_intervention(family):
    made = {"Bernoulli": lambda t: dist.Bernoulli(probs=0.1 + 0 * t), "Poisson": lambda t: dist.Poisson(0.7 + 0 * t)}
    expected = {"Bernoulli": 0.1, "Poisson": 0.7}[family]
    _, of_y = given_the_confounder(lambda: dist.Normal(0, 1), made[family], 0.0, 1.0)
    assert np.ptp(np.asarray(of_y.mean)) > 0.01
    assert WEIGHTS @ np.asarray(of_y.mean) == pytest.approx(expected, rel=1e-9)


def test_two_binary_sites_are_a_bivariate_probit():
    a, b = 0.3, -0.4

    def binary(q):
        return dist.Bernoulli(probs=jax.scipy.special.ndtr(q))

    joint = integrated(lambda: binary(a), lambda t: binary(b + 0 * t), 1.0, 1.0)[0]
    left = 1 - R_T * scipy.stats.norm.pdf(a) ** 2 / (scipy.stats.norm.cdf(a) * scipy.stats.norm.cdf(-a))
    load2 = R_Y / left
    rho = math.sqrt(R_T * load2 / (load2 + 1 - R_Y))
    exact = scipy.stats.multivariate_normal([0, 0], np.array([[1, rho], [rho, 1]])).cdf([a, b])  # pyright: ignore[reportArgumentType]
    assert joint == pytest.approx(exact, abs=1e-6)


def test_logarithms_are_split_as_normal_and_tails_stay_heavy():
    normal = given_the_confounder(lambda: dist.Normal(0.2, 0.5), lambda t: dist.Normal(t, 0.7), 0.1, 0.0)
    logs = given_the_confounder(
        lambda: dist.LogNormal(0.2, 0.5), lambda t: dist.StudentT(4.0, jnp.log(t), 0.7), math.exp(0.1), 0.0
    )
    for plain, other in zip(normal, logs, strict=True):
        np.testing.assert_allclose(plain.loc, other.loc, rtol=0, atol=1e-12)
        np.testing.assert_allclose(plain.scale, other.scale, rtol=0, atol=1e-12)
    assert isinstance(logs[1], dist.StudentT)
    assert logs[1].df == 4


# -- the program -------------------------------------------------------------------------------------------------------


def flat():
    return dist.ImproperUniform(dist.constraints.real, (), ())


def regression(x, t=None, y=None):
    a0, a1, b0, b1, tau = (numpyro.sample(name, flat()) for name in ("a0", "a1", "b0", "b1", "tau"))
    s_t, s_y = (numpyro.sample(name, dist.HalfNormal(5.0)) for name in ("s_t", "s_y"))
    with numpyro.plate("units", x.shape[0]):
        t = numpyro.sample("T", dist.Normal(a0 + a1 * x, s_t), obs=t)
        numpyro.sample("Y", dist.Normal(b0 + b1 * x + tau * t, s_y), obs=y)


def study(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    t = 0.5 * x + rng.normal(size=n)
    return {"x": x, "t": t, "y": 0.4 * t + x + 1.5 * rng.normal(size=n)}


def least_squares(data):
    return Regression.fit({"T": data["t"], "Y": data["y"], "x": data["x"]}, "Y", "T", ["x"])


@pytest.fixture(scope="module")
def fixed():
    with jax.enable_x64(True):
        model = pg.Model(regression, study(30))
        return pg.causal.confound(model, treatment="T", outcome="Y", r2_T=R_T, r2_Y=R_Y, alignment=1.0)


@pytest.fixture(scope="module")
def fits(fixed):
    with jax.enable_x64(True):
        return {
            r2: pg.infer(
                fixed.with_data(confounder_r2_T=r2[0], confounder_r2_Y=r2[1]),
                pg.NUTS(),
                draws=500,
                warmup=300,
                chains=2,
                seed=3,
                progress=False,
            )
            for r2 in ((R_T, R_Y), (0.0, 0.0))
        }


def mean_of_ratio(data):
    """Posterior mean of s_Y / s_T by quadrature: coefficients integrated out, the scales are independent."""
    fit = least_squares(data)
    n, s = len(data["x"]), np.linspace(0.3, 6.0, 20_001)

    def mean(power, rss, coefficients):
        log_p = -(n - coefficients) * np.log(s) - rss / (2 * s**2) - s**2 / (2 * 5.0**2)
        p = np.exp(log_p - log_p.max())
        return (p @ s**power) / p.sum()

    assert fit.fitted is not None
    rss_t, rss_y = (float(part @ part) for part in (fit.fitted.d_residual, fit.fitted.residual))
    return mean(1, rss_y, 3) * mean(-1, rss_t, 2)


def test_the_effect_is_least_squares_less_the_bias(fits):
    """With flat priors of the coefficients; without strength it is the posterior without a confounder."""
    fit, ratio = least_squares(study(30)), mean_of_ratio(study(30))
    assert_draws(fits[0.0, 0.0]["posterior"]["tau"].values, means=fit.estimate, detects=0.45)
    bias = math.sqrt(R_Y * R_T / (1 - R_T)) * ratio
    assert_draws(fits[R_T, R_Y]["posterior"]["tau"].values, means=fit.estimate - bias, detects=0.45)
    # The closed form for least squares has the ratio of the residual sums in the place of its posterior mean.
    assert CinelliHazlett().bias(fit, R_T, R_Y) == pytest.approx(bias, rel=0.05)


def test_worlds_and_graph_of_the_confounded_program(fixed, fits):
    graph = pg.causal.graph(fixed)
    assert graph.bidirected == {frozenset(("T", "Y"))}
    with pytest.raises(pg.NotIdentified):
        pg.causal.identify(graph, "P(Y | do(T=1))")
    tree = fits[R_T, R_Y].isel(draw=slice(0, 40))
    worlds = pg.causal.worlds(fixed, tree, {"one": pg.do(T=1.0), "zero": pg.do(T=0.0)}, progress=False)
    effect = worlds.ate("Y", "one", "zero")
    np.testing.assert_allclose(effect.draws, tree["posterior"]["tau"], rtol=0, atol=1e-10)
    assert np.ptp(ConfoundedEffect.of(tree, effect).effect - ConfoundedEffect.of(tree, "tau").effect) < 1e-9


def test_units_masks_and_names():
    """The confounder belongs to the units, finds a free name, and leaves masks and event axes as they are."""

    def program(seen, t=None, confounder=None):
        with numpyro.plate("units", 4):
            t = numpyro.sample("T", dist.Normal(jnp.zeros(2), 1).to_event(1), obs=t)
            with handlers.mask(mask=seen):
                numpyro.sample("Y", dist.Normal(t, 1).to_event(1), obs=t)

    data = {"seen": np.array([True, True, False, True]), "t": np.arange(8.0).reshape(4, 2), "confounder": 1.0}
    model = pg.Model(program, data)
    made = pg.causal.confound(model, treatment="T", outcome="Y", r2_T=0.5)
    assert made.sites["confounder_2"].shape == (4, 2)
    assert [plate.name for plate in made.sites["confounder_2"].plates] == ["units"]
    traced = handlers.trace(handlers.seed(made.bind(), jax.random.key(0))).get_trace()
    np.testing.assert_array_equal(traced["Y"]["fn"].log_prob(traced["Y"]["value"])[2], 0.0)
    assert traced["T"]["fn"].event_dim == 1
    assert float(made.leaves["confounder_2_r2_T"]) == 0.5
    with pytest.raises(DataError, match=r"needs the argument 'confounder_2_r2_T'|'confounder_2_r2'"):
        made.with_data(confounder_2_r2=0.1)


@pytest.mark.slow
def test_flat_priors_of_coefficients_leave_the_strengths_at_their_priors():
    model = pg.Model(regression, study(30))
    made = pg.causal.confound(model, treatment="T", outcome="Y", r2_T=dist.Beta(2, 5), r2_Y=dist.Beta(1, 4))
    tree = pg.infer(made, pg.NUTS(), draws=3000, warmup=600, chains=2, seed=1, progress=False)
    posterior = tree["posterior"]
    for name, law in (
        ("confounder_r2_T", scipy.stats.beta(2, 5)),
        ("confounder_r2_Y", scipy.stats.beta(1, 4)),
        ("confounder_alignment", scipy.stats.uniform(-1, 2)),
    ):
        assert_same_distribution(posterior[name].values, law.cdf, detects=0.1)
    # The fast path, from the fit without a confounder, is the same posterior of the effect.
    plain = pg.infer(model, pg.NUTS(), draws=3000, warmup=600, chains=2, seed=2, progress=False)
    effect = LinearEffect.of(model, plain, treatment="T", outcome="Y")
    quick = PosteriorBias(dist.Beta(2, 5), dist.Beta(1, 4)).adjusted(effect)
    assert_same_distribution(posterior["tau"].values, quick.values, detects=0.1)


def test_true_strengths_cover_the_truth():
    """Data with a known confounder, and exact draws of the posterior without it (flat priors of the coefficients and of
    the logarithms of the scales): intervals with the right strengths cover, those without a confounder do not."""
    n, tau, level, replicates, draws = 80, 0.4, 0.8, 400, 400
    covered = {True: 0, False: 0}
    for seed in range(replicates):
        rng = np.random.default_rng(seed)
        x, u = rng.normal(size=(2, n))
        t = 0.5 * x + math.sqrt(R_T) * u + math.sqrt(1 - R_T) * rng.normal(size=n)
        y = tau * t + x + 1.5 * (math.sqrt(R_Y / (1 - R_T)) * u + math.sqrt(1 - R_Y) * rng.normal(size=n))
        design = np.column_stack([np.ones(n), x])
        t, y = (column - design @ np.linalg.lstsq(design, column, rcond=None)[0] for column in (t, y))
        slope = (t @ y) / (t @ t)
        s_t = np.sqrt(t @ t / rng.chisquare(n - 2, draws))
        s_y = np.sqrt(np.sum((y - slope * t) ** 2) / rng.chisquare(n - 3, draws))
        tau_s = slope + s_y / np.sqrt(t @ t) * rng.normal(size=draws)
        by_draw, ratio = (xarray.DataArray(part[None], dims=("chain", "draw")) for part in (tau_s, s_y / s_t))
        effect = LinearEffect(by_draw, ratio)
        for right in covered:
            moved = PosteriorBias(R_T * right, R_Y * right, 1.0).adjusted(effect)
            low, high = np.quantile(moved, [(1 - level) / 2, (1 + level) / 2])
            covered[right] += int(low <= tau <= high)
    assert_proportion(covered[True], replicates, level, detects=0.16)
    assert covered[False] < 0.3 * replicates


# -- the bias per draw -------------------------------------------------------------------------------------------------


def tree_of(model, draws, **values):
    """A posterior of known draws."""
    posterior = {
        name: (("chain", "draw"), np.broadcast_to(np.asarray(value, float), (1, draws)))
        for name, value in values.items()
    }
    coords = {"chain": [0], "draw": np.arange(draws)}
    return xarray.DataTree.from_dict({"posterior": xarray.Dataset(posterior, coords)})


def at_least_squares(data, draws=1, tau=None):
    fit = least_squares(data)
    tau = fit.estimate if tau is None else tau
    model = pg.Model(regression, data)
    s_y = fit.se * math.sqrt(fit.dof)  # times 1 / s_T it is the root of the ratio of the residual sums
    tree = tree_of(model, draws, a0=0.0, a1=0.5, b0=0.0, b1=1.0, tau=tau, s_t=1.0, s_y=np.full((1, draws), s_y))
    return LinearEffect.of(model, tree, treatment="T", outcome="Y", progress=False)


def test_bias_of_a_draw_is_that_of_the_regression():
    data = study()
    fit, effect = least_squares(data), at_least_squares(data)
    moved = PosteriorBias(R_T, R_Y, 1.0).adjusted(effect).item()
    assert moved == pytest.approx(CinelliHazlett().adjusted(fit, R_T, R_Y).estimate, rel=1e-10)
    assert PosteriorBias(R_T, R_Y, -1.0).adjusted(effect).item() == pytest.approx(2 * fit.estimate - moved, rel=1e-10)
    result = pg.causal.sensitivity(effect)
    measures = result["confounder in the posterior"].measures
    strength = next(m.value for m in measures if m.name == "tipping strength")
    assert strength == pytest.approx(pg.causal.robustness_value(fit.t, fit.dof), rel=1e-9)
    table = result["confounder in the posterior"].table
    expected = CinelliHazlett(kd=(1.0,)).analyse(fit, pg.causal.Question(benchmarks=(("x",),))).table
    assert table.loc["1 x x", "estimate"] == pytest.approx(expected["estimate"].iloc[0], rel=1e-9)


def test_posterior_of_the_effect_under_priors_of_the_strength():
    rng = np.random.default_rng(0)
    draws = 40_000
    effect = at_least_squares(study(), draws, tau=rng.normal(0.6, 0.2, draws))
    ratio = float(effect.ratio[0, 0])
    moved = PosteriorBias(R_T, R_Y).adjusted(effect).values[0]
    # A normal less a uniform: the probability of the sign in closed form.
    reach = math.sqrt(R_Y * R_T / (1 - R_T)) * ratio
    z = scipy.stats.norm(0.6, 0.2)
    shifts = np.linspace(-reach, reach, 4001)
    expected = float(np.mean(z.sf(shifts)))
    assert_proportion(int(np.sum(moved > 0)), draws, expected, detects=0.02)
    result = pg.causal.sensitivity(effect, PosteriorBias(R_T, R_Y))
    measures = {m.name: m.value for m in result["confounder in the posterior"].measures}
    assert measures["probability of the sign"] == np.mean(moved > 0)
    assert measures["tipping strength of the interval"] < measures["tipping strength"]
    assert "alignment ~ Uniform(-1, 1)" in result.text
    for figure in (result.plot_contour(), result.plot_tipping(), result.plot_bounds()):
        assert isinstance(figure, Figure)


def test_effect_against_strength_in_a_confounded_posterior():
    rng = np.random.default_rng(1)
    n = 40_000
    r2_t, r2_y, alignment = rng.beta(1, 4, n), rng.beta(1, 4, n), rng.uniform(-1, 1, n)
    factor = alignment * np.sqrt(r2_t * r2_y / (1 - r2_t))
    subject = ConfoundedEffect(-1.0 + 2.0 * factor + 0.1 * rng.normal(size=n), r2_t, r2_y, -alignment, "slope")
    analysis = pg.causal.sensitivity(subject, ConfounderPosterior(groups=80))["confounder in the program"]
    measures = {m.name: m.value for m in analysis.measures}
    assert measures["probability of the sign"] == np.mean(subject.effect < 0)
    # The sign has probability 0.975 where (1 - 2 f) / 0.1 = 1.96.
    f = (1 - 0.1 * 1.96) / 2
    exact = (-(f**2) + math.sqrt(f**4 + 4 * f**2)) / 2
    assert measures["tipping strength"] == pytest.approx(exact, abs=0.04)
    assert analysis.table["strength"].is_monotonic_increasing
    assert "explains about" in analysis.text
    assert isinstance(analysis.plot_bounds(), Figure)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def small(program, **data):
    return pg.Model(program, {"t": np.array([0.1, 0.2, 1.0]), "y": np.array([0.0, 1.0, 2.0]), **data})


LINEAR = unit(lambda: dist.Normal(0, 1), lambda t: dist.Normal(t, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r2_T": 1.0}, r"r2_T must lie in \[0, 1\), got 1"),
        ({"r2_Y": -0.1}, r"r2_Y must lie in \[0, 1\)"),
        ({"alignment": 2}, r"alignment must lie in \[-1, 1\], got 2"),
        ({"r2_T": dist.Normal(0, 1)}, r"r2_T has a prior Normal that is not confined to \[0, 1\]"),
        ({"r2_T": dist.Beta(np.ones(3), 9)}, "one number for all units"),
        ({"r2_Y": "strong"}, "r2_Y must be a number or a distribution, got str"),
        ({"treatment": "Y", "outcome": "T"}, "'T' does not depend on the treatment 'Y'"),
        ({"treatment": "t"}, "no site 't'"),
    ],
)
def test_bad_strengths_and_sites(arguments, message):
    with pytest.raises((MethodError, ModelError), match=message):
        pg.causal.confound(small(LINEAR), **{"treatment": "T", "outcome": "Y", **arguments})


def test_programs_that_cannot_be_confounded():
    def both(program, **data):
        return pg.causal.confound(small(program, **data), treatment="T", outcome="Y")

    with pytest.raises(ModelError, match=r"'Y' follows Gamma.*Supported are Normal, LogNormal, StudentT"):
        both(unit(lambda: dist.Normal(0, 1), lambda t: dist.Gamma(jnp.exp(t), 1)), y=np.ones(3))
    with pytest.raises(ModelError, match=r"'T' follows Poisson.*as that of a treatment"):
        both(unit(lambda: dist.Poisson(1.0), lambda t: dist.Normal(t, 1)), t=np.ones(3, int))

    def wide(t, y):
        t = numpyro.sample("T", dist.Normal(0, 1), obs=t[0])
        numpyro.sample("Y", dist.Normal(t * jnp.ones(3), 1), obs=y)

    with pytest.raises(ModelError, match=r"shape \(\) and the outcome 'Y' has shape \(3,\)"):
        both(wide)

    def series(t, y):
        def step(carry, row):
            now = numpyro.sample("T", dist.Normal(carry, 1), obs=row[0])
            numpyro.sample("Y", dist.Normal(now, 1), obs=row[1])
            return now, None

        scan(step, 0.0, jnp.stack([t, y], 1))

    with pytest.raises(ModelError, match="stands in a scan"):
        both(series)
    with pytest.raises(ModelError, match="is deterministic and has no noise"):
        pg.causal.confound(small(LINEAR).do(T=1.0), treatment="T", outcome="Y")
    with pytest.raises(ModelError, match=r"must be a pg\.Model"):
        pg.causal.confound(LINEAR, treatment="T", outcome="Y")


def test_programs_without_a_closed_form():
    def effect(program, **data):
        model = small(program, **data)
        return LinearEffect.of(model, tree_of(model, 1, spare=0.0), treatment="T", outcome="Y", progress=False)

    assert effect(LINEAR).draws.item() == 1
    with pytest.raises(MethodError, match="mean of 'Y' is not linear in 'T'"):
        effect(unit(lambda: dist.Normal(0, 1), lambda t: dist.Normal(t**2, 1)))
    with pytest.raises(MethodError, match="scale of 'Y' is not free of 'T'"):
        effect(unit(lambda: dist.Normal(0, 1), lambda t: dist.Normal(t, jnp.exp(t))))
    with pytest.raises(MethodError, match="'T' is Bernoulli"):
        effect(unit(lambda: dist.Bernoulli(0.5), lambda t: dist.Normal(t, 1)), t=np.array([0, 1, 1]))

    def mediated(t, y, m):
        with numpyro.plate("units", 3):
            t = numpyro.sample("T", dist.Normal(0, 1), obs=t)
            m = numpyro.sample("M", dist.Normal(t, 1), obs=m)
            numpyro.sample("Y", dist.Normal(t + m, 1), obs=y)

    with pytest.raises(MethodError, match="goes through the site 'M'"):
        effect(mediated, m=np.zeros(3))
    with pytest.raises(DataError, match="has no 'confounder_r2_T'"):
        ConfoundedEffect.of(tree_of(small(LINEAR), 5, tau=0.0), "tau")
    few = ConfoundedEffect(np.ones(30), np.ones(30), np.ones(30), np.ones(30))
    with pytest.raises(MethodError, match="30 draws are too few for 8 groups"):
        pg.causal.sensitivity(few)
    with pytest.raises(MethodError, match="multiples must be positive"):
        PosteriorBias(multiples=(0.0,))
    with pytest.raises(DataError, match="no covariates with which to compare age"):
        pg.causal.sensitivity(effect(LINEAR), PosteriorBias(), benchmarks="age")
