"""Variational autoencoders, where everything is known: linear ones (principal components), small discrete ones."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer import Trace_ELBO
from numpyro.infer.util import log_density

import probgen as pg
from probgen import generative
from probgen.base.errors import DataError, MethodError, ProbgenWarning
from probgen.feynman_kac.hamiltonian import HamiltonianMoves
from probgen.generative.latent_objective import mmd
from probgen.generative.latent_report import report_of
from probgen.generative.vae import VAE
from probgen.testing import assert_draws, assert_mean, assert_moments, assert_unbiased_evidence

LINEAR = {"encoder": generative.Amortised(depth=0), "depth": 0, "latent": 2}
DIM = 5


def data(count=400):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(DIM, 2)) * [2, 1]
    return rng.normal(size=(count, 2)) @ mixing.T + 0.5 * rng.normal(size=(count, DIM)) + 1


def principal_components(x, latent=2):
    """The maximum likelihood of Tipping and Bishop: mean, loadings with orthogonal columns, noise variance."""
    mean, variances, axes = x.mean(0), *np.linalg.eigh(np.cov(x.T, bias=True))
    noise = variances[:-latent].mean()
    return mean, axes[:, -latent:] * np.sqrt(variances[-latent:] - noise), noise


def exact(x, mean, loadings, noise):
    covariance = loadings @ loadings.T + noise * np.eye(len(mean))
    return np.asarray(jax.scipy.stats.multivariate_normal.logpdf(x, mean, covariance))


def linear_net(x, loadings, noise, family):
    """The net of a linear model in those units, with the exact posterior for its guide."""
    spec = generative.Spec(x.shape[1:])
    net = family.adapt(jax.random.key(0), family.build(jax.random.key(0), spec), jnp.asarray(x), None)
    scale = x.std(0)
    variance = noise / (np.sum(loadings**2, 0) + noise)
    layer = net.decoder.layers[0]
    log_scale = 0.5 * np.log(variance)
    net = eqx.tree_at(
        lambda n: (n.decoder.layers[0].weight, n.decoder.layers[0].bias, n.noise),
        net,
        (loadings / scale[:, None], jnp.zeros(layer.bias.shape), jnp.asarray(0.5 * np.log(noise))),
    )
    if isinstance(family.encoder, generative.GradientOrigin):
        return eqx.tree_at(lambda n: (n.encoder.log_step, n.encoder.log_scale), net, (2 * log_scale, log_scale))
    weight = np.concatenate([(variance / noise)[:, None] * loadings.T * scale, np.zeros((2, DIM))])
    bias = np.concatenate([np.zeros(2), log_scale])
    first = net.encoder.nets[0].layers[0]
    return eqx.tree_at(
        lambda n: (n.encoder.nets[0].layers[0].weight, n.encoder.nets[0].layers[0].bias),
        net,
        (jnp.asarray(weight), jnp.asarray(bias).reshape(first.bias.shape)),
    )


bound = eqx.filter_jit(lambda model, key, x, draws: model.bound(key, x, draws))
estimate = eqx.filter_jit(lambda model, key, x, draws: model.estimate(key, x, draws))
estimate_annealed = eqx.filter_jit(
    lambda model, key, x, draws: model.estimate(key, x, draws, moves=HamiltonianMoves(temperatures=2))
)


@pytest.fixture(scope="module")
def optimum():
    x = data()
    _, loadings, noise = principal_components(x)
    family = VAE(**LINEAR)
    return x, family.distribution(linear_net(x, loadings, noise, family), generative.Spec((DIM,)))


def off(model, by=0.4):
    """The model with a guide that is not the posterior: means off by so many standard deviations, and these in logs."""
    bias = model.net.encoder.nets[0].layers[0].bias
    wrong = by * jnp.concatenate([jnp.exp(bias[2:]), jnp.ones(2)])
    net = eqx.tree_at(lambda n: n.encoder.nets[0].layers[0].bias, model.net, bias + wrong)
    return model.family.distribution(net, model.spec)


# -- the optimum is known ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [generative.Amortised(depth=0), generative.GradientOrigin()], ids=["net", "origin"])
def test_at_the_principal_components_the_bound_is_the_log_density_for_every_draw(encoder):
    x = data()
    mean, loadings, noise = principal_components(x)
    family = VAE(encoder=encoder, depth=0, latent=2)
    model = family.distribution(linear_net(x, loadings, noise, family), generative.Spec((DIM,)))
    np.testing.assert_allclose(bound(model, jax.random.key(1), x, 3), exact(x, mean, loadings, noise), atol=1e-6)
    found = estimate(model, jax.random.key(1), x, 10)
    np.testing.assert_allclose(found.log_p, exact(x, mean, loadings, noise), atol=1e-6)
    np.testing.assert_allclose(found.error, 0, atol=1e-6)
    np.testing.assert_allclose(found.ess, 10, rtol=1e-6)


@pytest.fixture(scope="module")
def fitted():
    x = data()
    training = generative.Training(
        steps=1500, batch=100, learning_rate=2e-2, validation=0.0, weight_decay=0.0, ema=0.99, block=500
    )
    return x, generative.fit(VAE(**LINEAR), x, training=training, seed=0)


def test_training_finds_the_maximum_likelihood(fitted):
    x, model = fitted
    best = exact(x, *principal_components(x)).mean()
    net = model.net
    scale = x.std(0)
    found = exact(
        x,
        np.asarray(x.mean(0) + scale * net.decoder.layers[0].bias),
        scale[:, None] * np.asarray(net.decoder.layers[0].weight),
        float(jnp.exp(2 * net.noise)),
    )
    assert best - 0.02 < found.mean() <= best + 1e-6
    got = estimate(model, jax.random.key(3), x[:50], 200)
    assert np.all(np.abs(got.log_p - found[:50]) < 6 * got.error + 1e-5)


# -- bounds and objectives ---------------------------------------------------------------------------------------------


def test_more_draws_tighten_the_bound_and_weights_are_unbiased(optimum):
    x, model = optimum
    model, one = off(model), jnp.asarray(x[0])
    truth = exact(x[:1], *principal_components(x))[0]
    repeated = jnp.broadcast_to(one, (6400, DIM))
    bounds = {k: bound(model, jax.random.key(1), repeated, k) for k in (1, 4, 16)}
    gap = np.exp(0.8) - 1 - 0.8 + 0.4**2  # divergence of the guide from the posterior, over two units
    assert_mean(bounds[1].reshape(100, -1).mean(1), truth - gap, detects=0.25)
    for small, large in ((1, 4), (4, 16)):
        gain = np.asarray(bounds[large] - bounds[small])
        assert gain.mean() > 8 * gain.std() / np.sqrt(len(gain))
    assert_unbiased_evidence(bounds[16], truth, detects=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("from_prior", [False, True], ids=["guide", "prior"])
def test_annealed_weights_are_unbiased_and_better_than_those_of_their_start(optimum, from_prior):
    """Few and rough moves, so that wrong powers or acceptances show in the mean."""
    x, model = optimum
    model, one = off(model, 0.8), jnp.asarray(x[0])
    truth = exact(x[:1], *principal_components(x))[0]
    moves = HamiltonianMoves(temperatures=3, leapfrog=2, step_size=0.9)
    repeated = jnp.broadcast_to(one, (1000, DIM))
    found, plain = (
        jax.jit(lambda x, m=m: model.estimate(jax.random.key(0), x, 40, moves=m, from_prior=from_prior))(repeated)
        for m in (moves, None)
    )
    assert_unbiased_evidence(found.log_p, truth, detects=0.12)
    assert found.ess.mean() > 1.5 * plain.ess.mean()
    z = (np.exp(found.log_p - truth) - 1) / found.error  # the reported standard errors are those of the weights
    assert 0.7 < np.std(z) < 1.5


def test_annealing_from_the_posterior_changes_no_weight(optimum):
    x, model = optimum
    found = estimate_annealed(model, jax.random.key(0), x[:5], 4)
    np.testing.assert_allclose(found.log_p, exact(x[:5], *principal_components(x)), atol=1e-6)
    np.testing.assert_allclose(found.ess, 4, rtol=1e-6)


def gradients(objective, model, x, count, key=0):
    """Independent gradients, flat, shape (count, parameters)."""

    def one(key):
        found = jax.grad(lambda net: objective.loss(key, net, x, None))(model.net)
        parts = (found.encoder.nets[0].layers[0], found.decoder.layers[0], found.noise)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(parts)])

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(key), count))


def test_doubly_reparameterised_gradients_have_the_same_mean_and_less_noise(optimum):
    x, model = optimum
    model, x = off(model), jnp.asarray(x[:8])
    plain = gradients(generative.IWAE(draws=8, doubly=False), model, x, 4000)
    double = gradients(generative.IWAE(draws=8), model, x, 4000)
    assert_mean((plain - double).reshape(50, 80, -1).mean(1), 0.0, detects=0.5)
    guide = slice(0, 2 * 2 * DIM + 4)
    snr = [float(jnp.mean(jnp.abs(g[:, guide].mean(0)) / g[:, guide].std(0))) for g in (plain, double)]
    assert snr[1] > 1.5 * snr[0]
    reported = model.signal_to_noise(jax.random.key(1), x, generative.IWAE(draws=8), replicates=4000)
    assert reported == pytest.approx(snr[1], rel=0.1)  # the same number from other gradients; its error is near 2 %
    value = generative.IWAE(draws=8).loss(jax.random.key(5), model.net, x, None)
    assert value == pytest.approx(generative.IWAE(draws=8, doubly=False).loss(jax.random.key(5), model.net, x, None))


def test_gradients_of_minibatches_are_unbiased(optimum):
    x, model = optimum
    model, x = off(model), jnp.asarray(x[:40])

    def full(net):
        """The bound of all data, in closed form."""

        def one(x):
            loc, log_scale = net.guide_at(0, jnp.zeros(0), x, None)
            law = net.law(loc, None)
            spread = net.units.scale.value[:, None] * net.decoder.layers[0].weight * jnp.exp(log_scale)
            likelihood = law.log_prob(x) - 0.5 * jnp.sum(spread**2) * jnp.exp(-2 * net.noise)
            return likelihood - jnp.sum(net.divergences(loc, x, None))

        return -jnp.mean(jax.vmap(one)(x))

    found = jax.grad(full)(model.net)
    parts = (found.encoder.nets[0].layers[0], found.decoder.layers[0], found.noise)
    truth = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(parts)])

    def one(key):
        key_rows, key_loss = jax.random.split(key)
        rows = jax.random.choice(key_rows, 40, (10,), replace=False)
        return gradients_of(model, x[rows], key_loss)

    def gradients_of(model, x, key):
        got = jax.grad(lambda net: generative.ELBO().loss(key, net, x, None))(model.net)
        parts = (got.encoder.nets[0].layers[0], got.decoder.layers[0], got.noise)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(parts)])

    replicates = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    assert_mean(replicates.reshape(50, 80, -1).mean(1), truth, detects=1.0)


def test_information_objective_contains_the_bound(optimum):
    x, model = optimum
    x, key = jnp.asarray(x[:30]), jax.random.key(0)
    here = generative.InfoVAE(alpha=0.0, scale=1.0).loss(key, model.net, x, None)
    assert here == pytest.approx(float(generative.ELBO().loss(key, model.net, x, None)))
    other = generative.InfoVAE(alpha=0.5, scale=3.0).loss(key, model.net, x, None)
    z = jax.vmap(lambda key, x: model.net.infer(key, x, None))(jax.random.split(key, (1, 30))[0], x)
    divergence = jnp.mean(jax.vmap(lambda z, x: jnp.sum(model.net.divergences(z, x, None)))(z, x))
    assert other == pytest.approx(float(here - 0.5 * divergence + 2.5 * mmd(z)))


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.3)])
def test_discrepancy_is_unbiased(mean, variance):
    dim, h2 = 3, 3.0
    z = mean + np.sqrt(variance) * jax.random.normal(jax.random.key(0), (400, 50, dim))
    own = (1 + 2 * variance / h2) ** (-dim / 2)
    cross = (1 + 1 / h2) ** (-dim / 2) * ((1 + h2) / (1 + h2 + variance)) ** (dim / 2)
    cross *= np.exp(-dim * mean**2 / (2 * (1 + h2 + variance)))
    truth = own - 2 * cross + (1 + 2 / h2) ** (-dim / 2)
    assert_mean(jax.vmap(mmd)(z).reshape(50, 8).mean(1), truth, detects=0.015)
    assert truth == pytest.approx(0, abs=1e-12) or truth > 0.015


def test_forward_chi2_gradient_is_that_of_the_log_second_moment_of_the_weights(optimum):
    x, model = optimum
    model, one = off(model, 0.3), jnp.asarray(x[:1])
    bias = model.net.encoder.nets[0].layers[0].bias[2:] - 0.3
    shift = 0.3 * jnp.exp(bias)
    truth_p = exact(x[:1], *principal_components(x))[0]

    def second_moment(net):
        """log E_q w^2 = log int p^2 / q of two normals, in closed form, for a linear model; the joint is held."""
        loc, log_scale = net.guide_at(0, jnp.zeros(0), one[0], None)
        true_loc, true_log_scale = jax.lax.stop_gradient((loc - shift, log_scale - 0.3))
        precision = 2 * jnp.exp(-2 * true_log_scale) - jnp.exp(-2 * log_scale)
        pull = 2 * true_loc * jnp.exp(-2 * true_log_scale) - loc * jnp.exp(-2 * log_scale)
        terms = -2 * true_log_scale + log_scale - 0.5 * jnp.log(precision)
        terms += 0.5 * pull**2 / precision
        terms += 0.5 * loc**2 * jnp.exp(-2 * log_scale) - true_loc**2 * jnp.exp(-2 * true_log_scale)
        return 2 * truth_p + jnp.sum(terms)

    truth = jax.grad(second_moment)(model.net).encoder.nets[0].layers[0]
    found = jax.jit(jax.vmap(lambda key: guide_part(model, one, key)))(jax.random.split(jax.random.key(0), 200))
    expected = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(truth)])
    assert_mean(found.reshape(25, 8, -1).mean(1), expected, detects=0.2, tolerance=0.02)


def guide_part(model, x, key):
    got = jax.grad(lambda net: generative.ForwardChi2(draws=2000).loss(key, net, x, None))(model.net)
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(got.encoder.nets[0].layers[0])])


# -- draws, conditions, levels, other data -----------------------------------------------------------------------------


def test_draws_follow_the_linear_model_and_are_a_map_of_noise(optimum):
    x, model = optimum
    mean, loadings, noise = principal_components(x)
    covariance = loadings @ loadings.T + noise * np.eye(DIM)
    assert_moments(model.sample(jax.random.key(0), (4000,)), mean, covariance, detects=0.3)
    z = np.random.default_rng(0).normal(size=(3, 2 + DIM))
    assert model.noise_shape == (2 + DIM,)
    np.testing.assert_allclose(
        model.noise_map(z), mean + z[:, :2] @ loadings.T + np.sqrt(noise) * z[:, 2:], rtol=1e-5, atol=1e-5
    )


FAMILIES = {
    "real": (VAE(latent=2, width=8, depth=1), None),
    "levels": (
        VAE(
            generative.BernoulliLikelihood(),
            latent=(1, 1),
            objective=generative.IWAE(2),
            encoder=generative.Amortised(8, 1),
            width=8,
            depth=1,
        ),
        2,
    ),
    "categories": (
        VAE(generative.CategoricalLikelihood(), latent=2, prior=generative.Relevance(), width=8, depth=1),
        3,
    ),
    "origin": (
        VAE(generative.GaussianLikelihood(shared=False), latent=2, encoder=generative.GradientOrigin(), width=8),
        None,
    ),
}


NAMES = [n if n == "real" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


@pytest.fixture(scope="module")
def untrained():
    """Small models with conditions, that were never trained: identities hold all the same."""

    @functools.cache
    def make(name, condition=(2,)):
        family, values = FAMILIES[name]
        spec = generative.Spec((3,), condition, values or 0)
        net = eqx.filter_jit(family.build)(jax.random.key(1), spec)
        keys = iter(jax.random.split(jax.random.key(2), 100))
        shaken = jax.tree.map(
            lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape, a.dtype),
            eqx.filter(net, generative_weights(net)),
        )
        net = eqx.combine(shaken, net)
        x = jax.random.normal(jax.random.key(3), (4, 3))
        return family.distribution(net, spec), (
            x if values is None else jnp.asarray(np.arange(12).reshape(4, 3) % values)
        )

    return make


def generative_weights(net):
    from probgen.nets import trainable

    return trainable(net)


@pytest.mark.parametrize("name", NAMES)
def test_conditions_batch_and_can_be_differentiated(untrained, name):
    model, x = untrained(name)
    c = jax.random.normal(jax.random.key(4), (4, 2))
    given = model.given(c)
    assert given.batch_shape == (4,)
    drawn = eqx.filter_jit(lambda model: model.sample(jax.random.key(0), (5,)))(given)
    assert drawn.shape == (5, 4, 3)
    assert bool(jnp.all(given.support(drawn)))
    key = jax.random.key(1)
    one = jax.jit(lambda key, x, c: jax.value_and_grad(lambda c: model.given(c).bound_at(key, x, 3))(c))
    found = [one(k, x, c) for k, x, c in zip(jax.random.split(key, (4,)), x, c, strict=True)]
    np.testing.assert_allclose(bound(given, key, x, 3), [value for value, _ in found], rtol=1e-4)
    h, first = 1e-2, jax.random.split(key, (4,))[0]
    ahead, behind = (np.stack([one(first, x[0], c[0] + s * h * e)[0] for e in jnp.eye(2)]) for s in (1, -1))
    np.testing.assert_allclose(found[0][1], (ahead - behind) / (2 * h), rtol=0.02, atol=2e-3)
    assert jax.eval_shape(given.encode, x).shape == jax.eval_shape(given.infer, key, x).shape == (4, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["levels", "categories"])
def test_weights_of_discrete_models_are_unbiased(untrained, name):
    model, _ = untrained(name, None)
    values = model.spec.values
    points = jnp.asarray(np.stack(np.meshgrid(*[np.arange(values)] * 3, indexing="ij"), -1).reshape(-1, 3))
    grid = jnp.linspace(-8, 8, 161)
    z = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    log_prior = jax.jit(jax.vmap(lambda z: model.net.log_prior(z, None)))(z)
    joint = jax.jit(
        jax.vmap(
            lambda x: jax.scipy.special.logsumexp(
                log_prior + jax.vmap(lambda z: model.net.log_likelihood(z, x, None))(z)
            )
        )
    )(points[:5])
    truth = joint + 2 * jnp.log(grid[1] - grid[0])
    found = estimate(model, jax.random.key(0), jnp.broadcast_to(points[:5], (100, 5, 3)), 50).log_p
    assert_unbiased_evidence(found, truth, detects=0.3)


def test_divergences_are_those_of_numpyro(untrained):
    model, x = untrained("levels", None)
    net, z = model.net, jnp.asarray([0.3, -0.7])
    found = net.divergences(z, x[0], None)
    for i, above in enumerate((z[:0], z[:1])):
        q, p = (
            numpyro.distributions.Normal(m, jnp.exp(s))
            for m, s in (net.guide_at(i, above, x[0], None), net.prior_at(i, above, None))
        )
        assert found[i] == pytest.approx(float(numpyro.distributions.kl_divergence(q, p)[0]), rel=1e-5)


# -- as programs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_programs_are_the_same_model_and_guide(untrained, name):
    model, x = untrained(name)
    c = jax.random.normal(jax.random.key(4), (4, 2))
    z = model.given(c).infer(jax.random.key(0), x)
    values = {site: z[:, where] for site, where in zip(model.sites, model.net.levels, strict=True)}
    net = model.net

    @jax.jit
    def both(values):
        joint = jax.vmap(lambda z, x, c: net.log_prior(z, c) + net.log_likelihood(z, x, c))(z, x, c)
        ours = jnp.sum(joint), jnp.sum(jax.vmap(net.log_q)(z, x, c))
        return [log_density(program, (x, c), {}, values)[0] for program in (model.model, model.guide)], ours

    theirs, ours = both(values)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    drawn = numpyro.handlers.seed(model.model, 0)(condition=c)
    assert drawn.shape == (4, 3)


def test_numpyro_runs_the_programs(optimum):
    x, model = optimum
    numpyros = Trace_ELBO(num_particles=2)
    loss = jax.jit(lambda x: numpyros.loss(jax.random.key(0), {}, model.model, model.guide, x))(jnp.asarray(x))
    assert -loss == pytest.approx(float(exact(x, *principal_components(x)).sum()), rel=1e-6)


@pytest.mark.slow
def test_the_guide_serves_variational_inference_and_its_weights_are_exact(optimum):
    x, model = optimum
    program = pg.Model(model.model, data={"x": x[:3]})
    found = pg.infer(program, pg.SVI(guide=model.guide), draws=100, chains=1, seed=0, progress=False)
    truth = exact(x[:3], *principal_components(x)).sum()
    assert found.attrs["elbo"] == pytest.approx(truth, rel=1e-6)
    assert found.attrs["log_evidence"] == pytest.approx(truth, rel=1e-6)


@pytest.mark.slow
def test_sampling_the_program_finds_the_posterior(optimum):
    x, model = optimum
    program = pg.Model(model.model, data={"x": x[:3]})
    tree = pg.infer(program, pg.NUTS(), draws=500, warmup=300, chains=4, seed=0, progress=False)
    loc, log_scale = jax.vmap(lambda x: model.net.guide_at(0, jnp.zeros(0), x, None))(jnp.asarray(x[:3]))
    assert_draws(tree["posterior"]["z"].values, means=loc, sds=jnp.exp(log_scale), detects=0.6)


@pytest.mark.slow
def test_weights_are_those_of_the_program_and_back(untrained):
    model, x = untrained("real")
    c = jax.random.normal(jax.random.key(4), (4, 2))
    given = model.given(c)
    with numpyro.handlers.trace() as sites:
        numpyro.handlers.seed(lambda: model.with_params("vae").given(c).model(x, c), 0)()
    assert list(sites) == ["vae", "data", "z", "x"]
    weights = sites["vae"]["value"]
    total = sum(a.size for a in jax.tree.leaves(eqx.filter(model.net, generative_weights(model.net))))
    assert weights.shape == (total,)
    key = jax.random.key(0)
    np.testing.assert_array_equal(given.with_weights(weights).bound(key, x), given.bound(key, x))
    assert float(jnp.abs(given.with_weights(0 * weights).bound(key, x) - given.bound(key, x)).max()) > 0.1
    with pytest.raises(DataError, match=rf"the weights have shape \(2,\), expected \({total},\)"):
        model.with_weights(jnp.zeros(2))


@pytest.mark.slow
def test_variational_inference_trains_weights_within_a_program():
    """Until the lower bound is the maximum likelihood of principal components."""
    x = data()
    family = VAE(**LINEAR)
    start = generative.fit(family, x, training=generative.Training(steps=1, block=1, validation=0.0))

    def program(x):
        start.with_params().model(x)

    def guide(x):
        start.with_params().guide(x)

    method = pg.SVI(guide=guide, learning_rate=0.02, tolerance=0.5)
    tree = pg.infer(pg.Model(program, {"x": x}), method, draws=50, chains=1, seed=0, progress=False)
    best = exact(x, *principal_components(x)).sum()
    assert best - 3 < tree.attrs["elbo"] < best + 4 * tree.attrs["elbo_se"] + 1e-3
    trained = start.with_weights(tree["params"]["weights"].values)
    bounds = bound(trained, jax.random.key(1), x, 1).sum()
    assert best - 5 < bounds < best + 3
    assert float(bound(start, jax.random.key(1), x, 1).sum()) < best - 100


# -- diagnosis ---------------------------------------------------------------------------------------------------------


def test_the_report_is_that_of_quadrature(optimum):
    x, _ = optimum
    family = VAE(latent=1, encoder=generative.Amortised(depth=0), depth=0)
    net = family.build(jax.random.key(0), generative.Spec((DIM,)))
    model, x = family.distribution(net, generative.Spec((DIM,))), jnp.asarray(x[:3])
    loc, log_scale = jax.vmap(lambda x: net.guide_at(0, jnp.zeros(0), x, None))(x)
    grid = jnp.linspace(-30, 30, 20001)
    q = jnp.exp(-0.5 * ((grid - loc) / jnp.exp(log_scale)) ** 2 - log_scale) / np.sqrt(2 * np.pi)
    mean = q.mean(0)
    p = jnp.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    step = grid[1] - grid[0]
    divergence = jax.vmap(lambda x: net.divergences(jnp.zeros(1), x, None))(x).mean()
    information = jnp.sum(jnp.where(q > 0, q * jnp.log(q / mean), 0.0), 1).mean() * step
    keys = jax.random.split(jax.random.key(0), 3200)
    reports = jax.jit(jax.vmap(lambda key: report_of(key, model, x)))(keys)
    blocks = jax.tree.map(lambda a: np.asarray(a, float).reshape(32, 100, *a.shape[1:]).mean(1), reports)
    assert_mean(blocks.mutual_information, information, detects=0.2)
    assert_mean(blocks.marginal_divergence, divergence - information, detects=0.6)
    np.testing.assert_allclose(blocks.divergence, divergence, rtol=1e-5)
    likelihood = (
        jnp.sum(q * jax.vmap(lambda x: jax.vmap(lambda z: net.log_likelihood(z[None], x, None))(grid))(x), 1).mean()
        * step
    )
    assert_mean(blocks.bound, likelihood - divergence, detects=0.6)
    assert np.all(reports.relevance == 1)
    assert np.all(reports.relevant == 1)
    assert float(step * jnp.sum(p)) == pytest.approx(1)


def test_relevance_and_activity_of_a_linear_model(optimum):
    x, model = optimum
    _, loadings, _ = principal_components(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = model.report(jax.random.key(0), x)
    assert report.active.tolist() == [True, True]
    power = np.sum((loadings / x.std(0)[:, None]) ** 2, 0)
    np.testing.assert_allclose(report.relevance, power / power.sum(), atol=0.05)
    assert report.relevant == 2
    dead = eqx.tree_at(
        lambda n: n.encoder.nets[0].layers[0].weight, model.net, model.net.encoder.nets[0].layers[0].weight.at[0].set(0)
    )
    report = model.family.distribution(dead, model.spec).report(jax.random.key(0), x)
    assert report.active.tolist() == [False, True]


@pytest.mark.slow
def test_a_noise_that_explains_everything_makes_the_guide_collapse_and_the_objective_can_prevent_it():
    """With the noise fixed above the data's own spread, the bound is best without the latent variable; with the
    information unpenalised it is used, and its aggregate posterior is still the prior."""
    x = np.random.default_rng(0).normal(size=(256, 1))
    training = generative.Training(steps=400, batch=128, learning_rate=2e-2, validation=0.0, ema=0.98, block=400)
    common = {**LINEAR, "latent": 1, "likelihood": generative.GaussianLikelihood(scale=1.2)}
    collapsed = generative.fit(VAE(**common), x, training=training)
    with pytest.warns(ProbgenWarning, match="posterior collapse"):
        report = collapsed.report(jax.random.key(0), x)
    assert report.mutual_information < 0.02
    used = generative.fit(VAE(**common, objective=generative.InfoVAE(0.95, 10.0)), x, training=training)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = used.report(jax.random.key(0), x)
    assert report.mutual_information > 0.5
    assert abs(report.marginal_divergence) < 0.1


def test_learned_prior_variances_are_those_of_the_conjugate_update():
    """At given guides the bound and the log prior of the precisions have their maximum where the docstring says."""
    prior, count = generative.Relevance(shape=2.0, rate=3.0), 7
    family = VAE(prior=prior, latent=2, width=8, depth=1)
    net = family.build(jax.random.key(0), generative.Spec((3,)))
    x = jax.random.normal(jax.random.key(1), (count, 3))
    net = family.adapt(jax.random.key(0), net, x, None)
    loc, log_scale = jax.vmap(lambda x: net.guide_at(0, jnp.zeros(0), x, None))(x)
    second = jnp.sum(loc**2 + jnp.exp(2 * log_scale), 0)
    update = (3.0 + 0.5 * second) / (2.0 + count / 2)
    net = eqx.tree_at(lambda n: n.log_scale, net, 0.5 * jnp.log(update))
    gradient = jax.jit(jax.grad(lambda n: generative.ELBO().loss(jax.random.key(0), n, x, None)))(net)
    np.testing.assert_allclose(gradient.log_scale, 0, atol=1e-5)


# -- files and errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_saved_models_are_the_same(untrained, name, tmp_path):
    model, x = untrained(name)
    generative.save(model, tmp_path / "model")
    again = generative.load(tmp_path / "model")
    c = jnp.ones(2)
    key = jax.random.key(0)
    np.testing.assert_array_equal(bound(again.given(c), key, x, 2), bound(model.given(c), key, x, 2))
    assert again.family == model.family


@pytest.mark.slow
def test_discrete_data_are_fitted():
    x = np.random.default_rng(0).integers(0, 2, (64, 3))
    training = generative.Training(steps=4, batch=16, block=4, validation=0.0)
    family = VAE(generative.BernoulliLikelihood(), encoder=generative.Amortised(depth=0), depth=0)
    model = generative.fit(family, x, training=training, progress=False)
    assert np.isfinite(model.history["loss"]).all()
    assert model.sample(jax.random.key(0), (2,)).dtype.kind == "i"


def test_there_is_no_log_density(optimum):
    with pytest.raises(MethodError, match=r"a VAE has no log_prob\. It has: .*bound"):
        optimum[1].log_prob(np.zeros(DIM))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 0}, "latent=0, expected a positive int"),
        ({"latent": (2, 1), "encoder": generative.GradientOrigin()}, "for one level, got 2"),
        ({"objective": generative.IWAE(draws=0)}, "draws must be an int of at least 1, got 0"),
        ({"objective": generative.ForwardChi2(draws=1)}, "at least 2, got 1"),
        ({"objective": generative.InfoVAE(alpha=2.0)}, "alpha <= 1"),
        ({"objective": generative.InfoVAE(), "latent": (2, 1)}, r"standard normal prior, got latent=\(2, 1\)"),
        ({"objective": "iwae"}, "expected an object of class LatentObjective"),
        ({"prior": generative.Relevance(shape=0.0)}, "expected positive numbers"),
        ({"likelihood": generative.GaussianLikelihood(scale=-1.0)}, "scale=-1.0, expected a positive number"),
        ({"encoder": generative.Amortised(width=0)}, "width=0"),
        ({"depth": -1}, "depth=-1"),
    ],
)
def test_settings_that_make_no_sense_are_errors(settings, message):
    with pytest.raises(MethodError, match=message):
        generative.fit(VAE(**settings), np.zeros((10, 2)))


def test_other_errors(optimum):
    _, model = optimum
    with pytest.raises(DataError, match="the data have 4 values"):
        generative.fit(VAE(generative.BernoulliLikelihood()), np.arange(4)[:, None])
    with pytest.raises(DataError, match=r"report got data of shape \(5,\), expected \(n, 5\)"):
        model.report(jax.random.key(0), np.zeros(DIM))
    with pytest.raises(MethodError, match="draws=1, expected at least 2"):
        model.estimate(jax.random.key(0), np.zeros(DIM), 1)
