r"""Oracles: small models with the exact answer, for whoever writes a method.

Each has a program, data, the marginal posterior of every site, and the log evidence, all from closed forms that share
no code with the library: conjugate pairs, linear regression, enumeration of a mixture, the Kalman filter with the
Rauch-Tung-Striebel smoother, and forward and backward recursions. Deterministic sites that sum others up make
correlations visible in marginals.
"""

# For pyright, a covariance has the type of its default, an int.
# pyright: reportArgumentType=false

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.control_flow import scan

from probgen.base.errors import ModelError, suggestion
from probgen.program.model import Model
from probgen.testing.draws import assert_draws
from probgen.testing.judge import Outcome

__all__ = ["Oracle", "oracles"]


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A model and its exact answer.

    Attributes:
        name: A word for it, as an id of a test.
        model: The model, with data.
        marginals: By site (latent and deterministic), the marginal posterior of its entries: an object with ``mean()``,
            ``std()`` and ``cdf(x)``, arrays of the shape of the site; SciPy's frozen distributions are such objects.
        log_evidence: The exact log evidence.
        discrete: Discrete latent sites.
    """

    name: str
    model: Model
    marginals: Mapping[str, Any]
    log_evidence: float
    discrete: tuple[str, ...] = ()

    @property
    def means(self) -> dict[str, np.ndarray]:
        """Posterior means by site."""
        return {site: np.asarray(law.mean()) for site, law in self.marginals.items()}

    @property
    def sds(self) -> dict[str, np.ndarray]:
        """Posterior standard deviations by site."""
        return {site: np.asarray(law.std()) for site, law in self.marginals.items()}

    def cdf(self, site: str, index: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
        """Distribution function of one number, as ``assert_same_distribution`` takes it.

        Args:
            site: Name of the site.
            index: Which entry of a vector; ``None`` for a scalar site.

        Raises:
            ModelError: If there is no such number.
        """
        if site not in self.marginals:
            raise ModelError(f"the oracle has no site {site!r}. {suggestion(site, self.marginals)}")
        law, shape = self.marginals[site], self.means[site].shape
        if (index is None) != (shape == ()):
            raise ModelError(f"site {site!r} has shape {shape}, and index is {index}. Name one of its entries.")

        def function(x: np.ndarray) -> np.ndarray:
            if index is None:
                return law.cdf(x)
            return law.cdf(np.broadcast_to(np.asarray(x)[..., None], (*np.shape(x), *shape)))[..., index]

        return function

    def check(
        self, tree: Any, *, detects: float, false_fail: float = 1e-6, power: float = 0.99, tolerance: float = 0.0
    ) -> Outcome:
        """Compare the means of all sites, and the standard deviations of continuous ones, with a result.

        Args:
            tree: What ``pg.infer`` returned for the model.
            detects: As for ``assert_draws``, which does it.
            false_fail: Likewise.
            power: Likewise.
            tolerance: Likewise.

        Raises:
            Refuted: If the result is wrong.
            TooWeak: If an error of ``detects`` would not be seen.
        """
        return assert_draws(
            tree,
            means=self.means,
            sds={site: sd for site, sd in self.sds.items() if site not in self.discrete},
            detects=detects,
            false_fail=false_fail,
            power=power,
            tolerance=tolerance,
        )

    def __repr__(self) -> str:
        return f"Oracle({self.name})"


def oracles(seed: int = 0, *, discrete: bool = True) -> tuple[Oracle, ...]:
    """All oracles.

    Args:
        seed: Makes the data; shapes stay, so that another seed compiles nothing anew.
        discrete: Whether to give those with discrete latent sites too.
    """
    rng = np.random.default_rng(seed)
    makers = (
        _normal_mean,
        _normal_gamma,
        _regression,
        _beta_binomial,
        _gamma_poisson,
        _state_space,
        _mixture,
        _hidden_markov,
    )
    made = [make(rng) for make in makers]
    return tuple(oracle for oracle in made if discrete or not oracle.discrete)


# -- conjugate -------------------------------------------------------------------------------------------------------


def normal_mean(y: Array) -> None:
    """One unknown mean."""
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Normal(mu, 0.7), obs=y)


def _normal_mean(rng: np.random.Generator) -> Oracle:
    from scipy import stats

    y = rng.normal(2.0, 0.7, 5)
    variance = 1 / (1 / 4 + 5 / 0.49)
    law = stats.norm(variance * (1 / 4 + y.sum() / 0.49), np.sqrt(variance))
    evidence = stats.multivariate_normal.logpdf(y, np.ones(5), 0.49 * np.eye(5) + 4.0)
    return Oracle("normal_mean", Model(normal_mean, {"y": y}), {"mu": law}, float(evidence))


def normal_gamma(y: Array) -> None:
    """Unknown mean and precision: the mean has a heavy tail."""
    precision = numpyro.sample("precision", dist.Gamma(2.0, 1.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 1 / jnp.sqrt(0.5 * precision)))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Normal(mu, 1 / jnp.sqrt(precision)), obs=y)


def _normal_gamma(rng: np.random.Generator) -> Oracle:
    from scipy import special, stats

    y, a, b, k = rng.normal(1.0, 1.5, 6), 2.0, 1.0, 0.5
    n, mean = y.size, y.mean()
    shape, count, centre = a + n / 2, k + n, n * mean / (k + n)
    rate = b + 0.5 * ((y - mean) ** 2).sum() + 0.5 * k * n * mean**2 / (k + n)
    evidence = special.gammaln(shape) - special.gammaln(a) + a * np.log(b) - shape * np.log(rate)
    evidence += 0.5 * np.log(k / count) - 0.5 * n * np.log(2 * np.pi)
    laws = {
        "precision": stats.gamma(shape, scale=1 / rate),
        "mu": stats.t(2 * shape, centre, np.sqrt(rate / shape / count)),
    }
    return Oracle("normal_gamma", Model(normal_gamma, {"y": y}), laws, float(evidence))


def regression(x: Array, y: Array) -> None:
    """Three correlated coefficients, known noise."""
    b: Any = numpyro.sample("b", dist.Normal(0.0, jnp.array([5.0, 2.0, 2.0])).to_event(1))
    numpyro.deterministic("total", b.sum())
    numpyro.deterministic("difference", b[1] - b[2])
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ b, 0.8), obs=y)


def _regression(rng: np.random.Generator) -> Oracle:
    from scipy import stats

    first = rng.normal(1.0, 1.0, 12)
    x = np.stack([np.ones(12), first, first + 0.4 * rng.normal(size=12)], 1)
    y = x @ [0.5, 1.0, -0.5] + 0.8 * rng.normal(size=12)
    prior = np.diag([25.0, 4.0, 4.0])
    covariance = np.linalg.inv(np.linalg.inv(prior) + x.T @ x / 0.64)
    mean = covariance @ x.T @ y / 0.64

    def along(direction: list[float]) -> Any:
        return stats.norm(direction @ mean, np.sqrt(direction @ covariance @ np.asarray(direction)))

    laws = {
        "b": stats.norm(mean, np.sqrt(np.diag(covariance))),
        "total": along([1.0, 1.0, 1.0]),
        "difference": along([0.0, 1.0, -1.0]),
    }
    evidence = stats.multivariate_normal.logpdf(y, np.zeros(12), x @ prior @ x.T + 0.64 * np.eye(12))
    return Oracle("regression", Model(regression, {"x": x, "y": y}), laws, float(evidence))


def beta_binomial(y: Array) -> None:
    """Three chances of success, ten trials each."""
    with numpyro.plate("group", y.shape[0]):
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        numpyro.sample("y", dist.Binomial(10, p), obs=y)


def _beta_binomial(rng: np.random.Generator) -> Oracle:
    from scipy import stats

    y = rng.binomial(10, rng.beta(2, 3, 3))
    evidence = stats.betabinom.logpmf(y, 10, 2, 3).sum()
    laws = {"p": stats.beta(2 + y, 3 + 10 - y)}
    return Oracle("beta_binomial", Model(beta_binomial, {"y": y}), laws, float(evidence))


def gamma_poisson(y: Array) -> None:
    """Two rates, three counts each."""
    with numpyro.plate("group", y.shape[1]):
        rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
        with numpyro.plate("day", y.shape[0], dim=-2):
            numpyro.sample("y", dist.Poisson(rate), obs=y)


def _gamma_poisson(rng: np.random.Generator) -> Oracle:
    from scipy import special, stats

    y = rng.poisson(rng.gamma(3.0, 1 / 2.0, 2), (3, 2))
    shape, rate = 3.0 + y.sum(0), 2.0 + 3
    evidence = 3 * np.log(2.0) - special.gammaln(3.0) + special.gammaln(shape) - shape * np.log(rate)
    total = evidence.sum() - special.gammaln(y + 1).sum()
    laws = {"rate": stats.gamma(shape, scale=1 / rate)}
    return Oracle("gamma_poisson", Model(gamma_poisson, {"y": y}), laws, float(total))


# -- over time -------------------------------------------------------------------------------------------------------


def state_space(y: Array) -> None:
    """A stationary autoregression, seen with noise."""

    def step(x: Array, now: Array) -> tuple[Array, None]:
        new: Any = numpyro.sample("x", dist.Normal(0.8 * x, 0.6))
        numpyro.sample("y", dist.Normal(new, 0.5), obs=now)
        return new, None

    start = numpyro.sample("start", dist.Normal(0.0, 1.0))
    last, _ = scan(step, start, y)
    numpyro.deterministic("change", last - start)


def _state_space(rng: np.random.Generator) -> Oracle:
    from scipy import stats

    a, q, r, length = 0.8, 0.36, 0.25, 7
    path = [rng.normal()]
    for _ in range(length):
        path.append(a * path[-1] + np.sqrt(q) * rng.normal())
    y = np.array(path[1:]) + np.sqrt(r) * rng.normal(size=length)
    # Kalman filter; entry 0 is the start, which is not observed.
    means, variances, evidence = [0.0], [1.0], 0.0
    for value in y:
        ahead, spread = a * means[-1], a**2 * variances[-1] + q
        evidence += stats.norm.logpdf(value, ahead, np.sqrt(spread + r))
        gain = spread / (spread + r)
        means.append(ahead + gain * (value - ahead))
        variances.append((1 - gain) * spread)
    # Smoother; with the covariance of each state with the last one.
    mean, variance, with_last = np.array(means), np.array(variances), np.array(variances)
    for t in range(length - 1, -1, -1):
        spread = a**2 * variances[t] + q
        back = a * variances[t] / spread
        mean[t] += back * (mean[t + 1] - a * means[t])
        variance[t] += back**2 * (variance[t + 1] - spread)
        with_last[t] = back * with_last[t + 1]
    change = variance[0] + variance[-1] - 2 * with_last[0]
    laws = {
        "start": stats.norm(mean[0], np.sqrt(variance[0])),
        "x": stats.norm(mean[1:], np.sqrt(variance[1:])),
        "change": stats.norm(mean[-1] - mean[0], np.sqrt(change)),
    }
    return Oracle("state_space", Model(state_space, {"y": y}), laws, float(evidence))


# -- discrete --------------------------------------------------------------------------------------------------------


class _Mixture:
    """A finite mixture of normal distributions; a standard deviation of zero is a point."""

    def __init__(self, weights: np.ndarray, means: np.ndarray, sds: np.ndarray) -> None:
        self.weights, self.means, self.sds = weights, means, sds

    def mean(self) -> np.ndarray:
        return np.asarray(self.weights @ self.means)

    def std(self) -> np.ndarray:
        return np.sqrt(self.weights @ (self.sds**2 + self.means**2) - self.mean() ** 2)

    def cdf(self, x: Any) -> np.ndarray:
        from scipy import stats

        return stats.norm.cdf(np.asarray(x)[..., None], self.means, self.sds) @ self.weights


class _Categorical:
    """Independent categorical distributions over 0 ... K - 1; probabilities have shape ``(..., K)``."""

    def __init__(self, probabilities: np.ndarray) -> None:
        self.probabilities = probabilities

    def mean(self) -> np.ndarray:
        return self.probabilities @ np.arange(self.probabilities.shape[-1])

    def std(self) -> np.ndarray:
        return np.sqrt(self.probabilities @ np.arange(self.probabilities.shape[-1]) ** 2 - self.mean() ** 2)

    def cdf(self, x: Any) -> np.ndarray:
        reached = np.asarray(x)[..., None] >= np.arange(self.probabilities.shape[-1])
        return (self.probabilities * reached).sum(-1)


def mixture(y: Array) -> None:
    """A mean, and for each row whether it is shifted: the posterior of the mean has as many modes as the data say."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", y.shape[0]):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu + 1.5 * z, 1.0), obs=y)


