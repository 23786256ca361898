"""Learned distributions as priors of programs: the noise is the coordinate, and the posterior is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import probgen as pg
from probgen.generative import DDIM, Affine, Diffusion, Flow, Training, fit
from probgen.generative.point_distribution import PointDistribution
from probgen.program.density import Density
from probgen.testing import assert_draws, assert_mean

ROOT = np.array([[1.0, 0.0], [0.8, 0.5]])
MEAN = np.array([1.0, -1.0])


class Linear(PointDistribution):
    """A normal law by its map from noise alone: there is no density."""

    noise_space, noise_shape = True, (2,)

    def __init__(self):
        super().__init__((), (2,))

    def draw(self, key):
        return self.noise_map(jax.random.normal(key, (2,)))

    def noise_map(self, z):
        return MEAN + z @ ROOT.T


def observed(y=None):
    x = numpyro.sample("x", Linear())
    numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)


ONES = np.ones(2)
COVARIANCE = ROOT @ ROOT.T
GAIN = COVARIANCE @ ONES / (ONES @ COVARIANCE @ ONES + 0.25)
POSTERIOR = MEAN + GAIN * (2.0 - ONES @ MEAN), COVARIANCE - np.outer(GAIN, ONES @ COVARIANCE)
LOG_Z = float(dist.Normal(ONES @ MEAN, np.sqrt(ONES @ COVARIANCE @ ONES + 0.25)).log_prob(2.0))


@pytest.mark.parametrize("method", [pg.NUTS(), pg.SMC(particles=500)], ids=["nuts", "smc"])
def test_the_posterior_is_that_of_the_law_of_the_map(method):
    tree = pg.infer(pg.Model(observed, {"y": 2.0}), method, draws=1000, warmup=500, chains=4, seed=1)
    mean, covariance = POSTERIOR
    x = tree["posterior"]["x"].values
    second = covariance + np.outer(mean, mean)
    assert_draws(x, means=mean, sds=np.sqrt(np.diag(covariance)), detects=0.5)
    assert_draws(x[..., 0] * x[..., 1], means=second[0, 1], detects=0.5)
    if "log_evidence" in tree.attrs:
        assert abs(tree.attrs["log_evidence"] - LOG_Z) < 4 * tree.attrs["log_evidence_se"]


def test_it_simulates_predicts_and_explains_its_data():
    model = pg.Model(observed, {"y": 2.0})
    tree = pg.infer(model, pg.NUTS(), draws=50, warmup=200, chains=2, seed=0)
    prior = pg.simulate(model, draws=2000, seed=0)["prior"]["x"].values[0]
    assert_mean(prior, MEAN, detects=0.2)
    assert pg.predict(model, tree, seed=1)["posterior_predictive"]["y"].shape == (2, 50)
    told = pg.log_likelihood(model, tree)["log_likelihood"]["y"].values
    there = dist.Normal(tree["posterior"]["x"].values.sum(-1), 0.5).log_prob(2.0)
    np.testing.assert_allclose(told, there, rtol=1e-6)
    assert pg.check(tree, model) is not None  # the prior has no density to be scaled


@pytest.fixture(scope="module")
def flow():
    """Given a number, points about it."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=(500, 1))
    x = np.concatenate([c, c**2], 1) + 0.5 * rng.normal(size=(500, 2))
    return fit(Flow(scalar=Affine(), count=2, width=8, depth=1), x, c, training=Training(steps=20))


def programs(flow):
    def alone(y=None):
        x = numpyro.sample("x", flow.given(jnp.ones(1)))
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)

    def below(y=None):
        c = numpyro.sample("c", dist.Normal())
        x = numpyro.sample("x", flow.given(c[None]))
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)

    def rows(y=None):
        with numpyro.plate("row", 3):
            c = numpyro.sample("c", dist.LogNormal())
            x = numpyro.sample("x", flow.given(c[:, None]))
            numpyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=y)

    def same_rows(y=None):
        with numpyro.plate("row", 3):
            x = numpyro.sample("x", flow.given(jnp.ones(1)))
            numpyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=y)

    def chain(y=None):
        def step(c, y):
            x = numpyro.sample("x", flow.given(c[None]))
            numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)
            return x[0], None

        scan(step, jnp.zeros(()), y)

    def chains(y=None):
        def step(c, y):
            with numpyro.plate("row", 2):
                x = numpyro.sample("x", flow.given(c))
                numpyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=y)
            return x[0, :1], None

        scan(step, jnp.zeros(1), y)

    three = np.array([0.5, -1.0, 2.0])
    return {
        "alone": (alone, 0.5),
        "below": (below, 0.5),
        "rows": (rows, three),
        "same_rows": (same_rows, three),
        "chain": (chain, three),
        "chains": (chains, np.ones((3, 2))),
    }


@pytest.mark.parametrize("name", ["alone", "below", "rows", "same_rows", "chain", "chains"])
def test_densities_of_noise_and_of_values_differ_by_the_jacobian(flow, name):
    program, y = programs(flow)[name]
    model = pg.Model(program, {"y": y})
    noise, values = Density(model), Density(model, noise=False)
    assert noise.dim == values.dim

    @jax.jit
    def numbers(noise, values, z):
        def coordinates(z):
            return values.unconstrain(noise.constrain(z))

        log_det = jnp.linalg.slogdet(jax.jacfwd(coordinates)(z))[1]
        there = values.log_density(coordinates(z)) + log_det
        here, slope = jax.value_and_grad(noise.log_density)(z)
        return here, there, noise.unconstrain(noise.constrain(z)), slope

    z = jax.random.normal(jax.random.key(2), (noise.dim,))
    here, there, back, slope = numbers(noise, values, z)
    np.testing.assert_allclose(here, there, rtol=1e-4)
    np.testing.assert_allclose(back, z, atol=1e-4)
    assert np.isfinite(slope).all()
    assert (np.abs(slope) > 0).all()


