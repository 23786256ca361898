"""Models with codes, adversarial and idempotent networks, and the divergence that a critic sees: identities and closed
forms, by enumeration where codes are symbols."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import multivariate_normal

import probgen as pg
from probgen.generative.autoencoder import Autoencoder
from probgen.generative.code_law import GaussianCode, SymbolCode
from probgen.generative.code_prior import CodePrior
from probgen.generative.coded_diffusion import CodedDiffusion
from probgen.generative.diffuse_vae import DiffuseVAE
from probgen.generative.diffusion import Diffusion
from probgen.generative.family import Now, Spec, Training
from probgen.generative.gan import GAN, critic_loss
from probgen.generative.idempotent_network import IdempotentNetwork
from probgen.generative.latent_model import LatentModel
from probgen.generative.multimodal_diffusion import MultimodalDiffusion
from probgen.generative.nested_diffusion import NestedDiffusion
from probgen.generative.neural_divergence import neural_divergence
from probgen.generative.principal_components import PrincipalComponents
from probgen.generative.quantised_autoencoder import QuantisedAutoencoder
from probgen.testing import assert_mean, assert_moments

fit = pg.generative.fit
QUICK = Training(steps=2, batch=16, validation=0.0, block=2)
SMALL = Diffusion(width=8, depth=1, sampling_steps=2)
NOW = Now(jnp.asarray(0.0), None)


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).normal(size=(64, 4)) @ np.diag([2.0, 1.0, 0.5, 0.25])


@pytest.fixture(scope="module")
def stages(data):
    """Small stages, hardly trained: what is tested is how they are put together."""
    return {
        "vae": fit(Autoencoder(width=8), data, training=QUICK),
        "plain": fit(Autoencoder(width=8, variance=0.0), data, training=QUICK),
        "components": fit(PrincipalComponents(2), data),
        "first": fit(PrincipalComponents(1), data),
        "left": fit(PrincipalComponents(1), data[:, :2]),
        "right": fit(PrincipalComponents(2), data[:, 2:]),
        "quantised": fit(QuantisedAutoencoder(values=4, stack=2, slots=2, width=8), data, training=QUICK),
    }


# -- encoders --------------------------------------------------------------------------------------------------------


def test_principal_components_leave_the_smaller_eigenvalues(data, stages):
    model = stages["components"]
    codes = np.asarray(model.encode(data))
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(codes, rowvar=False), np.eye(2), atol=1e-4)
    error = np.sum((model.decode(codes) - data) ** 2) / (len(data) - 1)
    assert error == pytest.approx(np.sort(np.linalg.eigvalsh(np.cov(data, rowvar=False)))[:2].sum(), rel=1e-4)


def test_the_bound_of_a_linear_autoencoder_is_tight_at_its_posterior():
    """With orthogonal loadings W the posterior is diagonal and linear in x: the encoder can be it, and then the bound is
    the log density N(x; 0, W W' + v I) on average."""
    v, loadings = 0.3, np.array([[1.0, 0.0], [0.0, 0.7], [1.0, 0.0]])
    family = Autoencoder(size=2, variance=v, depth=0)
    net = family.build(jax.random.key(0), Spec((3,)))
    precision = 1 + np.sum(loadings**2, 0) / v
    encoder = np.concatenate([(loadings / v / precision).T, np.zeros((2, 3))])
    bias = np.concatenate([np.zeros(2), -np.log(precision)])

    def parts(n):
        into, out = n.encoder.layers[0], n.decoder.layers[0]
        return into.weight, into.bias, out.weight, out.bias

    net = eqx.tree_at(parts, net, tuple(jnp.asarray(a) for a in (encoder, bias, loadings, np.zeros(3))))
    scale = np.array([2.0, 1.0, 0.5])
    net = eqx.tree_at(lambda n: n.units.scale.value, net, jnp.asarray(scale))
    model = family.distribution(net, Spec((3,)))
    x = jnp.array([1.0, -0.4, 0.3])
    covariance = np.diag(scale) @ (loadings @ loadings.T + v * np.eye(3)) @ np.diag(scale)
    bounds = jax.vmap(lambda k: model.bound(k, x))(jax.random.split(jax.random.key(1), 20_000))
    exact = multivariate_normal.logpdf(x, jnp.zeros(3), covariance)
    assert_mean(bounds.reshape(40, -1).mean(1), exact, detects=0.15)

    draws = model.sample(jax.random.key(2), (100, 400))
    assert_moments(draws.mean(1) * 20, np.zeros(3), covariance, detects=2.0)


def test_residual_quantisation_is_greedy_and_adds_up(stages, data):
    family = QuantisedAutoencoder(values=5, stack=3, slots=2, size=2)
    rng = np.random.default_rng(1)
    book, z = rng.normal(size=(5, 2)), rng.normal(size=(2, 2))
    symbols, entries = family.quantised(jnp.asarray(book), jnp.asarray(z))
    for slot in range(2):
        rest = z[slot]
        for d in range(3):
            best = np.argmin(np.linalg.norm(rest - book, axis=1))
            assert symbols[slot, d] == best
            np.testing.assert_allclose(entries[d, slot], book[best])
            rest = rest - book[best]

    model = stages["quantised"]
    codes = model.encode(data)
    assert codes.dtype == jnp.int32
    assert codes.shape == (64, 4)
    np.testing.assert_array_equal(jax.vmap(lambda c: model.decode_part(c, 2))(codes), model.decode(codes))


@pytest.mark.slow
def test_more_symbols_of_the_same_book_distort_less():
    x = np.random.default_rng(0).normal(size=(2048, 2))
    training = Training(
        steps=1000, batch=128, learning_rate=2e-3, weight_decay=0.0, validation=0.0, ema=0.99, block=1000
    )
    errors = []
    for stack in (1, 2, 4):
        model = fit(QuantisedAutoencoder(values=8, stack=stack, width=32), x, training=training)
        errors.append(float(np.mean((model.decode(model.encode(x)) - x) ** 2)))
    # Three bits for two numbers cannot leave less than 1/8 of the variance, six not less than 1/64 (rate-distortion).
    assert 1 / 8 < errors[0] < 0.25
    assert 1 / 64 < errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.6 * errors[1]


# -- codes of symbols ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    """Rows of two symbols whose law is a table, and a model of them."""
    table = np.array([[0.3, 0.05, 0.05], [0.05, 0.25, 0.02], [0.03, 0.05, 0.2]])
    flat = np.random.default_rng(0).choice(9, size=20_000, p=table.ravel())
    x = np.stack([flat // 3, flat % 3], 1)
    training = Training(steps=400, batch=512, learning_rate=5e-3, validation=0.0, ema=0.98, block=400)
    return table, fit(CodePrior(width=16, depth=1), x, training=training)


def test_the_probabilities_of_all_rows_sum_to_one_and_are_those_of_the_data(rows):
    table, model = rows
    p = np.exp(model.log_prob(jnp.asarray(list(itertools.product(range(3), repeat=2))))).reshape(3, 3)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    # 20 000 rows and stochastic descent: a total variation of 0.01.
    assert 0.5 * np.abs(p - table).sum() < 0.03


def test_rows_are_drawn_with_their_probabilities(rows):
    model = rows[1]
    draws = np.asarray(model.sample(jax.random.key(0), (40, 1500)))
    hits = (draws[..., 0] == 1) & (draws[..., 1] == 1)
    assert_mean(hits.mean(1), float(np.exp(model.log_prob(jnp.array([1, 1])))), detects=0.02)
    joint = (draws[..., 0] == 0) & (draws[..., 1] == 2)
    assert_mean(joint.mean(1), float(np.exp(model.log_prob(jnp.array([0, 2])))), detects=0.02)


def test_a_later_symbol_says_nothing_of_an_earlier_one(rows):
    """The first factor does not see the second symbol: the sum over it is the first factor for any net."""
    net = CodePrior(width=8, depth=1).build(jax.random.key(3), Spec((2,), values=3))
    net = jax.tree.map(lambda w: w + 0.3 * jax.random.normal(jax.random.key(4), w.shape), net)
    model = CodePrior(width=8, depth=1).distribution(net, Spec((2,), values=3))
    p = np.exp(model.log_prob(jnp.asarray(list(itertools.product(range(3), repeat=2)))))
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert p.std() > 0.01


# -- putting stages together -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_latent_model_decodes_draws_of_its_prior(data, stages):
    model = fit(LatentModel(stages["components"], SMALL), data, training=QUICK)
    z = jax.random.normal(jax.random.key(0), (3, *model.noise_shape))
    np.testing.assert_allclose(model.noise_map(z), stages["components"].decode(model.prior.noise_map(z)), rtol=1e-10)
    np.testing.assert_array_equal(model.encode(data), stages["components"].encode(data))

    symbols = fit(LatentModel(stages["quantised"], CodePrior(width=8, depth=1)), data, training=QUICK)
    rows = jnp.asarray(list(itertools.product(range(4), repeat=4)))
    assert float(jnp.exp(symbols.prior.log_prob(rows)).sum()) == pytest.approx(1.0, abs=1e-9)
    decoded = np.asarray(symbols.decode(rows))
    for draw in symbols.sample(jax.random.key(1), (5,)):
        assert np.min(np.abs(decoded - draw).max(1)) < 1e-9
    with pytest.raises(pg.MethodError, match="has no noise_map"):
        symbols.noise_map(z)


@pytest.mark.slow
def test_conditions_of_a_latent_model_are_those_of_its_prior(data, stages):
    model = fit(LatentModel(stages["components"], SMALL), data, data[:, :1], training=QUICK)
    z = jax.random.normal(jax.random.key(0), (3, *model.noise_shape))
    c = jnp.ones((3, 1))
    assert model.given(c).sample(jax.random.key(0), (5,)).shape == (5, 3, 4)
    slope = jax.grad(lambda c: jnp.sum(model.given(c).noise_map(z) ** 2))(c)
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: LatentModel(s["quantised"], SMALL), "the codes are symbols"),
        (lambda s: LatentModel(s["vae"], CodePrior()), "the codes are real numbers"),
        (lambda s: LatentModel(3, SMALL), "expected a fitted model with codes"),
        (lambda s: LatentModel(s["left"], SMALL), "Fit both to the same data"),
        (lambda s: DiffuseVAE(s["plain"], SMALL), "variance > 0"),
        (lambda s: MultimodalDiffusion((s["left"],)), "fewer than two"),
        (lambda s: MultimodalDiffusion((s["left"], s["left"], s["right"])), "side by side"),
        (lambda s: MultimodalDiffusion((s["left"], s["quantised"])), "codes of symbols"),
        (lambda s: NestedDiffusion(()), "no encoders"),
        (lambda s: NestedDiffusion((s["left"],)), "takes data of shape"),
        (lambda s: NestedDiffusion((s["first"],), noise=0.0), "noise"),
        (lambda s: CodedDiffusion(SymbolCode(values=1)), "values"),
        (lambda s: CodedDiffusion(GaussianCode(size=0)), "size"),
        (lambda s: CodedDiffusion(3), "expected GaussianCode"),
        (lambda s: PrincipalComponents(9), "size=9"),
        (lambda s: QuantisedAutoencoder(stack=0), "stack"),
        (lambda s: Autoencoder(variance=-1.0), "variance"),
        (lambda s: GAN(latent=0), "latent"),
        (lambda s: IdempotentNetwork(cap=0.0), "cap"),
    ],
)
def test_what_does_not_fit_is_refused(stages, data, make, message):
    with pytest.raises(pg.MethodError, match=message):
        fit(make(stages), data, training=QUICK)


