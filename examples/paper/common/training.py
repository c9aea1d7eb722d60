"""Training as all experiments do it: data stay on the device, an epoch is one compiled call."""

import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from tqdm import tqdm

import p2t_jax as p2t

EVALUATION_BATCH = 1000
STATISTICS = "batch_stats"  # the collection of BatchNorm's running statistics


class Data(NamedTuple):
    """Images (uint8) and labels on the device, and how images are prepared for the network.

    `prepare(key, images)` makes what the network is given; `key` is None in evaluation.
    """

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array
    prepare: Callable[[Any, jax.Array], jax.Array]


class State(NamedTuple):
    """What a run is resumed from."""

    step: jax.Array  # mini-batches seen
    params: Any
    model_state: Any  # BatchNorm's statistics, or nothing
    opt_state: Any


class Run(NamedTuple):
    """A finished run: initial and final parameters, and what was measured on the way."""

    initial_params: Any
    params: Any  # exactly a permutation, if a P2T optimizer trained them
    state: State
    batches: np.ndarray  # mini-batches seen at each evaluation
    accuracy: np.ndarray  # on the test images
    seconds: float


def initial_state(model: Any, tx: Any, data: Data, seed: int, adapt: Any = None) -> State:
    """Initialize; `adapt(key, params)` may replace the initial weights, for instance prune them."""
    key, adapt_key = jax.random.split(jax.random.key(seed))
    variables = dict(model.init(key, data.prepare(None, data.test_images[:1])))
    params = variables.pop("params")
    if adapt is not None:
        params = adapt(adapt_key, params)
    return State(jnp.zeros((), jnp.int32), params, variables, tx.init(params))


def is_p2t(opt_state: Any) -> bool:
    """Whether there is a P2T optimizer in an Optax state."""
    states = (p2t.SynchronizeState, p2t.CyclePermutationState)
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, states))
    return any(isinstance(leaf, states) for leaf in leaves)


def exact(params: Any, opt_state: Any) -> Any:
    """The parameters to evaluate: exact permutations, under a P2T optimizer."""
    return p2t.permuted_params(opt_state, params) if is_p2t(opt_state) else params


def mini_batches(images: int, batch_size: int, seed: int, first: int, last: int) -> np.ndarray:
    """Indices of the mini-batches `first` to `last - 1`: every epoch takes a new order.

    Depends on the seed and the numbers of the mini-batches alone, so that a resumed run sees the
    same ones.
    """
    per_epoch = images // batch_size

    def epochs() -> Iterator[np.ndarray]:
        for epoch in range(first // per_epoch, -(-last // per_epoch)):
            order = np.random.default_rng([seed, epoch]).permutation(images)
            yield order[: per_epoch * batch_size].reshape(per_epoch, batch_size)

    start = first // per_epoch * per_epoch
    return np.concatenate([*epochs()])[first - start : last - start].astype(np.int32)


def training_chunk(
    model: Any,
    tx: Any,
    prepare: Any,
    observe: Callable[[Any, State], Any] = lambda updates, state: (),
    one_call: bool = True,
) -> Any:
    """Training on some mini-batches: (state, images, labels, indices, key) -> state, (loss, ...).

    `observe(updates, state)` is what to note down of each mini-batch besides its loss. In one
    compiled call, unless `one_call` is False: a call for each mini-batch.
    """

    def step(images: jax.Array, labels: jax.Array, key: jax.Array, state: State, indices: Any):
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        x = prepare(augment_key, images[indices])

        def loss_of(params: Any) -> Any:
            logits, model_state = model.apply(
                {"params": params, **state.model_state},
                x,
                train=True,
                mutable=list(state.model_state),
                rngs={"dropout": dropout_key},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[indices])
            return losses.mean(), model_state

        (loss, model_state), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = State(state.step + 1, params, dict(model_state), opt_state)
        return new, (loss, observe(updates, new))

    @functools.partial(jax.jit, donate_argnums=0)
    def scan(state: State, images: Any, labels: Any, indices: Any, key: Any) -> Any:
        return jax.lax.scan(functools.partial(step, images, labels, key), state, indices)

    single = jax.jit(step, donate_argnums=3)

    def loop(state: State, images: Any, labels: Any, indices: Any, key: Any) -> Any:
        parts = []
        for batch in indices:
            state, part = single(images, labels, key, state, batch)
            parts.append(part)
        return state, jax.tree.map(lambda *parts: jnp.stack(parts), *parts)

    return scan if one_call else loop


def evaluation(model: Any, prepare: Any, train_images: Any = None) -> Any:
    """(state, images, labels) -> accuracy; a compiled call for every `EVALUATION_BATCH` images.

    BatchNorm's running statistics are of the weights with which a P2T optimizer looks ahead. Those
    of the exact weights are computed on mini-batches of `train_images`, always the same.
    """

    @jax.jit
    def variables(state: State) -> Any:
        return {"params": exact(state.params, state.opt_state), **state.model_state}

    @jax.jit
    def with_statistics_of(variables: Any, key: jax.Array, images: jax.Array) -> Any:
        apply = functools.partial(model.apply, train=True, mutable=[STATISTICS])
        _, new = apply(variables, prepare(key, images), rngs={"dropout": key})
        return {**variables, **new}

    @jax.jit
    def right(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply(variables, prepare(None, images), train=False)
        return (logits.argmax(axis=-1) == labels).sum()

    def accuracy(state: State, images: jax.Array, labels: jax.Array) -> float:
        evaluated = variables(state)
        if STATISTICS in evaluated and is_p2t(state.opt_state):
            batches = np.random.default_rng(0).integers(len(train_images), size=(60, 64))
            for number, batch in enumerate(batches):
                key = jax.random.key(number)
                evaluated = with_statistics_of(evaluated, key, train_images[batch])
        parts = (slice(i, i + EVALUATION_BATCH) for i in range(0, len(images), EVALUATION_BATCH))
        return sum(int(right(evaluated, images[p], labels[p])) for p in parts) / len(images)

    return accuracy


class Checkpoints:
    """One run's latest state and measurements, saved by Orbax now and then and at its end."""

    def __init__(self, folder: Path, hyperparameters: Any, every_s: float = 60.0):
        self.folder, self.every_s = folder.absolute(), every_s
        self.hyperparameters = json.loads(json.dumps(hyperparameters, default=str))
        self.last = time.monotonic()

    def restore(self, state: State) -> Any:
        """(state, measurements) of an interrupted run with the same hyperparameters, or None."""
        if not (self.folder / "hyperparameters.json").exists():
            return None
        if json.loads((self.folder / "hyperparameters.json").read_text()) != self.hyperparameters:
            print(f"{self.folder} is of a run with other hyperparameters: starting anew.")
            shutil.rmtree(self.folder)
            return None
        with ocp.CheckpointManager(self.folder / "orbax") as manager:
            if manager.latest_step() is None:
                return None
            saved = manager.restore(
                manager.latest_step(),
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(state), measured=ocp.args.JsonRestore()
                ),
            )
        return saved.state, saved.measured

    def save(self, state: State, measured: Any, now: bool = False) -> None:
        """Save, if `now` or if enough time has passed."""
        if not now and time.monotonic() - self.last < self.every_s:
            return
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        with ocp.CheckpointManager(self.folder / "orbax", options=options) as manager:
            manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), measured=ocp.args.JsonSave(measured)
                ),
            )
        (self.folder / "hyperparameters.json").write_text(json.dumps(self.hyperparameters))
        self.last = time.monotonic()


