r"""Assertions about independent replicates, with both error rates stated.

A bare tolerance says neither how often a correct program fails nor which errors pass. Here ``false_fail`` bounds the
first, over all entries of a call together (Bonferroni); ``detects`` is the error that must be seen, with probability
``power``. An assertion fails as ``Refuted`` if the numbers contradict the expectation, and as ``TooWeak`` if they could
not have: a test that cannot fail is no test. Nothing is random in here; the verdict follows from the numbers alone.

The rates hold as stated where the replicates (one run per key) are nearly normal, which averages over many draws are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.testing.judge import Outcome, Rates, Refuted, TooWeak, broadcast, check_power, judge, replicates_of

__all__ = ["assert_mean", "assert_moments", "assert_proportion", "assert_unbiased_evidence", "assert_variance"]

_WIDEST = 1.0
"""Largest standard deviation of log Z: beyond, replicates that no sample of usual size holds decide about its mean."""


def assert_mean(
    replicates: Any,
    expected: Any,
    *,
    detects: Any,
    false_fail: float = 1e-6,
    power: float = 0.99,
    tolerance: Any = 0.0,
) -> Outcome:
    """The mean of independent replicates is what is expected.

    A two-sided t test per entry. Replicates should be averages over many draws: the rates are those of normal
    replicates, and far in the tail a t test does not forgive skewness.

    Args:
        replicates: At least 24 independent replicates along the first axis, shape ``(n, ...)``.
        expected: The true mean, broadcastable to ``replicates[0]``.
        detects: Error of the mean that must be seen, in its own units, broadcastable likewise.
        false_fail: Probability that a right mean fails, over all entries together.
        power: Probability that an error of ``detects`` in one entry fails.
        tolerance: An error that is known, documented and allowed.

    Raises:
        Refuted: If the mean is another, or a replicate is not finite.
        TooWeak: If an error of ``detects`` would not be seen.
        DataError: If there are too few replicates, or shapes do not match.
    """
    rates, x = Rates(false_fail, power), replicates_of(replicates)
    true = broadcast(expected, x.shape[1:], "expected")
    return _mean("the mean", x, true, detects, tolerance, rates)


def _mean(what: Any, x: np.ndarray, true: np.ndarray, detects: Any, tolerance: Any, rates: Rates) -> Outcome:
    resolution = float(np.finfo(x.dtype).eps)
    x = x.astype(float)
    error = x.std(0, ddof=1) / math.sqrt(len(x))
    return judge(
        what,
        np.asarray(x.mean(0)),
        true,
        error,
        len(x) - 1,
        detects=detects,
        tolerance=tolerance,
        rates=rates,
        resolution=resolution,
    )


def assert_moments(
    replicates: Any,
    mean: Any,
    covariance: Any,
    *,
    detects: float,
    false_fail: float = 1e-6,
    power: float = 0.99,
    tolerance: float = 0.0,
) -> Outcome:
    """Means, variances and covariances of draws are what is expected, judged on independent replicates of a run.

    Each replicate holds the draws of one run, however autocorrelated. They are standardised with the Cholesky factor of
    ``covariance``; then means must be 0 and second moments about the *true* mean the identity matrix (about a
    replicate's own mean, they would be biased by its autocorrelation).

    Args:
        replicates: Draws, shape ``(n, ..., dim)``, or ``(n, ...)`` for a scalar mean; ``n`` independent runs.
        mean: True mean, shape ``(dim,)`` or ``()``.
        covariance: True covariance, shape ``(dim, dim)`` or ``()``.
        detects: Error that must be seen in any of the numbers: of a mean in standard deviations, of a variance or
            covariance in variances.
        false_fail: Probability that right draws fail, over all numbers together.
        power: Probability that an error of ``detects`` in one number fails.
        tolerance: An error that is known, documented and allowed, in the units of ``detects``.

    Raises:
        Refuted: If a moment is another.
        TooWeak: If an error of ``detects`` would not be seen.
        DataError: If there are too few replicates, or shapes do not match.
    """
    rates, x = Rates(false_fail, power), replicates_of(replicates)
    true, spread = np.asarray(mean, float), np.asarray(covariance, float)
    if true.ndim > 1 or spread.shape != true.shape * 2:
        raise DataError(
            f"mean has shape {true.shape} and covariance {spread.shape}, expected (dim,) and (dim, dim), or two "
            f"numbers. Flatten other shapes."
        )
    if true.ndim and (x.ndim < 2 or x.shape[-1] != true.size):
        raise DataError(f"replicates has shape {x.shape}, expected {true.size} coordinates along the last axis.")
    dim = max(1, true.size)
    try:
        root = np.linalg.cholesky(spread.reshape(dim, dim))
    except np.linalg.LinAlgError as error:
        raise DataError("covariance is not positive definite. Give variances, not standard deviations.") from error
    centred = x.reshape(len(x), -1, dim) - true
    z = centred @ np.linalg.inv(root).T
    rows, columns = np.triu_indices(dim)
    numbers = np.concatenate([z.mean(1), (z[..., rows] * z[..., columns]).mean(1)], 1).astype(x.dtype)
    exact = np.concatenate([np.zeros(dim), (rows == columns).astype(float)])
    names = [f"the standardised mean of coordinate {i}" for i in range(dim)]
    names += [f"the standardised covariance of coordinates {i}, {j}" for i, j in zip(rows, columns, strict=True)]
    return _mean(names, numbers, exact, detects, tolerance, rates)


def assert_variance(
    replicates: Any, expected: Any, *, detects: float, false_fail: float = 1e-6, power: float = 0.99
) -> Outcome:
    """The variance of independent replicates is what is expected: that of an estimator, say, which a method reports.

    The chi-squared test for normal replicates; it is sensitive to tails, so give it averages. Variances are hard to
    see: a factor of two takes about 210 replicates at the usual rates.

    Args:
        replicates: At least 24 independent replicates along the first axis, shape ``(n, ...)``.
        expected: The true variance, broadcastable to ``replicates[0]``.
        detects: Relative error of the variance that must be seen: factors of ``1 + detects`` and, if it is below 1, of
            ``1 - detects``.
        false_fail: Probability that a right variance fails, over all entries together.
        power: Probability that a relative error of ``detects`` in one entry fails.

    Raises:
        Refuted: If the variance is another.
        TooWeak: If an error of ``detects`` would not be seen.
        DataError: If there are too few replicates, or shapes do not match.
    """
    from scipy import stats

    rates, x = Rates(false_fail, power), replicates_of(replicates).astype(float)
    if not detects > 0:
        raise MethodError(f"detects must be positive, got {detects!r}. Say how large an error the test must see.")
    true, df = broadcast(expected, x.shape[1:], "expected"), len(x) - 1
    if not (true > 0).all():
        raise DataError(f"expected must be positive, got {expected!r}. Where nothing varies, compare the numbers.")
    found, count = np.asarray(x.var(0, ddof=1)), max(1, true.size)
    level = false_fail / count
    ratio = df * found / true
    p_value = np.minimum(1.0, 2 * np.minimum(stats.chi2.cdf(ratio, df), stats.chi2.sf(ratio, df)))
    if (p_value < level).any():
        where = np.unravel_index(np.argmin(p_value), p_value.shape)
        at = f" at {tuple(map(int, where))}" if where else ""
        raise Refuted(
            f"the variance of {len(x)} replicates{at} is {found[where]:.6g}, expected {true[where]:.6g}: a ratio of "
            f"{found[where] / true[where]:.3g}, p = {p_value[where]:.1e} (false_fail {false_fail:g})."
        )
    low, high = stats.chi2.ppf(level / 2, df), stats.chi2.isf(level / 2, df)
    above, below = high / stats.chi2.isf(power, df) - 1, 1 - low / stats.chi2.ppf(power, df)
    detectable = np.full(true.shape, max(above, below) if detects < 1 else above)
    check_power("the relative variance", detectable, np.full(true.shape, float(detects)), rates)
    return Outcome(float(min(1.0, count * p_value.min(initial=1.0))), detectable)


def assert_proportion(
    successes: Any, trials: Any, expected: Any, *, detects: float, false_fail: float = 1e-6, power: float = 0.99
) -> Outcome:
    """The chance of success in independent trials is what is expected (two-sided exact binomial test).

    Args:
        successes: Numbers of successes, any shape.
        trials: Numbers of trials, broadcastable to it.
        expected: The true probability, broadcastable likewise.
        detects: Error of the probability that must be seen, up and down, where it leads to a probability.
        false_fail: Probability that a right proportion fails, over all entries together; the test is conservative, as
            counts are discrete.
        power: Probability that an error of ``detects`` in one entry fails.

    Raises:
        Refuted: If the probability is another.
        TooWeak: If an error of ``detects`` would not be seen.
        DataError: If the numbers are no counts, or the expectation no probability.
    """
    from scipy import stats

    rates = Rates(false_fail, power)
    k = np.asarray(successes, float)
    n, p = broadcast(trials, k.shape, "trials"), broadcast(expected, k.shape, "expected")
    if not ((k >= 0) & (k <= n) & (k == np.round(k)) & (n == np.round(n)) & (n > 0)).all():
        raise DataError(f"successes must be counts of at most trials, got {successes!r} of {trials!r}. Correct them.")
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"expected must be a probability, got {expected!r}. Correct expected.")
    if not 0 < detects < 1:
        raise MethodError(f"detects must lie between 0 and 1, got {detects!r}. Say how large an error must be seen.")
    count = max(1, k.size)
    level = false_fail / count
    p_value = np.minimum(1.0, 2 * np.minimum(stats.binom.cdf(k, n, p), stats.binom.sf(k - 1, n, p)))
    if (p_value < level).any():
        where = np.unravel_index(np.argmin(p_value), p_value.shape)
        raise Refuted(
            f"{k[where]:.0f} successes in {n[where]:.0f} trials, a proportion of {k[where] / n[where]:.4g}, expected "
            f"{p[where]:.4g}: p = {p_value[where]:.1e} (false_fail {false_fail:g})."
        )
    low = stats.binom.ppf(level / 2, n, p)
    low = np.where(stats.binom.cdf(low, n, p) < level / 2, low, low - 1)  # the most that is too few
    high = stats.binom.isf(level / 2, n, p) + 1  # the least that is too many

    def seen(error: np.ndarray) -> np.ndarray:
        """Least probability of rejection over the errors of that size that are possible."""
        up = np.where(p + error <= 1, stats.binom.sf(high - 1, n, np.minimum(p + error, 1)), 1.0)
        down = np.where(p - error >= 0, stats.binom.cdf(low, n, np.maximum(p - error, 0)), 1.0)
        return np.minimum(up, down)

    smallest, largest = np.zeros(k.shape), np.maximum(p, 1 - p)
    for _ in range(40):
        middle = (smallest + largest) / 2
        enough = seen(middle) >= power
        smallest, largest = np.where(enough, smallest, middle), np.where(enough, middle, largest)
    largest = np.where(seen(largest) >= power, largest, np.inf)
    check_power("the proportion", largest, np.full(k.shape, float(detects)), rates)
    return Outcome(float(min(1.0, count * p_value.min(initial=1.0))), largest)


def assert_unbiased_evidence(
    log_z: Any, expected: Any, *, detects: float, false_fail: float = 1e-6, power: float = 0.99
) -> Outcome:
    r"""Estimates of the evidence are unbiased: :math:`E \exp(\log \hat Z - \log Z) = 1`.

    It is :math:`\hat Z` that is unbiased, not its log, which is too small by about half of its variance. The
    mean of :math:`\hat Z` is ruled by its largest values, and a t test on it fails far too often. The log of a good
    estimate is nearly normal (Berard, Del Moral and Doucet 2014, for particle methods), so

    .. math:: \log E \hat Z = \kappa_1 + \kappa_2 / 2 + \kappa_3 / 6 + \dots

    in the cumulants of :math:`\log \hat Z`; the first two terms are tested, and the third, estimated, is granted as a
    tolerance. Heavy tails cannot be judged from a sample at all: where the standard deviation of :math:`\log \hat Z`
    exceeds 1, the test refuses.

    Args:
        log_z: At least 24 independent estimates along the first axis, shape ``(n, ...)``.
        expected: The true log evidence, broadcastable to ``log_z[0]``.
        detects: Error of the log evidence that must be seen; 0.1 is a factor of 1.1.
        false_fail: Probability that unbiased estimates fail, over all entries together, if their log is normal.
        power: Probability that an error of ``detects`` in one entry fails.

    Raises:
        Refuted: If the estimates are biased.
        TooWeak: If an error of ``detects`` would not be seen, or :math:`\log \hat Z` varies too much to judge.
        DataError: If there are too few replicates, or shapes do not match.
    """
    rates, x = Rates(false_fail, power), replicates_of(log_z, "log_z")
    resolution = float(np.finfo(x.dtype).eps)
    x, true = x.astype(float), broadcast(expected, x.shape[1:], "expected")
    n, variance = len(x), np.asarray(x.var(0, ddof=1))
    if (variance > _WIDEST**2).any():
        raise TooWeak(
            f"log Z has a standard deviation of {math.sqrt(variance.max()):.3g} over {n} replicates: its largest "
            f"values decide about the mean of Z, and no sample of this size shows them. Use more particles, until it "
            f"is well below {_WIDEST:g}."
        )
    third = ((x - x.mean(0)) ** 3).sum(0) * n / ((n - 1) * (n - 2))
    error = np.sqrt(variance / n + variance**2 / (2 * (n - 1)))
    return judge(
        "log E Z",
        np.asarray(x.mean(0) + variance / 2),
        true,
        error,
        n - 1,
        detects=detects,
        tolerance=np.abs(third) / 6,
        rates=rates,
        resolution=resolution,
    )
