"""Where a tracking server becomes the limit: ``python tests/benchmarks/scale.py --trial-s 20 --log-ms 150``.

A small simulation. GPUs run trials of ``--trial-s`` seconds, give or take a fifth; each trial then needs
``--log-ms`` of the server, whose worker serves one trial after the other, and its GPU waits until that is
done.
"""

import argparse
import heapq
import random

GPUS = (1, 4, 16, 64, 256, 1000)
TRIALS_A_GPU = 50


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trial-s", type=float, required=True)
    parser.add_argument("--log-ms", type=float, required=True)
    parser.add_argument("--workers", type=int, default=1, help="server workers, each on a core of its own")
    arguments = parser.parse_args()
    for gpus in GPUS:
        took, busy = simulated(gpus, arguments.trial_s, arguments.log_ms / 1000, arguments.workers)
        alone = TRIALS_A_GPU * arguments.trial_s
        print(
            f"{gpus:5d} GPUs: {60 * gpus * TRIALS_A_GPU / took:7.0f} trials a minute, "
            f"{100 * alone / took:5.1f} % of the GPUs' time on trials, server {100 * busy:5.1f} % busy"
        )


def simulated(gpus: int, trial_s: float, log_s: float, workers: int, seed: int = 0) -> tuple[float, float]:
    """Seconds until every GPU has run its trials, and the share of that time that the server's workers are
    busy."""
    chance = random.Random(seed)
    free = [0.0] * workers  # when each worker of the server is free again
    ready = [
        (chance.uniform(0, trial_s), TRIALS_A_GPU) for _ in range(gpus)
    ]  # when a trial ends; how many are left
    heapq.heapify(ready)
    took = 0.0
    while ready:
        ended, left = heapq.heappop(ready)
        logged = max(ended, heapq.heappop(free)) + log_s
        heapq.heappush(free, logged)
        took = max(took, logged)
        if left > 1:
            heapq.heappush(ready, (logged + trial_s * chance.uniform(0.8, 1.2), left - 1))
    return took, gpus * TRIALS_A_GPU * log_s / (workers * took)


if __name__ == "__main__":
    main()
