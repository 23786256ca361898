"""Variational graph autoencoder: which links of a network nobody has looked at.

A stochastic block model with three groups; 15 % of the pairs are hidden. The best score possible is the probability
that the graph was drawn with.
"""

import jax
import numpy as np

from probgen import generative

EXPECTED = {"area under the curve": (0.75, 0.95), "the best possible": (0.75, 0.95)}


def area(scores, labels):
    """Probability that a present link scores above an absent one; ties count half."""
    present, absent = scores[labels == 1], scores[labels == 0]
    above = (present[:, None] > absent).mean()
    return float(above + 0.5 * (present[:, None] == absent).mean())


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    group = np.arange(90) % 3
    probability = np.where(group[:, None] == group, 0.35, 0.03)
    graph = np.triu(rng.random(probability.shape) < probability, 1)
    graph = (graph | graph.T).astype(int)
    hide = np.triu(rng.random(graph.shape) < 0.15, 1)
    hide = hide | hide.T
    model = generative.fit(generative.GraphVAE(latent=4, width=16), np.where(hide, 2, graph)[None], seed=0)
    found = np.asarray(jax.jit(model.conditional)(graph, ~hide))
    pairs = np.triu(hide, 1)
    return {
        "area under the curve": area(found[pairs], graph[pairs]),
        "the best possible": area(probability[pairs], graph[pairs]),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
