"""The peer of benchmarks/counterfactual.py, run by it in an environment of its own: MultiWorldCounterfactual of ChiRho.

    python benchmarks/counterfactual_peer.py ASKED.npz

ASKED holds age, t, m, y of the units and posterior draws draw_a, draw_b, draw_c, draw_s; one execution per draw.
"""

import importlib.metadata
import json
import sys
import time
from statistics import median

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from chirho.counterfactual.handlers import MultiWorldCounterfactual
from chirho.indexed.ops import IndexSet, gather
from chirho.interventional.handlers import do
from chirho.observational.handlers import condition


def model(age):
    a, b, c = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "abc")
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("unit", len(age), dim=-1):
        t = pyro.sample("T", dist.Bernoulli(logits=a * age))
        m = pyro.sample("M", dist.Normal(age + b * t, s))
        return pyro.sample("Y", dist.Normal(a + t + c * m, s))


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    pyro.settings.set(validate_distributions_pyro=False, validate_distributions_torch=False)
    asked = {name: torch.from_numpy(np.asarray(values)) for name, values in np.load(sys.argv[1]).items()}
    age, seen = asked["age"], {"T": asked["t"].double(), "M": asked["m"], "Y": asked["y"]}
    draws = [{name: asked[f"draw_{name}"][i] for name in "abcs"} for i in range(len(asked["draw_a"]))]

    def run(values, action):
        with MultiWorldCounterfactual(), do(actions={"T": action}), condition(data={**seen, **values}):
            y = model(age)
            return gather(y, IndexSet(T=set(range(1, 1 + (len(action) if isinstance(action, tuple) else 1)))))

    arms = torch.tensor(1.0), torch.tensor(0.0)
    with torch.no_grad():
        run(draws[0], arms)
        each = []
        for values in draws:
            start = time.perf_counter()
            run(values, arms)
            each.append(time.perf_counter() - start)
        same = run(draws[0], seen["T"]).reshape(-1, len(age))[-1]
    answer = {
        "per_draw": median(each),
        "composition": float((same - seen["Y"]).abs().max()),
        "version": importlib.metadata.version("chirho"),
        "torch": torch.__version__,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
