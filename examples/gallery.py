"""Draw every picture of `p2t_jax.plots` from networks trained here, in about a minute.

    python examples/gallery.py [--output-dir docs/images]

The digits come with scikit-learn; nothing is downloaded.
"""

import argparse
import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.ticker import MaxNLocator
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import p2t_jax as p2t
from p2t_jax import plots
from p2t_jax.permutations import permutation_of

BATCH = 64
PHASE_2 = 210  # mini-batches by LAPerm before Adam takes over


class MLP(nn.Module):
    """Dense layers with ReLU, without biases."""

    features: tuple[int, ...]
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for i, features in enumerate(self.features):
            x = nn.relu(x) if i else x
            x = nn.Dense(features, use_bias=False, kernel_init=self.kernel_init)(x)
        return x


class CNN(nn.Module):
    """Three convolutions and two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = x[..., None]
        for features in (8, 16, 32):
            x = nn.avg_pool(nn.relu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def digits():
    """Digits in the format of MNIST: 20 x 20 pixels in the middle of 28 x 28."""
    data = load_digits()
    images = jax.image.resize(data.images / 16, (len(data.images), 20, 20), "bilinear")
    images = np.pad(np.clip(images, 0, 1), ((0, 0), (4, 4), (4, 4)))
    parts = train_test_split(images, data.target, test_size=0.25, random_state=0)
    return tuple(map(jnp.asarray, parts))


def loss(params, model, images, labels):
    logits = model.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(model, tx, params, data, steps, *, every=20, seed=0, state=None):
    """Train; return parameters, state, and (step, accuracy, params) of each evaluation."""
    state = tx.init(params) if state is None else state
    order = np.random.default_rng(seed).integers(len(data[0]), size=(steps, BATCH))
    history = [(0, float(accuracy(model, params, data)), params)]
    for start in range(0, steps, every):
        batches = order[start : start + every]
        params, state, now, reached = run(model, tx, params, state, data, batches)
        history.append((start + every, float(reached), now))
    return now, state, history


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(model, tx, params, state, data, batches):
    """Train on some batches; return parameters and state, exact parameters and their accuracy."""

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(loss)(params, model, data[0][batch], data[2][batch])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), batches)
    steps = [optax.tree.get(state, name) for name in ("sync_step", "sgperm_step")]
    now = p2t.permuted_params(state, params) if steps != [None, None] else params
    return params, state, now, accuracy(model, now, data)


def accuracy(model, params, data):
    return (model.apply(params, data[1]).argmax(axis=-1) == data[3]).mean()


def curve(history):
    steps, accuracies, _ = zip(*history, strict=True)
    return steps, accuracies


def kernel(params, layer):
    return np.asarray(params["params"][layer]["kernel"])


def adam(model, data, steps):
    """A network trained by Adam."""
    params = model.init(jax.random.key(0), data[0][:1])
    return train(model, optax.adam(1e-3), params, data, steps, every=steps)[0]


def logistic_regression(data, seed):
    """Section 5.1.1: histories by SGPerm and by Adam, from the same uniform weights."""
    model = MLP((10,), nn.initializers.he_uniform())
    initial = model.init(jax.random.key(seed), data[0][:1])
    sgperm = p2t.sgperm(
        seed,
        aggressiveness=p2t.geometric_schedule(0.15, rate=0.99, limit=0.005),
        partition_ratio=p2t.geometric_schedule(0.05, rate=1 / 0.995, limit=0.1),
    )
    return [
        train(model, tx, initial, data, 400, every=4, seed=seed)[2]
        for tx in (sgperm, optax.adam(1e-3))
    ]


def rewiring(data):
    """Section 5.2.3: a pruned network; LAPerm, then Adam with fixed zeros; Adam alone."""
    model = MLP((200, 100, 10))
    initial = p2t.prune(jax.random.key(1), model.init(jax.random.key(0), data[0][:1]), keep=0.1)
    adam, keep_zeros = optax.adam(1e-3), p2t.keep_zeros()
    fixed_zeros = optax.chain(adam, keep_zeros)
    laperm = p2t.laperm(adam, sync_period=30)
    rewired, state, first = train(model, laperm, initial, data, PHASE_2, every=30)
    inherited = (state[0], keep_zeros.init(rewired))
    both, _, second = train(
        model, fixed_zeros, rewired, data, 600 - PHASE_2, every=30, seed=1, state=inherited
    )
    alone, _, other = train(model, fixed_zeros, initial, data, 600, every=30)
    history = first + [(PHASE_2 + step, accuracy, w) for step, accuracy, w in second[1:]]
    return [kernel(params, "Dense_0") for params in (initial, both, alone)], history, other


def recommendations(data):
    """37 weights of a neuron of the logistic model, and the gradient of each."""
    model = MLP((10,), nn.initializers.he_uniform())
    params = model.init(jax.random.key(0), data[0][:1])
    gradient = kernel(jax.grad(loss)(params, model, data[0], data[2]), "Dense_0")[:, 0]
    subset = np.random.default_rng(0).choice(np.flatnonzero(gradient), 37, replace=False)
    return kernel(params, "Dense_0")[subset, 0], gradient[subset]


def sgperm_step(vector, gradient, alpha):
    """The weights of a vector after one step of SGPerm, all of them in one subset."""
    vector = jnp.asarray(vector)
    tx = p2t.cycle_permutation(0, alpha, 1.0, vectors=0)
    _, state = tx.update(-jnp.asarray(gradient), tx.init(vector), vector)
    return p2t.permuted_params(state, vector)


def laperm_period(data):
    """One neuron of 128 inputs before and after a synchronization period of LAPerm."""
    model = MLP((128, 10))
    params = model.init(jax.random.key(0), data[0][:1])
    tx = p2t.laperm(optax.adam(1e-3), sync_period=20)
    history = train(model, tx, params, data, 40, every=20)[2]
    return [kernel(params, "Dense_1")[:, 0] for _, _, params in history[1:]]


def subplots(rows, columns, width, height, **options):
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


def color_bar(figure, axs, **options):
    """Of the last image on the last of these Axes, with few ticks."""
    image = np.ravel(axs)[-1].images[-1]
    return figure.colorbar(image, ax=axs, ticks=MaxNLocator(3, symmetric=True), **options)


def draw_profile(weights):
    figure, (left, right) = subplots(1, 2, 4.2, 3, sharey=True)
    plots.profile(weights, sort=False, ax=left).set_title("(a) unsorted")
    plots.profile(weights, ax=right).set(title="(b) sorted", ylabel="")
    return figure


def draw_partition(vector):
    figure, (left, right) = subplots(1, 2, 4, 3.4)
    subset = np.random.default_rng(0).choice(784, 37, replace=False)
    plots.weight_vector(vector, (28, 28), subset=subset, ax=left).set_title("(a) as a picture")
    color_bar(figure, left)
    plots.profile(vector, subset=subset, ax=right).set_title("(b) sorted")
    return figure


def draw_chords(vector, gradient, laperm):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 6.3), layout="constrained", width_ratios=(3.5, 6)
    )
    alpha = 0.15
    after = sgperm_step(vector, gradient, alpha)
    plots.chords(
        vector,
        permutation_of(after, vector, vectors=0),
        recommendations=gradient,
        permissible=plots.permissible_movements(vector, gradient, alpha),
        ax=left,
    ).set_title("(a) A step of SGPerm, 37 weights")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=1, frameon=False)
    before, after = laperm
    source = permutation_of(after, before, vectors=0)
    plots.chords(before, source, ax=right).set_title("(b) A period of LAPerm, k = 20, 128 weights")
    return figure


def draw_weight_vectors(before, after):
    figure, axs = subplots(2, 10, 1, 1.1)
    for row, weights in zip(axs, (before, after), strict=True):
        for digit, ax in enumerate(row):
            plots.weight_vector(weights[:, digit], (28, 28), ax=ax, vmin=-0.09, vmax=0.09)
    for digit, ax in enumerate(axs[0]):
        ax.set_title(str(digit))
    axs[0, 0].set_ylabel("before")
    axs[1, 0].set_ylabel("after")
    color_bar(figure, axs, label="weight")
    return figure


def draw_connections(matrices):
    titles = ("pruned", "LAPerm, then Adam", "Adam")
    figure, axs = subplots(2, 3, 3.2, 2.8)
    limit = np.quantile(np.abs(matrices[1][matrices[1] != 0]), 0.98)
    for i, (title, weights) in enumerate(zip(titles, matrices, strict=True)):
        for ax, letter in zip(axs[:, i], ("abc"[i], "def"[i]), strict=True):
            plots.connections(weights, ax=ax, vmin=-limit, vmax=limit)
            ax.set_title(f"({letter}) {title if letter in 'abc' else 'closer'}")
        axs[1, i].set(xlim=(50, 150), ylim=(400, 300))
    for ax in axs[:, 1:].flat:
        ax.set_ylabel("")
    for ax in axs[0]:
        ax.set_xlabel("")
    color_bar(figure, axs, label="weight", extend="both")
    return figure


def draw_learning_curves(logistic, both, alone):
    figure, (left, middle, right) = subplots(1, 3, 4, 3.4, sharey=True)
    for name, histories in zip(("SGPerm", "Adam"), zip(*logistic, strict=True), strict=True):
        batches, accuracies = zip(*map(curve, histories), strict=True)
        plots.learning_curve(batches[0], accuracies, label=name, ax=left)
    left.set_title("(a) Logistic regression, 3 runs")
    for ax in (middle, right):
        phases = {"LAPerm": 0, "Adam after LAPerm": PHASE_2}
        plots.learning_curve(*curve(both), phases=phases, ax=ax)
        plots.learning_curve(*curve(alone), label="Adam", ax=ax).set_ylabel("")
    left.set_ylabel("test accuracy")
    middle.set_title("(b) 90% pruned")
    right.set(title="(c) 90% pruned, the first mini-batches", xlim=(0, 2 * PHASE_2))
    return figure


def draw_movement(data):
    """What has moved, every 20 mini-batches: three layers trained by LAPerm."""
    model = MLP((200, 100, 10))
    params = model.init(jax.random.key(0), data[0][:1])
    tx = p2t.laperm(optax.adam(1e-3), sync_period=10, error_feedback=1.0)
    steps, _, trained = zip(*train(model, tx, params, data, 400)[2], strict=True)
    history = [p2t.metrics.movement(now, params) for now in trained]
    figure, axs = subplots(1, 4, 3, 2.8)
    for ax, what in zip(axs, ("moved", "change", "correlation", "rank_distance"), strict=True):
        plots.movement(steps, history, what=what, ax=ax)
    for ax in axs[1:]:
        ax.get_legend().remove()
    return figure


def film(history):
    """The first five neurons side by side, as they move."""
    steps, _, params = zip(*history, strict=True)
    neurons = np.stack([kernel(p, "Dense_0")[:, :5] for p in params])
    tiles = neurons.reshape(-1, 28, 28, 5).transpose(0, 1, 3, 2)
    gap = ((0, 0), (1, 1), (0, 0), (1, 1))
    frames = np.pad(tiles, gap, constant_values=np.nan).reshape(-1, 30, 150)
    figure = plt.figure(figsize=(4.5, 1.2))  # 3 pixels per weight, and a title
    ax = figure.add_axes((0, 0, 1, 0.75))
    animation = plots.animate(
        frames, (30, 150), batches=steps, interval=200, ax=ax, cmap=plt.get_cmap("RdBu_r", 16)
    )
    ax.set_axis_off()
    return animation


def save(figure, path):
    """A PNG of 256 colours: a third of the size, even of noise."""
    figure.set_dpi(90)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256).save(path, optimize=True)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("docs/images"))
    output_dir = parser.parse_args().output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    matplotlib.use("Agg")
    data = digits()

    mlp = adam(MLP((200, 100, 10)), data, 200)
    save(draw_profile(kernel(mlp, "Dense_0")), output_dir / "profile.png")
    smaller = [part[:, ::2, ::2] if part.ndim == 3 else part for part in data]
    cnn = adam(CNN(), smaller, 150)
    save(plots.profiles(cnn["params"])[0].figure, output_dir / "profiles.png")

    logistic = [logistic_regression(data, seed) for seed in range(3)]
    sgperm = logistic[0][0]
    before, after = (kernel(params, "Dense_0") for _, _, params in (sgperm[0], sgperm[-1]))
    save(draw_weight_vectors(before, after), output_dir / "weight_vectors.png")
    save(draw_partition(after[:, 0]), output_dir / "partition.png")
    film(sgperm[:20]).save(output_dir / "weights.gif", writer="pillow", dpi=100)
    print(output_dir / "weights.gif")

    save(draw_movement(data), output_dir / "movement.png")

    save(draw_chords(*recommendations(data), laperm_period(data)), output_dir / "chords.png")

    matrices, both, alone = rewiring(data)
    save(draw_connections(matrices), output_dir / "connections.png")
    save(draw_learning_curves(logistic, both, alone), output_dir / "learning_curves.png")


if __name__ == "__main__":
    main()
