"""Forward chi-square divergence: neurons of which one was not recorded.

A partially observed generalised linear model: in each bin a neuron spikes with log odds that are linear in the spikes of
all neurons in the bin before. The spikes of the hidden one are discrete latent variables, for which the chi-square
objective needs no reparameterisation. Here their sum is also known exactly (a forward pass over two states), so the
estimates of the log likelihood, and the models that they were followed to, can be judged.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import probgen as pg

EXPECTED = {
    "held-out log likelihood: the truth": (-24.0, -23.4),
    "lost without a hidden neuron": (1.8, 2.7),
    "lost by maximum likelihood": (-0.02, 0.1),
    "lost by the chi-square objective": (-0.02, 0.1),
    "gap of the estimate, chi-square objective": (0.0, 0.1),
    "lost by the evidence lower bound": (0.13, 0.4),
    "gap of the estimate, evidence lower bound": (0.2, 0.6),
}

BINS, SEEN, DRAWS = 15, 3, 32
NEURONS = SEEN + 1
BIAS = np.asarray([-1.0, -1.5, 0.5, -2.0])
WEIGHTS = np.asarray([[0.5, 0.0, -0.5, 3.0], [0.5, 0.0, 0.0, 3.0], [0.0, -0.5, 0.5, -3.0], [1.5, 0.0, 0.0, 3.0]])


def recordings(count):
    """Spikes of the recorded neurons, shape ``(count, BINS, SEEN)``."""
    rng = np.random.default_rng(0)
    spikes = np.zeros((count, BINS + 1, NEURONS))
    for t in range(BINS):
        odds = 1 / (1 + np.exp(-BIAS - spikes[:, t] @ WEIGHTS.T))
        spikes[:, t + 1] = rng.random((count, NEURONS)) < odds
    return spikes[:, 1:, :SEEN]


def program(seen):
    """One recording, shape ``(BINS, SEEN)``. Hidden and recorded spikes drive one another bin by bin, so the law of all
    of them stands in one factor, and the hidden ones have none of their own."""
    bias = numpyro.param("bias", jnp.zeros(NEURONS))
    weights = numpyro.param("weights", jnp.zeros((NEURONS, NEURONS)))
    hidden = numpyro.sample("hidden", dist.Bernoulli(0.5).expand([BINS, 1]).mask(False).to_event(2))
    spikes = jnp.concatenate([seen, hidden], 1)
    before = jnp.pad(spikes[:-1], ((1, 0), (0, 0)))
    numpyro.factor("spikes", jnp.sum(dist.Bernoulli(logits=bias + before @ weights.T).log_prob(spikes)))


def odds(bias, weights, seen):
    """Log odds of the hidden spikes under the guide, from what was recorded in five bins around; shape ``(BINS,)``."""
    around = jnp.pad(seen, ((2, 2), (0, 0)))
    return bias + jnp.concatenate([around[i : i + BINS] for i in range(5)], 1) @ weights


def guide(seen):
    """Hidden spikes, independent of one another given the recording."""
    logits = odds(numpyro.param("guide_bias", jnp.zeros(())), numpyro.param("filter", jnp.zeros(5 * SEEN)), seen)
    numpyro.sample("hidden", dist.Bernoulli(logits=logits[:, None]).to_event(2))


def lower_bound(params, seen):
    """The evidence lower bound of one recording, summed over the hidden spikes of each two bins that follow one
    another: without the noise that its gradient would have from draws."""
    logits = odds(params["guide_bias"], params["filter"], seen)
    share = jax.nn.sigmoid(logits)
    total = -jnp.sum(share * jax.nn.log_sigmoid(logits) + (1 - share) * jax.nn.log_sigmoid(-logits))
    earlier_seen, earlier_share = jnp.pad(seen[:-1], ((1, 0), (0, 0))), jnp.pad(share[:-1], (1, 0))
    for before in (0.0, 1.0):
        for now in (0.0, 1.0):
            spikes, earlier = (
                jnp.concatenate([part, jnp.full((BINS, 1), value)], 1)
                for part, value in ((seen, now), (earlier_seen, before))
            )
            law = dist.Bernoulli(logits=params["bias"] + earlier @ params["weights"].T)
            of_before = earlier_share if before else 1 - earlier_share
            of_now = share if now else 1 - share
            total += jnp.sum(of_before * of_now * jnp.sum(law.log_prob(spikes), 1))
    return total


def exact(params, seen):
    """Log likelihood of one recording: the hidden spike summed out bin by bin."""
    states = jnp.asarray([[0.0], [1.0]])

    def step(carry, now):
        log_p, before = carry
        spikes = jnp.concatenate([jnp.broadcast_to(before, (2, SEEN)), states], 1)
        logits = params["bias"] + spikes @ params["weights"].T
        law = dist.Bernoulli(logits=logits)
        seen_part = jnp.sum(law.log_prob(jnp.concatenate([jnp.broadcast_to(now, (2, SEEN)), states], 1))[:, :SEEN], 1)
        to = dist.Bernoulli(logits=logits[:, SEEN:]).log_prob(states.T)
        return (jax.nn.logsumexp((log_p + seen_part)[:, None] + to, axis=0), now), None

    start = jnp.asarray([0.0, -jnp.inf])  # no neuron spiked before
    (log_p, _), _ = jax.lax.scan(step, (start, jnp.zeros(SEEN)), seen)
    return jax.nn.logsumexp(log_p)


def first(hidden=1.0):
    """Where training begins. With all weights of the hidden neuron zero it would stay of no use."""
    weights = np.zeros((NEURONS, NEURONS))
    weights[:, SEEN] = hidden * np.asarray([1.0, 1.0, -1.0, 1.0])
    return {
        "bias": jnp.zeros(NEURONS),
        "weights": jnp.asarray(weights),
        "guide_bias": jnp.zeros(()),
        "filter": jnp.zeros(5 * SEEN),
    }


def trained(loss, params, seen, steps=500, batch=25):
    """Follow a loss of one recording, ``loss(key, params, seen)``, on batches of independent recordings."""
    optimiser = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def step(carry, key):
        params, memory = carry
        key_rows, key_loss = jax.random.split(key)
        rows = jax.random.choice(key_rows, len(seen), (batch,), replace=False)
        keys = jax.random.split(key_loss, batch)
        gradient = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (0, None, 0))(keys, p, seen[rows])))(params)
        updates, memory = optimiser.update(gradient, memory)
        return (optax.apply_updates(params, updates), memory), None

    start = (params, optimiser.init(params))
    return jax.jit(lambda start: jax.lax.scan(step, start, jax.random.split(jax.random.key(0), steps))[0][0])(start)


def main() -> dict[str, float]:
    seen, held = jnp.split(jnp.asarray(recordings(800)), 2)
    mean_exact = jax.jit(lambda params: jnp.mean(jax.vmap(exact, (None, 0))(params, held)))
    truth = float(mean_exact({"bias": jnp.asarray(BIAS), "weights": jnp.asarray(WEIGHTS)}))
    numbers = {"held-out log likelihood: the truth": truth}

    def without(key, params, seen):
        return -exact(params | {"weights": params["weights"] * jnp.asarray([1.0] * SEEN + [0.0])}, seen)

    alone = trained(without, first(0.0), seen)
    numbers["lost without a hidden neuron"] = truth + float(
        jnp.mean(jax.vmap(without, (None, None, 0))(None, alone, held))
    )
    best = trained(lambda key, params, seen: -exact(params, seen), first(), seen)
    numbers["lost by maximum likelihood"] = truth - float(mean_exact(best))
    chi2 = pg.ForwardChi2(samples=DRAWS).build()
    for name, loss in (
        ("chi-square objective", lambda key, params, seen: chi2.loss(key, params, program, guide, seen)),
        ("evidence lower bound", lambda key, params, seen: -lower_bound(params, seen)),
    ):
        params = trained(loss, first(), seen)
        here = float(mean_exact(params))
        keys = jax.random.split(jax.random.key(1), len(held))
        estimate = -float(jnp.mean(jax.jit(jax.vmap(loss, (0, None, 0)))(keys, params, held)))
        numbers[f"lost by the {name}"] = truth - here
        numbers[f"gap of the estimate, {name}"] = here - estimate
    return numbers


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4g}")
