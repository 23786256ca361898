"""The peer of benchmarks/sbi.py, run by it in an environment of its own: NPE of the package sbi, with its spline flow.

    python benchmarks/sbi_peer.py ASKED.npz ANSWERED.npz BOUND DRAWS SEED EPOCHS

ASKED holds theta, x and the observations; the prior is uniform within BOUND. EPOCHS limits training, 0 leaves it as sbi has it.
"""

import sys
import time

import numpy as np
import sbi
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform


def main():
    asked, answered = sys.argv[1:3]
    bound, draws, seed, epochs = float(sys.argv[3]), *(int(word) for word in sys.argv[4:])
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = {name: torch.from_numpy(values) for name, values in np.load(asked).items()}
    dim = data["theta"].shape[1]
    cpu, wall = time.process_time(), time.perf_counter()
    inference = NPE(prior=BoxUniform(-bound * torch.ones(dim), bound * torch.ones(dim)), density_estimator="nsf")
    inference.append_simulations(data["theta"], data["x"]).train(**({"max_num_epochs": epochs} if epochs else {}))
    seconds = {"training_cpu_seconds": time.process_time() - cpu, "training_wall_seconds": time.perf_counter() - wall}
    posterior = inference.build_posterior()
    found, each = [], []
    for x in data["observations"]:
        start = time.perf_counter()
        found.append(posterior.sample((draws,), x=x, show_progress_bars=False).numpy())
        each.append(time.perf_counter() - start)
    np.savez(
        answered,
        draws=np.stack(found),
        sampling_seconds=np.median(each),
        sbi=sbi.__version__,
        torch=torch.__version__,
        **seconds,
    )


if __name__ == "__main__":
    main()