def test_steps_of_a_scan_have_networks_of_their_own(flow):
    nets = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), flow.net)
    c, y = np.random.default_rng(0).normal(size=(2, 3, 1)), np.random.default_rng(1).normal(size=(2, 3, 2))

    def at(net, c):
        return flow.family.distribution(net, flow.spec).given(c)

    def program(y=None):
        def step(carry, here):
            net, c, y = here
            with numpyro.plate("row", 3):
                numpyro.sample("y", at(net, c), obs=y)
            with numpyro.plate("other", 3):
                numpyro.sample("z", at(net, jnp.ones(1)), obs=y)
            return carry, None

        scan(step, numpyro.sample("b", dist.Normal()), (nets, jnp.asarray(c), y))

    here = Density(pg.Model(program, {"y": y})).log_likelihood(jnp.zeros(1))
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], nets) for i in range(2)]
    there = sum((at(n, c[i]).log_prob(y[i]) + at(n, jnp.ones(1)).log_prob(y[i])).sum() for i, n in enumerate(each))
    np.testing.assert_allclose(here, there, rtol=1e-6)


def test_in_data_space_the_coordinates_are_the_values(flow):
    def program():
        numpyro.sample("x", flow.given(jnp.ones(1)).in_data_space())

    density = Density(pg.Model(program))
    u = jnp.array([0.3, 0.4])
    np.testing.assert_allclose(density.constrain(u)["x"], u)
    np.testing.assert_allclose(density.log_density(u), flow.given(jnp.ones(1)).log_prob(u), rtol=1e-6)


def test_a_sampler_that_draws_noise_is_no_map_from_noise():
    short = Training(steps=1, batch=8, validation=0.0)
    data = np.random.default_rng(0).normal(size=(8, 2))
    for sampler, moves in ((DDIM(), True), (DDIM(eta=1.0), False)):
        model = fit(Diffusion(width=4, depth=1, sampling_steps=2, sampler=sampler), data, training=short)
        assert model.noise_space is moves
    x = np.array([0.5, 1.0], np.float32)
    np.testing.assert_allclose(model.log_prob(x), model.log_prob(x.astype(float)), rtol=1e-6)


def test_prior_draws_have_the_law_of_the_distribution(flow):
    model = pg.Model(programs(flow)["chain"][0], {"y": np.zeros(3)})
    density = Density(model)
    u = jax.vmap(density.draw_prior)(jax.random.split(jax.random.key(0), 4000))
    assert_mean(u, np.zeros(6), detects=0.15)
    x = jax.vmap(density.constrain)(u)["x"]
    there = flow.given(x[:, 0, :1]).noise_of(x[:, 1])  # the noise of a step, given the one before
    np.testing.assert_allclose(there, u.reshape(-1, 3, 2)[:, 1], atol=1e-3)


@pytest.mark.parametrize("handler", [numpyro.handlers.scale(scale=2.0), numpyro.handlers.mask(mask=False)])
def test_a_weighed_prior_is_refused(handler):
    def program():
        with handler:
            numpyro.sample("x", Linear())

    with pytest.raises(pg.MethodError, match=r"'x' is changed by handlers.scale or a mask.*in_data_space"):
        pg.infer(pg.Model(program), pg.NUTS())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_flow_is_a_guide():
    """The law of the program is one that no normal guide has."""

    def program():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.5 * x**2, 0.5))

    def elbo(guide):
        attrs = pg.infer(pg.Model(program), pg.SVI(guide=guide, steps=2500), draws=500, seed=0).attrs
        return attrs["elbo"], attrs["elbo_se"]

    variance = (np.sqrt(17) - 1) / 8  # of x, under the best normal guide
    best = 0.5 * (1 + np.log(variance) - variance) - variance**2
    normal, error = elbo(pg.FullRank())
    assert abs(normal - best) < 4 * error
    flow, error = elbo(Flow(count=4, width=16, depth=1))
    assert 0.2 * best < flow < 4 * error  # the log evidence is 0
    with pytest.raises(pg.MethodError, match="a Consistency has no log_prob"):
        pg.infer(pg.Model(program), pg.SVI(guide=pg.generative.Consistency()))


@pytest.mark.slow
def test_a_sampler_in_the_noise_of_a_flow_has_the_posterior():
    def program():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x**2, 0.2))

    method = pg.NeuTra(fit=pg.SVI(learning_rate=0.005, steps=1500), sampler=pg.NUTS())
    tree = pg.infer(pg.Model(program), method, draws=1000, warmup=500, chains=4, seed=0)
    draws = tree["posterior"]
    assert_draws(draws["y"].values, means=1.0, detects=0.5)
    assert_draws(draws["x"].values ** 2, means=1.0, detects=0.5)
    assert tree.attrs["sampler"] == "nuts"
    assert "objective" in tree["optimization"]
