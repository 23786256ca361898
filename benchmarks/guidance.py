"""How wrong guidance is: against the exact posterior of a mixture of Gaussians under a linear observation.

    python benchmarks/guidance.py [--quick] [--draws 4096] [--only NAME ...]

Three components in four dimensions, exact scores, a path of 100 steps: every error is that of the method (two rows are
trained networks, and say so). Four questions: an observation of one entry with noise; the same likelihood to the power
of 2, which is what guidance with weight 2 is meant for; one entry known exactly; and the means of two pairs of entries
known exactly. For each draw of a method: the total variation between the weights of the components and the exact ones;
the distance of the means in units of the posterior's root mean square deviation; the relative error of the covariance
(Frobenius); and the evaluations of the denoiser per draw (a gradient through one counts as two more). "exact draws" is
the Monte Carlo error that any method has with as many draws.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np

from probgen import generative as gm
from probgen.feynman_kac.smc import Settings, smc
from probgen.feynman_kac.twisted import Twisted

ROOT = Path(__file__).resolve().parent.parent
PATH = gm.VP()
SD, Y, STEPS, POWER = 0.5, 0.4, 100, 2.0
ROW = np.array([[1.0, 0.0, 0.0, 0.0]])
PAIRS = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
REFERENCE = np.array([Y, 0.2, -0.3, 0.1])


def mixture(inflated=1.0):
    roots = np.random.default_rng(0).normal(size=(3, 4, 4)) * 0.25
    means = np.array([[0.9, 1.0, 0.0, 0.5], [-0.6, 1.0, 0.5, -0.5], [0.1, -1.2, -0.5, 0.0]])
    covariances = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(4)
    return gm.GaussianMixture([0.2, 0.3, 0.5], means, inflated * covariances, PATH)


PRIOR = mixture()
POSTERIOR = gm.observed_mixture(PRIOR, ROW, [Y], [[SD**2]])
SHARPER = gm.observed_mixture(PRIOR, ROW, [Y], [[SD**2 / POWER]])
KNOWN = gm.observed_mixture(PRIOR, ROW, [Y], [[1e-8]])
LOW = gm.observed_mixture(PRIOR, PAIRS, PAIRS @ REFERENCE, 1e-8 * np.eye(2))
TRUTH = {
    "noisy observation": POSTERIOR,
    "likelihood to the power of 2": SHARPER,
    "known entry": KNOWN,
    "known low frequencies": LOW,
}


def log_likelihood(x):
    return -0.5 * ((x[0] - Y) / SD) ** 2


def log_classifier(x, t):
    return POSTERIOR.log_density(x, t) - PRIOR.log_density(x, t)


@dataclasses.dataclass
class Method:
    """Weighted draws of a method: (key, number) -> (x, w), for one of the questions."""

    question: str
    name: str
    evaluations: int
    draw: object


def sampled(question, name, denoiser, sampler, each=1, steps=STEPS):
    def draw(key, count):
        times = gm.even_log_snr(PATH, steps)

        def one(key):
            key_noise, key_path = jax.random.split(key)
            return gm.sample_path(key_path, sampler, denoiser, denoiser.draw_noise(key_noise), times)

        return jax.jit(jax.vmap(one))(jax.random.split(key, count)), jnp.full(count, 1 / count)

    return Method(question, name, each * steps, draw)


def corrected(question, name, make, each):
    def draw(key, count):
        cloud = make(gm.Correction(particles=count, steps=STEPS)).run(key)
        return cloud.x, jnp.exp(cloud.log_w)

    return Method(question, name, each * STEPS, draw)


def twisted(question, name, log_likelihood):
    def draw(key, count):
        system = Twisted(PRIOR, log_likelihood, gm.even_log_snr(PATH, STEPS))
        result = jax.jit(lambda key: smc(key, system, Settings(count)))(key)
        cloud = result.cloud
        return cloud.x.x, jnp.exp(cloud.log_w)

    return Method(question, name, 6 * STEPS, draw)


def exact(question):
    def draw(key, count):
        keys = jax.random.split(key, count)
        return jax.vmap(lambda key: TRUTH[question].draw(key, PATH.start))(keys), jnp.full(count, 1 / count)

    return Method(question, "exact draws", 0, draw)


def trained(question, name, family, settings, given):
    def draw(key, count):
        rng = np.random.default_rng(0)
        which = rng.choice(3, 20_000, p=np.exp(PRIOR.log_weights))
        z = rng.normal(size=(20_000, 4)) * np.sqrt(np.asarray(PRIOR.variances))[which]
        x = np.asarray(PRIOR.means)[which] + np.einsum("nij,nj->ni", np.asarray(PRIOR.axes)[which], z)
        y = x[:, :1] + SD * rng.normal(size=(20_000, 1))
        model = given(gm.fit(family, x, y, training=settings, progress=False))
        return model.sample(key, (count,)), jnp.full(count, 1 / count)

    return Method(question, name, 32, draw)


def methods(quick):
    ancestral = gm.DDIM(eta=1.0)
    noisy, power, known, low = TRUTH
    for question in TRUTH:
        yield exact(question)
        yield sampled(question, "unconditional", PRIOR, ancestral)
        yield sampled(question, "conditional denoiser", TRUTH[question], ancestral)
    yield sampled(
        noisy, "classifier guidance, exact classifier", gm.ClassifierGuidance(PRIOR, log_classifier), ancestral, 3
    )
    free = gm.TrainingFree
    yield sampled(noisy, "TFG as DPS", PRIOR, free(log_likelihood), 3)
    yield sampled(noisy, "TFG as LGD", PRIOR, free(log_likelihood, smoothing=0.5, probes=8), 3)
    yield sampled(noisy, "TFG as MPGD", PRIOR, free(log_likelihood, rho=0.0, mu=0.02))
    yield sampled(noisy, "TFG as FreeDoM", PRIOR, free(log_likelihood, rho=0.5, repeats=4), 12)
    yield sampled(noisy, "TFG as UGD", PRIOR, free(log_likelihood, rho=0.5, mu=0.005, iterations=4, repeats=4), 12)
    resample = gm.HardConsistency(log_likelihood, variance=1.0)
    yield sampled(noisy, "hard consistency, variance 1", PRIOR, resample)
    worse, bad = (gm.observed_mixture(mixture(factor), ROW, [Y], [[SD**2]]) for factor in (1.5, 3.0))
    yield sampled(noisy, "conditional, 1.5 times too wide", worse, ancestral)
    yield sampled(noisy, "autoguidance of it, weight 1.6", gm.Guidance(worse, bad, 1.6), ancestral, 2)
    settings = gm.Training(steps=100 if quick else 3000, batch=256)
    control = gm.Training(steps=20 if quick else 1500, batch=128, learning_rate=3e-3)
    yield trained(noisy, "control by RL (trained)", gm.Controlled(PRIOR), control, lambda model: model.given([Y]))
    yield corrected(noisy, "corrector: Tilted", lambda c: gm.Tilted(PRIOR, log_likelihood, correction=c), 9)
    yield twisted(noisy, "twisted Feynman-Kac", log_likelihood)

    yield sampled(power, "classifier-free guidance, weight 2", gm.Guidance(POSTERIOR, PRIOR, POWER), ancestral, 2)
    squared = gm.ClassifierGuidance(PRIOR, log_classifier, POWER)
    yield sampled(power, "classifier guidance, scale 2", squared, ancestral, 3)
    for share in (0.1, 0.6):
        plus = gm.Guidance(POSTERIOR, PRIOR, share)
        yield sampled(power, f"CFG++, lambda {share}", plus, gm.CFGPlusPlus(), 2)
    family = gm.GuidanceFree(gm.Diffusion(width=64), most=3.0)
    yield trained(power, "guidance-free training, weight 2 (trained)", family, settings, lambda m: m.given([Y], POWER))
    yield corrected(power, "corrector: Guided", lambda c: gm.Guided(POSTERIOR, PRIOR, POWER, correction=c), 2)

    mask = gm.kept([True, False, False, False])
    for repeats, jump in ((1, 1), (4, 1), (16, 1), (16, 4)):
        sampler = gm.Replacement(REFERENCE, mask, repeats=repeats, jump=jump)
        steps = STEPS // jump
        yield sampled(known, f"RePaint, {repeats} rounds of {jump}", PRIOR, sampler, repeats * jump, steps)

    def sharp(x):
        return -0.5 * ((x[0] - Y) / 0.01) ** 2

    yield sampled(known, "hard consistency (published)", PRIOR, gm.HardConsistency(sharp))
    yield twisted(known, "twisted Feynman-Kac, noise 0.01", sharp)
    for repeats in (1, 16):
        sampler = gm.Replacement(REFERENCE, gm.block_mean(2), repeats=repeats)
        yield sampled(low, f"ILVR, {repeats} rounds", PRIOR, sampler, repeats)


def errors(truth, x, w):
    alpha, sigma = PATH(PATH.start)
    weights, means = np.exp(truth.log_weights), np.asarray(alpha * truth.means)
    mean = weights @ means
    within = alpha**2 * np.einsum("k,kij,kj,klj->il", weights, truth.axes, truth.variances, truth.axes)
    covariance = within + np.einsum("k,ki,kj->ij", weights, means - mean, means - mean) + sigma**2 * np.eye(len(mean))
    # Components are told apart by the prior, on which no observation weighs.
    shares = np.asarray(w) @ np.asarray(jax.vmap(lambda x: PRIOR.shares(x, PATH.start))(x))
    x, w = np.asarray(x), np.asarray(w)
    found = w @ x
    spread = (x - found).T @ (w[:, None] * (x - found))
    reference = jax.vmap(lambda key: truth.draw(key, PATH.start))(jax.random.split(jax.random.key(99), 20_000))
    exact = np.asarray(jax.vmap(lambda x: PRIOR.shares(x, PATH.start))(reference)).mean(0)
    return {
        "weights": float(0.5 * np.abs(shares - exact).sum()),
        "mean": float(np.linalg.norm(found - mean) / math.sqrt(np.trace(covariance))),
        "covariance": float(np.linalg.norm(spread - covariance) / np.linalg.norm(covariance)),
    }


def main(quick, draws, only):
    draws = 256 if quick else draws
    rows = []
    for method in methods(quick):
        if only and not any(name in method.name for name in only):
            continue
        x, w = method.draw(jax.random.key(1), draws)
        row = {"question": method.question, "method": method.name, "evaluations": method.evaluations}
        row |= errors(TRUTH[method.question], x, w)
        rows.append(row)
        print(
            f"{row['question']:30s} {row['method']:44s} {row['weights']:7.3f} {row['mean']:7.3f} {row['covariance']:7.3f} "
            f"{row['evaluations']:6d}",
            flush=True,
        )
    if not quick and not only:
        out = ROOT / "benchmarks" / "results" / "guidance.json"
        out.write_text(json.dumps({"draws": draws, "steps": STEPS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--draws", type=int, default=4096)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    main(arguments.quick, arguments.draws, arguments.only)
