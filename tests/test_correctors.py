"""Correctors: the master formula against automatic derivatives of exact densities; evidence and moments against closed
forms; what must not change an answer does not."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import probgen as pg
from probgen.feynman_kac.correctors import (
    Corrector,
    Euler,
    ExactDivergence,
    Hutchinson,
    Ito,
    KernelRatio,
    ScoreTransport,
    Trapezoid,
    VelocityTransport,
)
from probgen.feynman_kac.smc import smc
from probgen.generative.corrected import Correction, Guided, Product, Tempered, Tilted
from probgen.generative.denoiser import GaussianMixture
from probgen.generative.path import VE, VP, even_log_snr, even_times
from probgen.generative.sampler import EulerMaruyama
from probgen.testing import assert_mean

PATH = VP()
A = np.array([0.5, -0.3]), np.array([[0.3, 0.1], [0.1, 0.2]])
B = np.array([-0.2, 0.4]), np.array([[0.2, -0.05], [-0.05, 0.5]])
X, T = jnp.array([0.3, -0.2]), 0.35
SHORT = Correction(particles=256, steps=60, ess_threshold=0.0)  # without resampling it compiles faster


def gaussian(mean, covariance):
    return GaussianMixture([1.0], [mean], covariance, PATH)


def four(seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(4, 2, 2)) * 0.25
    means = 1.2 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    return GaussianMixture([0.1, 0.2, 0.3, 0.4], means, roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(2), PATH)


def at_data_end(mean, covariance):
    alpha, sigma = (float(scale) for scale in PATH(PATH.start))
    return alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(len(mean))


def product(*factors):
    """Log integral, mean and covariance of a product of Gaussian densities to powers."""
    precision = sum(beta * np.linalg.inv(v) for _, v, beta in factors)
    shift = sum(beta * np.linalg.inv(v) @ m for m, v, beta in factors)
    constant = sum(
        -0.5 * beta * (m @ np.linalg.solve(v, m) + np.linalg.slogdet(2 * np.pi * v)[1]) for m, v, beta in factors
    )
    covariance = np.linalg.inv(precision)
    mean = covariance @ shift
    return constant + 0.5 * shift @ mean + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1], mean, covariance


def replicates(corrected, count=32, seed=0, summary=None):
    """Log evidence, mean and second moments of independent runs."""
    corrector, settings = corrected.corrector, corrected.correction.settings()

    def one(key, corrector):
        result = smc(key, corrector, settings)
        x, w = result.cloud.x.x, jnp.exp(result.cloud.log_w)
        mean = w @ x
        second = jnp.einsum("n,ni,nj->ij", w, x, x)
        return result.log_z, mean, second, None if summary is None else w @ jax.vmap(summary)(x)

    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(one, (0, None)))(keys, corrector)


# -- the master formula ----------------------------------------------------------------------------------------------


def reward(x):
    return -0.7 * jnp.sum((x - 0.4) ** 2)


TARGETS = {
    "tempered": Tempered(four(), 2.5),
    "product": Product([four(), four(1)], [0.7, 1.8]),
    "guided": Guided(four(), four(1), 1.7),
    "tilted": Tilted(four(), reward),
    "all at once": Tempered(Tilted(Guided(four(), four(1), 1.7), reward, schedule=lambda t: 1.0 - (t - 1e-3)), 2.0),
}


@pytest.mark.parametrize("transport", [VelocityTransport(), ScoreTransport()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("name", TARGETS)
def test_the_rate_of_the_weight_is_what_the_transport_leaves_undone(name, transport):
    r"""d log w / dt = d/dt log p_t + div v + <v, grad log p_t>, with p_t by its exact densities."""
    corrector = TARGETS[name].corrector
    corrector = Corrector(
        corrector.parts, PATH, corrector.powers, corrector.times, (2,), tilt=corrector.tilt, transport=transport
    )

    def log_p(x, t):
        terms = jnp.stack([part.log_density(x, t) for part in corrector.parts])
        return corrector.powers(t) @ terms + (0.0 if corrector.tilt is None else corrector.tilt(x, t))

    @jax.jit
    def both(x, t):
        look = corrector.look(jax.random.key(0), x, t)

        def v(x):
            return corrector.look(jax.random.key(0), x, t).v

        slope, change = jax.grad(log_p, (0, 1))(x, t)
        terms = jnp.stack([part.log_density(x, t) for part in corrector.parts])
        # The rate leaves out what changing powers add, which the scheme adds from the log densities.
        powers = jax.jvp(corrector.powers, (t,), (jnp.ones_like(t),))[1] @ terms
        return (look.rate, change - powers + jnp.trace(jax.jacfwd(v)(x)) + look.v @ slope), (look.score, slope)

    for x, t in ((X, T), (-X, 0.05), (3 * X, 0.9)):
        for found, expected in both(x, jnp.asarray(t)):
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_score_transport_is_the_published_corrector():
    """Table 1 of Skreta et al. (2025), generation time: annealed, product, guided."""
    f, g2 = PATH.f(T), PATH.g2(T)
    a, b = four(), four(1)
    s, s2 = a.score(X, T), b.score(X, T)
    key = jax.random.key(0)

    def rate(corrected):
        corrector = corrected.corrector
        other = Corrector(
            corrector.parts, PATH, corrector.powers, corrector.times, (2,), transport=ScoreTransport(), scheme=Euler()
        )
        return -other.look(key, X, jnp.asarray(T)).rate

    beta = 2.5
    annealed = (beta - 1) * (2 * f + 0.5 * g2 * beta * s @ s)
    np.testing.assert_allclose(rate(Tempered(a, beta)), annealed, rtol=1e-10)
    guided = 0.5 * g2 * beta * (beta - 1) * (s - s2) @ (s - s2)
    np.testing.assert_allclose(rate(Guided(a, b, beta)), guided, rtol=1e-10)
    both = beta * (beta - 1) * 0.5 * g2 * (s + s2) @ (s + s2) + beta * g2 * s @ s2 + (2 * beta - 1) * 2 * f
    np.testing.assert_allclose(rate(Tempered(Product([a, b]), beta)), both, rtol=1e-10)


def test_hutchinson_is_unbiased():
    like = jnp.zeros(3)
    matrices = jax.random.normal(jax.random.key(0), (2, 3, 3))

    def push(v):
        return jnp.einsum("kij,j->ki", matrices, v)

    exact = ExactDivergence()(jax.random.key(0), push, like)
    np.testing.assert_allclose(exact, jnp.trace(matrices, axis1=1, axis2=2), rtol=1e-12)
    keys = jax.random.split(jax.random.key(1), 40 * 100)
    estimates = jax.vmap(lambda key: Hutchinson(2)(key, push, like))(keys).reshape(40, 100, 2).mean(1)
    assert_mean(estimates, exact, detects=0.5)


@pytest.mark.parametrize(
    ("scheme", "schedule"),
    [
        (Trapezoid(), None),
        pytest.param(Euler(), None, marks=pytest.mark.slow),
        pytest.param(Trapezoid(), lambda t: 2.0 - (t - PATH.start), marks=pytest.mark.slow),
    ],
    ids=["Trapezoid", "Euler", "moving power"],
)
def test_the_noise_of_probes_does_not_raise_the_evidence(scheme, schedule):
    """The mean of exp(noise) is not one: unless that is seen to, the evidence is 10 to 20 percent too high here."""
    covariance = 0.2 * (0.05 * np.eye(8) + 0.95)

    def evidences(divergence):
        transport = VelocityTransport(divergence)
        correction = Correction(128, 60, transport, scheme, ess_threshold=0.0)
        target = Tempered(gaussian(np.zeros(8), covariance), 2.0, schedule=schedule, correction=correction)
        corrector, settings = target.corrector, correction.settings()
        run = jax.jit(jax.vmap(lambda key, corrector: smc(key, corrector, settings).log_z, (0, None)))
        return run(jax.random.split(jax.random.key(0), 64), corrector)

    exact = jnp.log(jnp.mean(jnp.exp(evidences(ExactDivergence()))))
    assert_mean(jnp.exp(evidences(Hutchinson()) - exact), 1.0, detects=0.12, tolerance=0.03)


# -- closed forms ----------------------------------------------------------------------------------------------------


MA, MB = at_data_end(*A), at_data_end(*B)
LIKELIHOOD = np.array([1.5, 0.0]), 0.5 * np.eye(2)


def log_likelihood(x):
    return -jnp.sum((x - LIKELIHOOD[0]) ** 2) / (2 * 0.5) - math.log(2 * math.pi * 0.5)


GAUSSIAN = {
    "tempered": (Tempered(gaussian(*A), 3.0, correction=SHORT), product((*MA, 3))),
    "product": (Product([gaussian(*A), gaussian(*B)], correction=SHORT), product((*MA, 1), (*MB, 1))),
    "guided": (Guided(gaussian(*A), gaussian(*B), 1.2, correction=SHORT), product((*MA, 1.2), (*MB, -0.2))),
    "tilted": (Tilted(gaussian(*A), log_likelihood, correction=SHORT), product((*MA, 1), (*LIKELIHOOD, 1))),
    "moving power": (
        Tempered(gaussian(*A), 2.0, schedule=lambda t: 2.0 - (t - PATH.start), correction=SHORT),
        product((*MA, 2)),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("product", "tilted") else [pytest.mark.slow]) for n in GAUSSIAN]
)
def test_gaussian_targets_have_their_closed_forms(name):
    corrected, (log_z, mean, covariance) = GAUSSIAN[name]
    found, means, seconds, _ = replicates(corrected, 40)
    assert_mean(jnp.exp(found - log_z), 1.0, detects=0.15, tolerance=0.02)
    scale = math.sqrt(np.trace(covariance))
    assert_mean(means, mean, detects=0.3 * scale, tolerance=0.03 * scale)
    assert_mean(seconds, covariance + np.outer(mean, mean), detects=0.4 * scale**2, tolerance=0.05 * scale**2)


@pytest.fixture(scope="module")
def quadrature():
    """Evidence and quadrant masses of the tempered mixture, on a grid."""
    grid = jnp.linspace(-3.5, 3.5, 701)
    points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    log_p = 2.0 * jax.jit(jax.vmap(lambda x: four().log_density(x, PATH.start)))(points)
    log_z = jax.scipy.special.logsumexp(log_p) + 2 * jnp.log(grid[1] - grid[0])
    w = jnp.exp(log_p - jax.scipy.special.logsumexp(log_p))
    return float(log_z), np.asarray(w @ jax.vmap(quadrant)(points))


def quadrant(x):
    return jax.nn.one_hot(2 * (x[0] > 0) + (x[1] > 0), 4)


@pytest.mark.parametrize(
    ("divergence", "kappa"),
    [(ExactDivergence(), 1.0), pytest.param(Hutchinson(), 0.0, marks=pytest.mark.slow)],
    ids=["exact", "Hutchinson, no Langevin"],
)
def test_a_tempered_mixture_has_the_evidence_and_the_masses_of_quadrature(quadrature, divergence, kappa):
    log_z, masses = quadrature
    correction = Correction(particles=256, steps=120, kappa=kappa, transport=VelocityTransport(divergence))
    found, _, _, shares = replicates(Tempered(four(), 2.0, correction=correction), 48, summary=quadrant)
    assert_mean(jnp.exp(found - log_z), 1.0, detects=0.12, tolerance=0.03)
    assert_mean(shares, masses, detects=0.08, tolerance=0.01)


@pytest.mark.slow
def test_the_rate_of_langevin_moves_leaves_the_answer_alone(quadrature):
    log_z, masses = quadrature
    for kappa in (0.0, 0.3, 3.0):
        correction = Correction(particles=256, steps=600, kappa=kappa)
        found, _, _, shares = replicates(Tempered(four(), 2.0, correction=correction), 48, summary=quadrant)
        assert_mean(jnp.exp(found - log_z), 1.0, detects=0.12, tolerance=0.02)
        assert_mean(shares, masses, detects=0.08, tolerance=0.01)


@pytest.mark.parametrize(
    ("scheme", "order"),
    [pytest.param(Euler(), 1, marks=pytest.mark.slow), (Trapezoid(), 2)],
    ids=["Euler", "Trapezoid"],
)
def test_the_error_of_the_evidence_falls_with_the_step_size(scheme, order):
    """Particles that begin alike and move without noise differ by the steps alone."""
    corrector = Tempered(four(), 1.5, correction=Correction(kappa=0.0, scheme=scheme, steps=2)).corrector
    keys = jax.random.split(jax.random.key(0), 64)
    first, log_w = jax.jit(jax.vmap(corrector.init))(keys)
    move = jax.jit(jax.vmap(scheme.step, (0, None, 0, None, None)))

    def log_z(steps):
        p, total = first, log_w
        times = even_log_snr(PATH, steps)
        for t, s in itertools.pairwise(times):
            p, log_g = move(keys, corrector, p, t, s)
            total = total + log_g
        return jax.scipy.special.logsumexp(total)

    a, b, c = (float(log_z(steps)) for steps in (80, 240, 720))
    assert math.log(abs(a - b) / abs(b - c)) / math.log(3) == pytest.approx(order, abs=0.35)


# -- what changes nothing --------------------------------------------------------------------------------------------


def test_the_power_one_gives_no_weight():
    standard = gaussian(np.zeros(2), np.eye(2))
    for prior in (standard, four()):
        for correction in (Correction(32, 20, scheme=Euler()), Correction(32, 20, kappa=0.0)):
            corrector = Tempered(prior, 1.0, correction=correction).corrector
            look = corrector.look(jax.random.key(0), X, jnp.asarray(T))
            np.testing.assert_allclose(look.rate, 0, atol=1e-12)
    # What weight there is comes from the Gaussian that the particles begin with, and no step adds to it.
    for correction in (Correction(32, 20, scheme=Euler()), Correction(32, 20, kappa=0.0)):
        cloud = Tempered(standard, 1.0, correction=correction).run(jax.random.key(0))
        np.testing.assert_allclose(cloud.ess, cloud.ess[0], rtol=1e-12)
        np.testing.assert_allclose(cloud.log_w, -math.log(32), atol=1e-3)
        np.testing.assert_allclose(cloud.log_z, 0, atol=1e-3)


def test_a_part_with_power_zero_and_guidance_by_oneself_change_nothing():
    for corrected in (Product([four(), four(1)], [1.0, 0.0]), Guided(four(), four(), 3.0)):
        looks = [c.corrector.look(jax.random.key(0), X, jnp.asarray(T)) for c in (corrected, Tempered(four(), 1.0))]
        np.testing.assert_allclose(looks[0].rate, 0, atol=1e-11)
        np.testing.assert_allclose(looks[0].v, looks[1].v, rtol=1e-11)
        np.testing.assert_allclose(looks[0].score, looks[1].score, rtol=1e-11)


def test_a_power_of_a_power_is_the_power_of_both():
    twice, once = (c.corrector for c in (Tempered(Tempered(four(), 2.0), 1.5), Tempered(four(), 3.0)))
    for a, b in zip(jax.tree.leaves(twice), jax.tree.leaves(once), strict=True):
        np.testing.assert_array_equal(a, b)


# -- log densities along the way -------------------------------------------------------------------------------------


def test_log_densities_along_a_path_are_found_from_scores():
    """Root mean square error over paths; the anchors for four modes are 0.38 and 0.33 nats at 1000 steps."""
    denoiser, steps = four(), 1000
    times = even_times(PATH, steps)

    def path_error(key):
        key_start, key_path = jax.random.split(key)
        x = denoiser.draw_noise(key_start)

        def one(carry, at):
            x, logs = carry
            key, t, s = at
            y = EulerMaruyama().step(key, denoiser, x, t, s, None)[0]
            score = denoiser.score(x, t)[None]
            more = jnp.stack([e.increment(PATH, score, x, t, y, s)[0] for e in (Ito(), KernelRatio())])
            return (y, logs + more), None

        first = jnp.full(2, denoiser.log_noise(x))
        keys = jax.random.split(key_path, steps)
        (x, logs), _ = jax.lax.scan(one, (x, first), (keys, times[:-1], times[1:]))
        return logs - denoiser.log_density(x, times[-1])

    errors = np.asarray(jax.jit(jax.vmap(path_error))(jax.random.split(jax.random.key(0), 400)))
    ito, kernel = np.sqrt(np.mean(errors**2, 0))
    assert ito < 0.5
    assert kernel < ito
    assert np.all(np.abs(errors.mean(0)) < 0.15)


def test_powers_that_change_with_time_work_from_scores_alone():
    correction = Correction(256, 400, scheme=Euler(), transport=VelocityTransport(), ess_threshold=0.0)
    corrected = Tempered(gaussian(*A), 1.5, schedule=lambda t: 1.5 - 0.5 * (t - PATH.start), correction=correction)
    assert corrected.corrector.tracks
    log_z, mean, _ = product((*MA, 1.5))
    found, means, _, _ = replicates(corrected, 40)
    assert_mean(jnp.exp(found - log_z), 1.0, detects=0.2, tolerance=0.1)
    assert_mean(means, mean, detects=0.15, tolerance=0.03)


# -- as distributions ------------------------------------------------------------------------------------------------


def test_a_run_tells_what_happened():
    cloud = Tempered(four(), 3.0, correction=Correction(64, 40, ess_threshold=0.9)).run(jax.random.key(0), history=True)
    assert cloud.x.shape == (64, 2)
    np.testing.assert_allclose(jnp.exp(cloud.log_w).sum(), 1, rtol=1e-12)
    assert cloud.ess.shape == cloud.unique.shape == (41,)
    assert cloud.ancestors.shape == (41, 64)
    changed = [len(set(row)) for row in np.asarray(cloud.ancestors)]
    np.testing.assert_array_equal(changed, cloud.unique)
    assert cloud.resampled.any()
    np.testing.assert_allclose(1 / jnp.exp(2 * cloud.log_w).sum(), cloud.ess[-1], rtol=1e-9)


def test_draws_follow_the_target_and_depend_on_the_key_alone():
    corrected, (_, mean, _) = GAUSSIAN["product"]
    draws = jax.jit(jax.vmap(lambda key: corrected.sample(key, (64,)).mean(0)))(jax.random.split(jax.random.key(3), 40))
    assert_mean(draws, mean, detects=0.15, tolerance=0.01)
    a, b = (corrected.sample(jax.random.key(1), (5, 2)) for _ in range(2))
    assert a.shape == (5, 2, 2)
    np.testing.assert_array_equal(a, b)
    assert corrected.sample(jax.random.key(1)).shape == (2,)
    assert corrected.sample(jax.random.key(1), (0,)).shape == (0, 2)


def test_the_log_density_is_known_up_to_the_evidence_and_no_further():
    corrected, (log_z, mean, covariance) = GAUSSIAN["tilted"]
    exact = jax.scipy.stats.multivariate_normal.logpdf(X, mean, covariance)
    np.testing.assert_allclose(corrected.log_density(X) - log_z, exact, rtol=1e-6)
    with pytest.raises(pg.MethodError, match="Tilted has no normalised log density"):
        corrected.log_prob(X)


@pytest.mark.slow
def test_it_stands_in_a_program():
    cold = Tempered(gaussian(*A), 3.0, correction=Correction(64, 40))

    def program():
        x = numpyro.sample("x", cold)
        numpyro.sample("y", dist.Normal(x.sum(), 1.0))

    tree = pg.simulate(pg.Model(program), draws=200, seed=0)
    draws = tree["prior/x"].values.reshape(-1, 2)
    expected = product((*MA, 3))
    spread = np.sqrt(np.diag(expected[2]) / len(draws))
    assert np.all(np.abs(draws.mean(0) - expected[1]) < 5 * spread)


def test_it_may_be_written_inside_a_compiled_function():
    run = jax.jit(lambda key: Tempered(gaussian(*A), 2.0, correction=Correction(32, 10)).run(key).log_z)
    assert np.isfinite(run(jax.random.key(0)))


# -- errors ----------------------------------------------------------------------------------------------------------


OTHER = GaussianMixture([1.0], np.zeros((1, 3)), np.eye(3), PATH)
ELSEWHERE = GaussianMixture([1.0], np.zeros((1, 2)), np.eye(2), VE())


def MOVING(t):
    return 2.0 - (t - PATH.start)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tempered(four(), -1.0), "beta=-1.0, expected a positive power"),
        (lambda: Tempered(four(), math.nan), "beta=nan, expected a finite number"),
        (lambda: Tempered(dist.Normal(), 2.0), "Tempered got a Normal, expected a diffusion model"),
        (lambda: Tempered(four(), 3.0, schedule=lambda t: 2.0 + t), "schedule of Tempered is 2.001 at the data end"),
        (lambda: Tempered(four(), 2.0, schedule=lambda t: jnp.ones(3)), r"array of shape \(3,\) at each time"),
        (
            lambda: Tempered(four(), 2.0, schedule=lambda t: jnp.where(t > 0.5, jnp.nan, 2.0)),
            "a power is not finite at time 1",
        ),
        (lambda: Tempered(four(), 2.0, schedule=lambda t: 2.0 - 4 * (t - PATH.start)), "the powers sum to -1.996"),
        (lambda: Product([]), "Product got no parts"),
        (lambda: Product([four()], [1.0, 2.0]), "2 powers for 1 parts"),
        (lambda: Product([four(), OTHER]), r"part 1 has data of shape \(3,\), part 0 of shape \(2,\)"),
        (lambda: Product([four(), ELSEWHERE]), "Combine denoisers of one path"),
        (lambda: Product([four(), four()], [1.0, -1.0]), "the powers sum to 0"),
        (lambda: Guided(four(), four(), math.inf), "weight=inf, expected a finite number"),
        (lambda: Tilted(four(), lambda x: x), r"the reward of Tilted has shape \(2,\)"),
        (lambda: Tilted(four(), 3.0), "expected a function of one value"),
        (lambda: Tempered(four(), 2.0, correction=Correction(kappa=-1.0)), "got -1.0, expected a finite number >= 0"),
        (lambda: Tempered(four(), 2.0, correction=Correction(steps=0)), "steps must be an int of at least 1, got 0"),
        (lambda: Tempered(four(), 2.0, correction=Correction(particles=1)), "particles must be an int of at least 2"),
        (
            lambda: Tempered(four(), 2.0, schedule=MOVING, correction=Correction(scheme=Euler(), kappa=2.0)),
            r"\(kappa=1\), got kappa=2",
        ),
        (
            lambda: Tempered(four(), 2.0, schedule=MOVING, correction=Correction(transport=ScoreTransport())),
            "got ScoreTransport. Use VelocityTransport",
        ),
        (lambda: Hutchinson(0), "probes=0, expected at least 1"),
        (
            lambda: Corrector((four(),), PATH, lambda t: jnp.ones(2), even_times(PATH, 5), (2,)),
            r"powers have shape \(2,\) at each time, expected \(1,\)",
        ),
        (
            lambda: Corrector((four(),), PATH, lambda t: jnp.ones(1), jnp.array([0.1, 0.5]), (2,)),
            "times must be at least two and fall",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(pg.MethodError, match=words):
        make()


# -- the targets of the library --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_forty_modes():
    rng = np.random.default_rng(1)
    modes = GaussianMixture(np.full(40, 1 / 40), rng.uniform(-40, 40, (40, 2)) / 50, np.eye(2) * (1.31 / 50) ** 2, PATH)
    grid = jnp.linspace(-1, 1, 1501)
    points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    log_p = 3 * jax.lax.map(lambda x: modes.log_density(x, PATH.start), points, batch_size=8192)
    log_z = jax.scipy.special.logsumexp(log_p) + 2 * jnp.log(grid[1] - grid[0])

    def near(x):
        return jax.nn.one_hot(jnp.argmax(modes.shares(x, PATH.start)), 40)

    w = jnp.exp(log_p - jax.scipy.special.logsumexp(log_p))
    masses = (
        jnp.zeros(40).at[jax.lax.map(lambda x: jnp.argmax(modes.shares(x, PATH.start)), points, batch_size=8192)].add(w)
    )

    corrected = Tempered(modes, 3.0, correction=Correction(2048, 1000))
    errors, distances = [], []
    for seed in range(4):
        cloud = corrected.run(jax.random.key(seed))
        found = jnp.exp(cloud.log_w) @ jax.vmap(near)(cloud.x)
        assert jnp.sum(found > 0) == 40
        errors.append(float(cloud.log_z - log_z))
        distances.append(0.5 * float(jnp.abs(found - masses).sum()))
    assert abs(np.mean(errors)) <= 0.05
    assert np.mean(distances) <= 0.09
