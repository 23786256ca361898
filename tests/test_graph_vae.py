"""Variational graph autoencoders: links of a stochastic block model, and the terms of the bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probgen import generative
from probgen.base.errors import DataError, MethodError
from probgen.nets.graph_convolution import normalised_adjacency


def blocks(seed=0, nodes=60, within=0.4, between=0.03):
    """A graph of three groups, and the matrix of probabilities that it was drawn from."""
    rng = np.random.default_rng(seed)
    group = np.arange(nodes) % 3
    probability = np.where(group[:, None] == group, within, between)
    upper = np.triu(rng.random((nodes, nodes)) < probability, 1)
    return (upper | upper.T).astype(int), probability


def hidden(graph, share=0.15, seed=1):
    """Pairs that nobody looked at: symmetric, True where hidden."""
    upper = np.triu(np.random.default_rng(seed).random(graph.shape) < share, 1)
    return upper | upper.T


def area(scores, labels):
    """Area under the receiver operating characteristic, by ranks."""
    order = np.argsort(np.argsort(scores)) + 1
    positive = labels.sum()
    return (order[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))


@pytest.fixture(scope="module")
def fitted():
    graph, probability = blocks()
    hide = hidden(graph)
    x = np.where(hide, 2, graph)
    training = generative.Training(steps=500, batch=1, learning_rate=2e-2, validation=0.0, ema=0.9, block=500)
    return (
        graph,
        probability,
        hide,
        generative.fit(generative.GraphVAE(latent=4, width=16), x[None], training=training, progress=False),
    )


def test_hidden_links_are_predicted(fitted):
    """As well as the block model itself can, less a little: its own probabilities are the best score there is."""
    graph, probability, hide, model = fitted
    pairs = np.triu(hide, 1)
    found = np.asarray(model.conditional(graph, ~hide))
    best = area(probability[pairs], graph[pairs])
    got = area(found[pairs], graph[pairs])
    assert got > 0.75
    assert got > best - 0.08
    assert np.all(np.diag(found) == 0)
    changed = np.where(hide, 1 - graph, graph)
    np.testing.assert_array_equal(model.conditional(changed, ~hide), found)


def test_the_bound_is_made_of_its_terms_and_hidden_pairs_have_none(fitted):
    graph, _, hide, model = fitted
    x, key = jnp.asarray(np.where(hide, 2, graph)), jax.random.key(0)
    loc, log_scale = model.net(x, None)
    z = loc + jnp.exp(log_scale) * jax.random.normal(key, loc.shape, loc.dtype)
    p = np.asarray(jax.nn.sigmoid(z @ z.T + model.net.bias), float)
    seen = np.triu(~hide, 1)
    each = np.where(graph == 1, np.log(p), np.log1p(-p))
    divergence = float(0.5 * jnp.sum(jnp.exp(2 * log_scale) + loc**2 - 1 - 2 * log_scale))
    assert float(model.bound_at(key, x)) == pytest.approx(each[seen].sum() - divergence, rel=1e-4)
    # Reweighted, present and absent edges have equal shares, and together the weight of all pairs.
    likelihood, same = model.terms(key, x, None, reweighted=True)
    present, count = (graph[seen] == 1).sum(), seen.sum()
    up, down = count / (2 * present), count / (2 * (count - present))
    weighted = np.where(graph == 1, up, down) * each
    assert float(likelihood) == pytest.approx(weighted[seen].sum(), rel=1e-4)
    assert float(same) == pytest.approx(divergence, rel=1e-4)


def test_layers_and_draws(fitted):
    graph = np.asarray([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    expected = [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]
    np.testing.assert_allclose(normalised_adjacency(jnp.asarray(graph, float)), expected)
    drawn = fitted[-1].sample(jax.random.key(0))
    np.testing.assert_array_equal(drawn, drawn.T)
    assert set(np.unique(drawn)) <= {0, 1}
    assert np.all(np.diag(drawn) == 0)


@pytest.mark.slow
def test_features_and_files(tmp_path):
    graph, _ = blocks(nodes=6)
    features = np.random.default_rng(0).normal(size=(1, 6, 2))
    training = generative.Training(steps=2, batch=1, validation=0.0, block=2)
    model = generative.fit(generative.GraphVAE(2, 4), graph[None], features, training=training, progress=False)
    generative.save(model, tmp_path / "m")
    key, given = jax.random.key(0), features[0]
    assert generative.load(tmp_path / "m").given(given).bound(key, graph) == model.given(given).bound(key, graph)
    with pytest.raises(MethodError, match="no log_prob"):
        model.given(given).log_prob(graph)


def test_errors():
    graph, _ = blocks(nodes=6)
    for bad in (np.triu(np.ones((4, 4), int), 1), np.ones((4, 4), int)):
        with pytest.raises(DataError, match="not symmetric, or has loops"):
            generative.fit(generative.GraphVAE(), bad[None])
    with pytest.raises(DataError, match=r"expected an adjacency matrix \(n, n\)"):
        generative.fit(generative.GraphVAE(), graph)
    with pytest.raises(MethodError, match="latent=0"):
        generative.fit(generative.GraphVAE(latent=0), graph[None])
