"""What a training step costs with each optimizer, as ratios to Adam's from one run.

    python examples/benchmarks/steps.py [--short]

784-500-300-10, batches of 64, one compiled call per step. Every figure is the median of rounds in
which the optimizers alternate, so that a busy moment of the machine meets all of them; beside each
ratio are the lowest and the highest of the rounds.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import p2t_jax as p2t

LAYERS = [(784, 500), (500, 300), (300, 10)]
BATCH = 64


def make_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(LAYERS))
    return [
        {
            "kernel": jax.random.normal(key, shape) * np.sqrt(2 / shape[0]),
            "bias": jnp.zeros(shape[1]),
        }
        for key, shape in zip(keys, LAYERS, strict=True)
    ]


def loss(params, images, labels):
    x = images
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    logits = x @ params[-1]["kernel"] + params[-1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Run:
    """An optimizer in the middle of training."""

    def __init__(self, tx, donate, members=None):
        def step(params, state, images, labels):
            grads = jax.grad(loss)(params, images, labels)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        init = tx.init
        if members:
            step, init = jax.vmap(step, (0, 0, None, None)), jax.vmap(init)
        params = jax.vmap(make_params)(jnp.arange(members)) if members else make_params()
        self.step = jax.jit(step, donate_argnums=(0, 1) if donate else ())
        self.carry = params, init(params)

    def __call__(self, batches):
        for batch in batches:
            self.carry = self.step(*self.carry, *batch)
        jax.block_until_ready(self.carry)


def compare(title, optimizers, rounds, steps, donate=True, members=None):
    rng = np.random.default_rng(0)
    batches = [
        (jnp.asarray(rng.random((BATCH, 784), np.float32)), jnp.asarray(rng.integers(0, 10, BATCH)))
        for _ in range(steps)
    ]
    runs = {name: Run(tx, donate, members) for name, tx in optimizers.items()}
    for run in runs.values():
        run(batches[:2])  # compile
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(batches)
            seconds[name].append((time.perf_counter() - start) / steps)
    print(f"\n{title}: ms per step, ratio to Adam (lowest-highest)")
    for name, values in seconds.items():
        ratios = np.array(values) / np.array(seconds["Adam"])
        print(
            f"  {name:24} {1e3 * np.median(values):7.2f}   {np.median(ratios):6.2f} "
            f"({ratios.min():.2f}-{ratios.max():.2f})",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    print(f"JAX {jax.__version__}, NumPy {np.__version__}, {jax.devices()[0]}")
    adam = optax.adam(1e-3)
    feedback = {
        f"LAPerm, k = {k}" + m * ", feedback": p2t.laperm(adam, k, error_feedback=float(m))
        for k in (1, 10)
        for m in (0, 1)
    }
    optimizers = {
        "Adam": adam,
        "LAPerm, k = 20": p2t.laperm(adam, 20),
        "SGPerm": p2t.sgperm(0),
        "SGPerm, ffi": p2t.sgperm(0, host_callback="ffi"),
    }
    rounds, steps = (2, 20) if short else (25, 40)
    compare("state donated", optimizers, rounds, steps)
    compare("state donated, error feedback", {"Adam": adam} | feedback, rounds, steps)
    compare("state not donated", optimizers, rounds, steps, donate=False)
    without_host = {
        "Adam": adam,
        "LAPerm, plain JAX": p2t.laperm(adam, 20, host_callback=False),
        "SGPerm, plain JAX": p2t.sgperm(0, host_callback=False),
    }
    compare("host_callback=False", without_host, 1 if short else 3, 2 if short else 20)
    ensemble = {name: tx for name, tx in optimizers.items() if "SGPerm" not in name}
    compare("a vmapped ensemble of 4", ensemble, 1 if short else 7, 20, members=4)


if __name__ == "__main__":
    main()
