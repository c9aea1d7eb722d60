"""LAPerm on devices that communicate every k steps, beside gradients averaged in every step.

    python examples/paper/local_laperm.py --data-dir DIR [--seeds 3]

784-500-300-10 on MNIST, LAPerm over Adam (1e-3), without and with error feedback, 8 devices with 16
images each: both ways see the same images in the same order. The devices are simulated by `vmap`,
which gives the same bits as `pmap` in less time (the runs without feedback are older, and of 8 CPU
devices). Between synchronizations the devices' parameters differ; what is
evaluated is the permutation by their mean. With averaged gradients all devices have the same
parameters, so these runs take one device and mini-batches of 128 images. Bytes are counted in the
text of the step that is compiled for 8 devices.
"""

import itertools
import math
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import p2t_jax as p2t
from common import data, models, training
from common.experiment import Experiment, mnist, parser
from common.records import Record, spread, table

DEVICES, IMAGES = 8, 16
SYNC_PERIODS = (20, 100, 400)
BATCHES, EVERY = 2000, 400  # whole periods of each k
NETWORK = models.MLP((500, 300, 10))
GRADIENTS, LOCAL = "gradients averaged, k = {}", "weights averaged, k = {}"
WAYS = {GRADIENTS: None, LOCAL: "batch"}  # average_over
FEEDBACK = {"": 0.0, ", feedback": 1.0}
COLLECTIVE = re.compile(
    r" = (\(.*?\)|\S+) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\("
)


def step_of(tx, axis_name, mapped=jax.pmap):
    """A step of all devices: (params, state, images, labels), each with a leading device axis."""

    def step(params, state, images, labels):
        def loss(params):
            logits = NETWORK.apply({"params": params}, images / jnp.float32(255))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        grads = jax.grad(loss)(params)
        if axis_name is None:
            grads = jax.lax.pmean(grads, "batch")
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    if mapped is jax.vmap:
        return jax.jit(jax.vmap(step, axis_name="batch"), donate_argnums=(0, 1))
    return jax.pmap(step, "batch", donate_argnums=(0, 1))


def replicated(tree, mapped=jax.pmap):
    """A copy for each device, along a leading axis."""
    return mapped(lambda _: tree)(jnp.arange(DEVICES))


def fit(tx, dataset, on_device, seed, evaluate_at):
    """`training.fit` on devices that average weights only."""
    start = training.initial_state(NETWORK, tx, on_device, seed)
    params, state = replicated((start.params, start.opt_state), jax.vmap)
    batches = training.mini_batches(
        len(dataset.train_images), DEVICES * IMAGES, seed, 0, evaluate_at[-1]
    ).reshape(-1, DEVICES, IMAGES)
    step = step_of(tx, "batch", jax.vmap)
    accuracy_of = training.evaluation(NETWORK, on_device.prepare)
    accuracy, began, done = [], time.perf_counter(), 0
    for upto in evaluate_at:
        for indices in batches[done:upto]:  # waits for each, which JAX needs on few cores
            images, labels = dataset.train_images[indices], dataset.train_labels[indices]
            params, state = jax.block_until_ready(step(params, state, images, labels))
        done = upto
        now = start._replace(
            params=jax.tree.map(lambda x: x.mean(axis=0), params),
            opt_state=jax.tree.map(lambda x: x[0], state),
        )
        accuracy.append(accuracy_of(now, on_device.test_images, on_device.test_labels))
    return training.Run(
        jax.tree.map(np.asarray, start.params), training.exact(now.params, now.opt_state), now,
        np.array(evaluate_at), np.array(accuracy), time.perf_counter() - began,
    )  # fmt: skip


def size_of_step(tx, axis_name, dataset, on_device):
    """The bytes that a step on all devices communicates, as `communicated` counts them."""
    start = training.initial_state(NETWORK, tx, on_device, 0)
    first = np.arange(DEVICES * IMAGES).reshape(DEVICES, IMAGES)
    lowered = step_of(tx, axis_name).lower(
        *replicated((start.params, start.opt_state)),
        dataset.train_images[first],
        dataset.train_labels[first],
    )
    return communicated(lowered.compile().as_text())


def communicated(text):
    """Bytes that a compiled step hands to collectives: in every step, and in a loop's turn."""
    bodies = set(re.findall(r"body=%([\w.-]+)", text))
    always = in_loops = 0
    for computation in re.split(r"\n(?=%|ENTRY )", text):
        name = re.match(r"(?:ENTRY )?%?([\w.-]+)", computation)[1]
        size = sum(map(size_of, COLLECTIVE.findall(computation)))
        always, in_loops = (
            (always, in_loops + size) if name in bodies else (always + size, in_loops)
        )
    return always, in_loops


def size_of(result):
    """The bytes of the arrays in a type of HLO: f32[784,500]{1,0}."""
    return sum(
        int(bits) // 8 * math.prod(map(int, filter(None, shape.split(","))))
        for bits, shape in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", result)
    )


def main():
    options = parser(__doc__, seeds=3)
    options.add_argument("--only", type=int, nargs="+", default=SYNC_PERIODS, metavar="K")
    options.add_argument("--feedback", action="store_true", help="only with error feedback")
    options = options.parse_args()
    every = 4 if options.short else EVERY
    evaluate_at = range(0, 9 if options.short else BATCHES + 1, every)
    experiment = Experiment(
        "local_laperm",
        options,
        devices=DEVICES,
        images=IMAGES,
        sync_periods=SYNC_PERIODS,
        adam=1e-3,
    )
    dataset = data.load("mnist", options.data_dir)
    on_device, sizes = mnist(dataset), {}
    for seed, k in itertools.product(experiment.seeds, options.only):
        for name, m in [*FEEDBACK.items()][options.feedback :]:
            averaging, local = (
                p2t.laperm(optax.adam(1e-3), k, error_feedback=m, average_over=axis_name)
                for axis_name in WAYS.values()
            )
            run = fit(local, dataset, on_device, seed, evaluate_at)
            experiment.note(LOCAL.format(k) + name, seed, run, "flax")
            experiment.fit(
                GRADIENTS.format(k) + name, NETWORK, averaging, on_device, seed,
                evaluate_at=evaluate_at, batch_size=DEVICES * IMAGES,
            )  # fmt: skip
            for tx, (way, axis_name) in zip((averaging, local), WAYS.items(), strict=True):
                always, in_branch = size_of_step(tx, axis_name, dataset, on_device)
                size = {"every step": always, "synchronization": in_branch}
                sizes[way.format(k) + name] = size
    experiment.finish(sizes)


def tables(record: Record):
    rows = []
    for (feedback, _), k in itertools.product(FEEDBACK.items(), SYNC_PERIODS):
        row = [f"{k}{feedback}"]
        for way in WAYS:
            name = way.format(k) + feedback
            size = record.measured(name) or {"every step": 0, "synchronization": 0}
            mean = size["every step"] + size["synchronization"] / k
            row += [spread(record.last(name)), f"{mean:,.0f}"]
        if record.runs(LOCAL.format(k) + feedback):
            rows.append(row)
    header = ["k", "gradients averaged in every step", "bytes per step",
              "weights averaged once in k steps", "bytes per step"]  # fmt: skip
    return {"local_laperm": table(header, rows)}


def overview(record: Record):
    return []  # the paper has no such experiment


def draw(record: Record):
    return {}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    main()