def _mixture(rng: np.random.Generator) -> Oracle:
    from scipy import special, stats

    y = rng.normal(0.5, 1.0, 5) + 1.5 * (rng.random(5) < 0.4)
    states = np.array(list(itertools.product((0, 1), repeat=5)))
    covariance = np.eye(5) + 4.0
    log_p = stats.bernoulli.logpmf(states, 0.4).sum(1)
    log_p += [stats.multivariate_normal.logpdf(y, 1.5 * z, covariance) for z in states]
    evidence: Any = special.logsumexp(log_p)
    p = np.exp(log_p - evidence)
    variance = 1 / (1 / 4 + 5)
    shifted = p @ states
    laws = {
        "mu": _Mixture(p, variance * (y - 1.5 * states).sum(1), np.full(len(p), np.sqrt(variance))),
        "z": _Categorical(np.stack([1 - shifted, shifted], -1)),
    }
    return Oracle("mixture", Model(mixture, {"y": y}), laws, float(evidence), ("z",))


_MOVE = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.2, 0.5]])


def hidden_markov(y: Array) -> None:
    """Three hidden states, known parameters."""

    def step(z: Array, now: Array) -> tuple[Array, None]:
        law: Any = dist.Categorical(jnp.asarray(_MOVE)[z])
        new: Any = numpyro.sample("z", law)
        numpyro.sample("y", dist.Normal(1.0 * new, 1.0), obs=now)
        return new, None

    scan(step, 0, y)


def _hidden_markov(rng: np.random.Generator) -> Oracle:
    from scipy import stats

    z, y = [0], []
    for _ in range(6):
        z.append(rng.choice(3, p=_MOVE[z[-1]]))
        y.append(rng.normal(1.0 * z[-1], 1.0))
    seen = stats.norm.pdf(np.array(y)[:, None], 1.0 * np.arange(3), 1.0)
    forward, backward = [np.array([1.0, 0.0, 0.0])], [np.ones(3)]
    for row in seen:
        forward.append((forward[-1] @ _MOVE) * row)
    for row in seen[:0:-1]:
        backward.append(_MOVE @ (row * backward[-1]))
    joint = np.array(forward[1:]) * np.array(backward[::-1])
    laws = {"z": _Categorical(joint / joint.sum(1, keepdims=True))}
    model = Model(hidden_markov, {"y": np.array(y)})
    return Oracle("hidden_markov", model, laws, float(np.log(forward[-1].sum())), ("z",))
