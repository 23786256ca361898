"""Testing statistical software: assertions with stated error rates, and models whose answers are known.

Nothing here needs pytest; failures are ``AssertionError``.
"""

from probgen.testing.assertions import (
    assert_mean,
    assert_moments,
    assert_proportion,
    assert_unbiased_evidence,
    assert_variance,
)
from probgen.testing.draws import assert_draws, assert_same_distribution
from probgen.testing.judge import Outcome, Refuted, TooWeak
from probgen.testing.oracles import Oracle, oracles

__all__ = [
    "Oracle",
    "Outcome",
    "Refuted",
    "TooWeak",
    "assert_draws",
    "assert_mean",
    "assert_moments",
    "assert_proportion",
    "assert_same_distribution",
    "assert_unbiased_evidence",
    "assert_variance",
    "oracles",
]