def test_a_stage_says_what_it_does_not_have(stages):
    with pytest.raises(pg.MethodError, match="has no sample"):
        stages["plain"].sample(jax.random.key(0))
    with pytest.raises(pg.MethodError, match="takes no condition"):
        fit(Autoencoder(), np.ones((8, 2)), np.ones((8, 1)))


FAMILIES = {
    "Autoencoder": lambda s: Autoencoder(width=8),
    "QuantisedAutoencoder": lambda s: QuantisedAutoencoder(values=4, stack=2, width=8),
    "LatentModel": lambda s: LatentModel(s["vae"], SMALL),
    "LatentModel of symbols": lambda s: LatentModel(s["quantised"], CodePrior(width=8)),
    "DiffuseVAE": lambda s: DiffuseVAE(s["vae"], SMALL),
    "CodedDiffusion": lambda s: CodedDiffusion(GaussianCode(2), SMALL, width=8),
    "CodedDiffusion of symbols": lambda s: CodedDiffusion(SymbolCode(2, 3), SMALL, width=8),
    "MultimodalDiffusion": lambda s: MultimodalDiffusion((s["left"], s["right"]), width=8, depth=1, sampling_steps=2),
    "NestedDiffusion": lambda s: NestedDiffusion((s["first"], s["components"]), diffusion=SMALL),
    "IdempotentNetwork": lambda s: IdempotentNetwork(width=8),
    "GAN": lambda s: GAN(width=8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_files_keep_a_model_with_its_stages(name, stages, data, tmp_path):
    model = fit(FAMILIES[name](stages), data, training=QUICK)
    pg.generative.save(model, tmp_path / "model")
    again = pg.generative.load(tmp_path / "model")
    assert dict(again.offers) == dict(model.offers)
    if "sample" in model.offers:
        draws = jax.jit(lambda m, k: m.sample(k, (3,)))(model, jax.random.key(0))
        assert draws.shape == (3, 4)
        np.testing.assert_allclose(again.sample(jax.random.key(0), (3,)), draws, rtol=1e-6)
    if "noise_map" in model.offers:
        z = jax.random.normal(jax.random.key(1), (3, *model.noise_shape))
        np.testing.assert_array_equal(again.noise_map(z), model.noise_map(z))
    if hasattr(model, "encode"):
        codes = model.encode(data)
        np.testing.assert_array_equal(codes, again.encode(data))
        assert model.decode(codes, jax.random.key(0)).shape == data.shape


# -- codes inferred by a diffusion model -----------------------------------------------------------------------------


def test_relaxed_symbols_are_symbols_and_pass_gradients():
    law = SymbolCode(number=2, values=3, temperature=0.5)
    said = jax.random.normal(jax.random.key(0), (2000, 6))
    features, penalty = law.relaxed(jax.random.key(1), jnp.broadcast_to(said[0], said.shape))
    assert penalty == 0
    np.testing.assert_allclose(jnp.sort(features.reshape(-1, 3), -1), [[0, 0, 1]] * 4000, atol=1e-12)
    # Gumbel's trick: a symbol comes with the probability of its score.
    shares = jax.nn.softmax(said[0].reshape(2, 3))
    assert_mean(features.reshape(40, 50, 2, 3).mean(1), shares, detects=0.15)
    slope = jax.grad(lambda s: jnp.sum(law.relaxed(jax.random.key(1), s)[0][:, 0]))(said)
    assert np.any(slope != 0)
    code = law.decided(said[0])
    np.testing.assert_array_equal(law.features(code).reshape(2, 3).argmax(1), code)


def test_the_discrepancy_is_zero_on_average_for_codes_that_follow_the_prior():
    law = GaussianCode(size=2, divergence=0.0, discrepancy=1.0)

    def penalty(key, shift):
        key_mean, key_noise = jax.random.split(key)
        # Means N(0, 3/4) and variances 1/4: together N(0, 1).
        mean = jnp.sqrt(0.75) * jax.random.normal(key_mean, (200, 2)) + shift
        return law.relaxed(key_noise, jnp.concatenate([mean, jnp.full((200, 2), jnp.log(0.25))], 1))[1]

    keys = jax.random.split(jax.random.key(0), 100)
    away = jax.vmap(penalty, (0, None))(keys, 1.0).mean()
    assert_mean(jax.vmap(penalty, (0, None))(keys, 0.0), 0.0, detects=float(away) / 5)


# -- several modalities ----------------------------------------------------------------------------------------------


class ExactJoint(MultimodalDiffusion):
    """The posterior mean of Gaussian codes with unit variances and correlation 0.8, in closed form."""

    def mean(self, net, z, level, clean):
        covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
        levels = jnp.where(clean, 1e-6, level)
        return covariance @ jnp.linalg.solve(covariance + jnp.diag(levels**2), z)


@pytest.fixture(scope="module")
def joint():
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([1.0, -1.0], [[4.0, 0.8], [0.8, 0.25]], size=4000)
    sides = tuple(fit(PrincipalComponents(1), x[:, i : i + 1]) for i in (0, 1))
    family = ExactJoint(sides, width=4, depth=1, sampling_steps=24)
    return x, family, fit(family, x, training=QUICK)


def test_any_modality_is_drawn_given_any_other(joint):
    """With the exact denoiser, conditionals are those of the bivariate normal, and what is known stays as it is."""
    x, _, model = joint
    means, sds = x.mean(0), x.std(0)
    sign = np.sign(np.prod([float(e.net.axes.value[0, 0]) for e in model.family.encoders]))
    rho = 0.8 * sign
    for given, drawn in ((0, 1), (1, 0)):
        value = jnp.asarray(means + sds)
        known = tuple(i == given for i in (0, 1))
        draws = model.sample_given(jax.random.key(given), value, known, (30, 200))
        np.testing.assert_allclose(draws[..., given], value[given])
        expected = means[drawn] + rho * sds[drawn]
        assert_mean(draws[..., drawn].mean(1), expected, detects=0.1 * sds[drawn], tolerance=0.02 * sds[drawn])
        spread = (draws[..., drawn] - expected) ** 2 / sds[drawn] ** 2
        assert_mean(spread.mean(1), 0.36, detects=0.1, tolerance=0.02)


def test_the_loss_of_all_conditionals_is_least_at_the_exact_mean(joint):
    x, family, model = joint

    class Off(ExactJoint):
        def mean(self, net, z, level, clean):
            return 1.1 * super().mean(net, z, level, clean)

    x = jnp.asarray(x[:1000])
    off = Off(family.encoders, width=4, depth=1)
    sign = np.sign(np.prod([float(e.net.axes.value[0, 0]) for e in family.encoders]))
    x = x if sign > 0 else x * jnp.array([1.0, -1.0])
    at, beside = (f.loss(jax.random.key(0), model.net, x, None, NOW) for f in (family, off))
    assert at < beside


def test_known_modalities_must_be_told(joint):
    with pytest.raises(pg.DataError, match="True or False for every modality"):
        joint[2].sample_given(jax.random.key(0), jnp.zeros(2), (True,))


# -- a chain of levels -----------------------------------------------------------------------------------------------


class ExactLevel:
    """Levels of x = 2 a + b with a, b ~ N(0, 1) and the code z = a: the exact law of x given z + noise."""

    noise = 0.5

    def __init__(self, top, above=None):
        self.top, self.above = top, above

    def given(self, above):
        return ExactLevel(self.top, above)

    def push(self, z):
        if self.top:
            return z
        kept = 1 / (1 + self.noise**2)
        return 2 * kept * self.above + jnp.sqrt(4 * (1 - kept) + 1) * z


class ExactDiffusion(Diffusion):
    def distribution(self, net, spec):
        return ExactLevel(spec.condition is None)


def test_a_chain_of_exact_levels_has_the_exact_joint_law(data):
    a, b = np.random.default_rng(0).normal(size=(2, 500))
    encoder = fit(PrincipalComponents(1), (2 * a + b)[:, None])
    family = NestedDiffusion((encoder,), noise=0.5, diffusion=ExactDiffusion(width=4, depth=1))
    spec = Spec((1,))
    model = family.distribution(family.build(jax.random.key(0), spec), spec)
    assert model.noise_shape == (3,)
    code, x = model.sample_levels(jax.random.key(1), (40, 1000))
    # x is N(0, 5); its covariance with the code is 2 / (1 + 0.25), since it saw the code with noise.
    assert_mean((x**2).mean(1)[:, 0], 5.0, detects=0.5)
    assert_mean((x * code).mean(1)[:, 0], 1.6, detects=0.2)
    np.testing.assert_allclose(model.sample(jax.random.key(1), (3,)).shape, (3, 1))


# -- idempotent and adversarial networks -----------------------------------------------------------------------------


def test_each_term_of_an_idempotent_network_moves_the_right_map():
    """For f(x) = w x: idempotence moves the inner map alone, tightness the outer one, and is capped."""
    family = IdempotentNetwork(width=1, depth=0)
    net = family.build(jax.random.key(0), Spec((1,)))

    def term(w, i):
        scaled = eqx.tree_at(
            lambda n: (n.net.layers[0].weight, n.net.layers[0].bias), net, (w[None, None], jnp.zeros(1))
        )
        return family.terms(scaled, jnp.array([2.0]), jnp.array([1.0]))[i]

    w = jnp.asarray(0.5)
    assert term(w, 0) == pytest.approx(1.0)  # (0.5 * 2 - 2)^2
    assert term(w, 1) == pytest.approx(0.0625)  # (0.25 - 0.5)^2
    cap = 1.5
    assert term(w, 2) == pytest.approx(cap * np.tanh(0.0625 / cap))
    # d/du (0.5 u - u)^2 at u = 0.5, times du/dw = 1; the outer weight is frozen.
    assert jax.grad(term)(w, 1) == pytest.approx(2 * (0.25 - 0.5) * (0.5 - 1))
    # d/dw (0.5 w - 0.5)^2, times the slope of the cap; the inner point is frozen.
    assert jax.grad(term)(w, 2) == pytest.approx(2 * (0.25 - 0.5) * 0.5 / np.cosh(0.0625 / cap) ** 2)


def test_a_critic_is_best_at_the_log_ratio_of_densities():
    """On a grid: the loss there is log 2 - JS, and a logit that is off costs more on both sides."""
    grid = np.linspace(-8, 9, 4001)
    p, q = (np.exp(-((grid - m) ** 2) / 2 / s**2) / s for m, s in ((0.0, 1.0), (1.0, 1.5)))
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    js = 0.5 * np.sum(p * np.log(p / middle)) + 0.5 * np.sum(q * np.log(q / middle))

    def loss(logit):
        # The loss is a mean over points of a term each, so weights can be put in outside; a sure logit costs nothing.
        logit = jnp.asarray(logit)[:, None]
        real = jax.vmap(lambda value: critic_loss(value, jnp.full(1, -1e9)))(logit)
        made = jax.vmap(lambda value: critic_loss(jnp.full(1, 1e9), value))(logit)
        return float(np.sum(p * real) + np.sum(q * made))

    best = np.log(p / q)
    assert loss(best) == pytest.approx(np.log(2) - js, rel=1e-9)
    for off in (0.01, -0.01):
        assert loss(best + off) > loss(best)
        assert loss(best * (1 + off)) > loss(best)


def test_each_network_of_a_gan_is_moved_by_its_own_loss():
    family = GAN(width=4, depth=1, penalty=0.0)
    net = family.build(jax.random.key(0), Spec((2,)))
    x = jax.random.normal(jax.random.key(1), (32, 2))
    key = jax.random.key(2)
    slope = jax.grad(lambda n: family.loss(key, n, x, None, NOW))(net)

    z = jax.random.normal(key, (32, 2))
    made = jax.vmap(net.generator)(z)
    critic = jax.grad(lambda c: critic_loss(jax.vmap(c)(x)[:, 0], jax.vmap(c)(made)[:, 0]))(net.critic)
    generator = jax.grad(lambda g: jnp.mean(jax.nn.softplus(-jax.vmap(net.critic)(jax.vmap(g)(z))[:, 0])))(
        net.generator
    )
    for found, true in ((slope.critic, critic), (slope.generator, generator)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# -- divergence ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged():
    """The divergence of held-out data of a normal from: itself, a shifted one, and a model that repeats 40 data."""
    rng = np.random.default_rng(0)
    held, learned = rng.normal(size=(2000, 2)), rng.normal(size=(40, 2))

    class Repeats:
        def sample(self, key, shape):
            return jnp.asarray(learned)[jax.random.randint(key, shape, 0, len(learned))]

    training = Training(steps=1500, batch=128, learning_rate=2e-3, block=1500)
    models = {
        "itself": dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        "near": dist.Normal(jnp.array([0.3, 0.0]), 1.0).to_event(1),
        "shifted": dist.Normal(jnp.array([1.5, 0.0]), 1.0).to_event(1),
        "repeats": Repeats(),
    }
    return {name: neural_divergence(model, held, training=training, width=64) for name, model in models.items()}


@pytest.mark.slow
def test_the_divergence_is_a_lower_bound_and_close(judged):
    """Against Jensen-Shannon's by quadrature; the critic's logit against the log ratio of densities."""
    grid = np.linspace(-9, 10, 8001)
    for name, shift in (("itself", 0.0), ("shifted", 1.5)):
        p, q = (np.exp(-((grid - m) ** 2) / 2) for m in (0.0, shift))
        p, q = p / p.sum(), q / q.sum()
        js = 0.5 * np.sum(p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q)))
        found = judged[name]
        assert 0 < found.error < 0.02
        assert found.value < js + 4.5 * found.error
        assert found.value > js - 0.06 - 4.5 * found.error
    x = np.random.default_rng(1).normal(size=(200, 2)) * 0.7 + [0.75, 0]
    logit = jax.vmap(judged["shifted"].critic)(jnp.asarray(x))
    exact = -1.5 * x[:, 0] + 1.125
    assert np.sqrt(np.mean((logit - exact) ** 2)) < 0.5 * exact.std()


@pytest.mark.slow
def test_a_model_that_repeats_its_data_does_not_beat_a_good_one(judged):
    assert judged["repeats"].value > judged["near"].value + 5 * judged["near"].error
    assert judged["repeats"].value > 0.1


def test_a_divergence_says_what_does_not_fit():
    normal = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    with pytest.raises(pg.DataError, match="at least 100"):
        neural_divergence(normal, np.zeros((5, 2)))
    with pytest.raises(pg.MethodError, match="expected what has sample"):
        neural_divergence(3, np.zeros((200, 2)))
    with pytest.raises(pg.DataError, match="a draw has shape"):
        neural_divergence(normal, np.zeros((200, 3)))