def fit(
    model: Any,
    tx: Any,
    data: Data,
    start: State,
    *,
    evaluate_at: Sequence[int],
    seed: int,
    batch_size: int = 64,
    description: str = "",
    checkpoints: Checkpoints | None = None,
    one_call: bool = True,
) -> Run:
    """Train from `start` and evaluate on the way.

    Args:
        model: a Flax module called with `train=True` or `False`.
        tx: the optimizer that `start.opt_state` is of.
        data: what to train and test on.
        start: where to start; `start.step` counts, so that a second phase goes on counting.
        evaluate_at: mini-batches before each evaluation, ascending; 0 is before training, and the
            last ends it.
        seed: of the order of the images, of augmentation and dropout.
        batch_size: images in a mini-batch.
        description: for the progress bar.
        checkpoints: where to resume from and to save to.
        one_call: whether to train up to the next evaluation in one compiled call.

    Returns:
        The finished run.
    """
    chunk = training_chunk(model, tx, data.prepare, one_call=one_call)
    accuracy_of = evaluation(model, data.prepare, data.train_images)
    key = jax.random.key(seed)
    initial_params = jax.tree.map(np.asarray, start.params)
    state = jax.tree.map(jnp.array, start)  # its buffers are given away below
    measured: dict[str, Any] = {"batches": [], "accuracy": [], "seconds": 0.0}
    resumed = checkpoints.restore(state) if checkpoints else None
    if resumed:
        state, measured = resumed
    done, steps = int(state.step), evaluate_at[-1]
    with tqdm(total=steps, initial=done, desc=description, unit="batch", mininterval=1) as bar:
        for upto in evaluate_at[len(measured["batches"]) :]:
            began = time.perf_counter()
            if upto > done:
                batches = mini_batches(len(data.train_images), batch_size, seed, done, upto)
                state, _ = chunk(state, data.train_images, data.train_labels, batches, key)
            accuracy = accuracy_of(state, data.test_images, data.test_labels)
            measured["batches"].append(upto)
            measured["accuracy"].append(accuracy)
            measured["seconds"] += time.perf_counter() - began
            bar.set_postfix(accuracy=f"{accuracy:.2%}", refresh=False)
            bar.update(upto - done)
            done = upto
            if checkpoints:
                checkpoints.save(state, measured, now=done == steps)
    return Run(
        initial_params,
        exact(state.params, state.opt_state),
        state,
        np.array(measured["batches"]),
        np.array(measured["accuracy"]),
        measured["seconds"],
    )
