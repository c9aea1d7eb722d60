"""Beyond the paper: how good are networks of a few values a neuron, and how small?

    python examples/paper/few_values.py --data-dir DIR --search TRIALS [--only NAME ...]
    python examples/paper/few_values.py --data-dir DIR [--seeds 5] [--only NAME ...]
    python examples/paper/few_values.py --data-dir DIR --on VGG --seeds 1
    python examples/paper/few_values.py --data-dir DIR --on ViT --seeds 3

LAPerm with error feedback (k = 10) from 2, 3, 4, 8, 16 and as many values as weights, beside Adam
with free weights, with binary weights and ternary ones (straight-through estimators in the manner
of Rastegari et al., 2016, and Li & Liu, 2016), and with Qwix's quantization-aware training. Qwix is
left out where it is not installed (pip install qwix).

784-500-300-10 on MNIST and Fashion-MNIST, 3,000 mini-batches for each. `--search` looks for Adam's
learning rate, its last value and b1, with equally many trials for each, on 50,000 training images
of MNIST, judged by the other 10,000. The VGG-style network and the vision transformer have the
learning rates of vgg.py and transformer.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
import transformer
import vgg
from common import cifar, data, figures, models, training
from common.experiment import Experiment, mnist, parser
from common.records import Record, spread, table
from common.search import ADAM, search_mnist, search_table, searched, trials, winner
from p2t_jax import plots

BATCHES, EVERY, BATCH, SYNC_PERIOD = 3000, 100, 64, 10
SEARCH = "few_values_search"  # its record
VALUES = {f"LAPerm, {v} values": v for v in (2, 3, 4, 8, 16)} | {"LAPerm, free": None}
QWIX = {f"Adam, Qwix, {bits} bits": bits for bits in (2, 3, 4)}
CONTENDERS = (*VALUES, "Adam, free", "Adam, binary", "Adam, ternary", *QWIX)
FAMILIES = (  # with colour and marker
    ("LAPerm", plots.COLORS[figures.FEEDBACK], "o"),
    ("Adam, free", plots.COLORS["Adam"], "s"),
    ("Adam, binary", "black", "v"),
    ("Adam, ternary", "black", "^"),
    ("Adam, Qwix", "0.5", "D"),
)
MLPS = {"MNIST": "mnist", "Fashion-MNIST": "fashion_mnist"}
OTHERS = {  # and what they are trained with unless told
    "VGG": ("LAPerm, 2 values", "LAPerm, 3 values", "LAPerm, 16 values", "Adam, free"),
    "ViT": ("LAPerm, 3 values", "LAPerm, 16 values", "Adam, free"),
}


# Weights of few bits, by a straight-through estimator


def binary(w, axes):
    """The signs of the weights of each neuron, times their mean size (Rastegari et al., 2016)."""
    size = abs(w).mean(axes, keepdims=True)
    return jnp.where(w < 0, -size, size)


def ternary(w, axes):
    """Zero for small weights; the signs of the others, times their mean size (Li & Liu, 2016)."""
    large = abs(w) > 0.7 * abs(w).mean(axes, keepdims=True)
    size = jnp.where(large, abs(w), 0).sum(axes, keepdims=True)
    return jnp.sign(w) * large * size / large.sum(axes, keepdims=True).clip(1)


class StraightThrough(NamedTuple):
    """A model that computes with quantized weights; free ones get their gradients unchanged."""

    model: Any
    quantize: Callable[..., jax.Array]
    vectors: Any

    def init(self, *args):
        return self.model.init(*args)

    def apply(self, variables, *args, **options):
        def used(w, axes):
            if axes is None:
                return w
            return jax.lax.stop_gradient(self.quantize(w, axes)) + (w - jax.lax.stop_gradient(w))

        params = jax.tree.map(used, variables["params"], self.vectors)
        return self.model.apply(variables | {"params": params}, *args, **options)


def quantized(model, name, vectors):
    """The model as a contender computes with it."""
    if name in QWIX:
        import qwix

        rule = qwix.QtRule(module_path=".*", weight_qtype=f"int{QWIX[name]}")
        return qwix.quantize_model(model, qwix.QtProvider([rule]))
    rules = {"Adam, binary": binary, "Adam, ternary": ternary}
    return StraightThrough(model, rules[name], vectors) if name in rules else model


def bits_per_weight(name, params, vectors):
    """As codes of whole bits; a neuron's scale, a layer's values and all else are of 32 bits."""
    few = {"Adam, binary": 1, "Adam, ternary": 2} | QWIX
    values = VALUES.get(name)
    bits = few.get(name) or (math.ceil(math.log2(values)) if values else 32)

    def stored(w, axes):
        if axes is None:
            return 32 * w.size
        neurons = w.size // math.prod(w.shape[axis] for axis in axes)
        return bits * w.size + 32 * (neurons if name in few else values or 0)

    total = sum(jax.tree.leaves(jax.tree.map(stored, params, vectors)))
    return round(total / sum(w.size for w in jax.tree.leaves(params)), 4)


# Training


class Task(NamedTuple):
    """A network and what it learns, and how long."""

    model: Any
    images: training.Data
    adam: Any
    steps: int
    every: int
    batch_size: int = BATCH
    one_call: bool = True

    def vectors(self):
        """Where the weight vectors are, found by tracing the network."""
        x = self.images.prepare(None, self.images.test_images[:2])
        params = jax.eval_shape(self.model.init, jax.random.key(0), x)["params"]
        return p2t.infer_vectors(lambda p, x: self.model.apply({"params": p}, x), params, x)

    def contender(self, name, seed):
        """Model, optimizer, and the state that training starts from."""
        vectors, tx = self.vectors(), self.adam
        if name in VALUES:
            tx = p2t.laperm(tx, SYNC_PERIOD, error_feedback=1.0, vectors=vectors)
        model = quantized(self.model, name, vectors)
        initializer = p2t.initializers.kaiming(values=VALUES.get(name))

        def draw_weights(key, params):
            return p2t.reinitialize(key, params, initializer, vectors=vectors)

        return model, tx, training.initial_state(model, tx, self.images, seed, adapt=draw_weights)


def mlp(images, rate, last_rate, b1):
    """784-500-300-10; Adam's learning rate falls exponentially to its last."""
    adam = optax.adam(optax.exponential_decay(rate, BATCHES, last_rate / rate), b1=b1)
    return Task(models.MLP((500, 300, 10)), images, adam, BATCHES, EVERY)


def task(title, name, options):
    """What a contender is trained on."""
    if title == "VGG":
        images = cifar.load(options)
        steps = cifar.steps_of(options, images)
        adam = optax.adam(cifar.divided_by_10(vgg.DROPS, steps))
        every = steps // options.epochs
        one_call = jax.default_backend() != "cpu"  # as in common/cifar.py
        return Task(models.VGG(), images, adam, steps, every, cifar.BATCH, one_call)
    if title == "ViT":
        images = mnist(data.load("fashion_mnist", options.data_dir))
        return Task(
            transformer.NETWORK, images, transformer.adam(0, **transformer.ADAM),
            transformer.BATCHES, transformer.EVERY, transformer.BATCH,
        )  # fmt: skip
    return mlp(mnist(data.load(MLPS[title], options.data_dir)), **hyperparameters(options)[name])


def hyperparameters(options):
    """The best of each contender; the usual ones before there was a search."""
    record = searched(SEARCH, options.output_dir)
    return {
        name: winner(record, name)["hyperparameters"] if trials(record, name) else ADAM
        for name in CONTENDERS
    }


def prepared(name, found, images, seed):
    """As a search trains it."""
    return mlp(images, **found).contender(name, seed)


def present(names):
    """Without those that need Qwix, where it is not installed."""
    try:
        import qwix  # noqa: F401
    except ImportError:
        left_out = [name for name in names if name in QWIX]
        if left_out:
            print(f"Qwix is not installed; left out: {', '.join(left_out)}")
        return [name for name in names if name not in QWIX]
    return list(names)


def main():
    options = parser(__doc__, seeds=5)
    options.add_argument("--search", type=int, metavar="TRIALS", help="search hyperparameters")
    options.add_argument("--only", nargs="+", choices=CONTENDERS, help="only these contenders")
    options.add_argument(
        "--on", nargs="+", choices=[*MLPS, *OTHERS], default=[*MLPS], help="only these tasks"
    )
    options.add_argument("--epochs", type=int, default=10, help="of VGG")
    options = options.parse_args()
    if options.search:
        names = present(options.only or CONTENDERS)
        return search_mnist(SEARCH, options, BATCHES, prepared, names)
    experiment = Experiment(
        "few_values", options,
        sync_period=SYNC_PERIOD, vgg_epochs=options.epochs, runs=hyperparameters(options),
    )  # fmt: skip
    stored = {}
    for title in options.on:
        for name in present(options.only or OTHERS.get(title, CONTENDERS)):
            made = task(title, name, options)
            evaluate_at = range(0, made.steps + 1, made.every)
            if options.short:
                evaluate_at = range(0, 5, 2)
            for seed in experiment.seeds:
                model, tx, start = made.contender(name, seed)
                run = experiment.fit(
                    f"{title}, {name}", model, tx, made.images, seed,
                    start=start, evaluate_at=evaluate_at, batch_size=made.batch_size,
                    one_call=made.one_call, vectors=made.vectors(),
                )  # fmt: skip
            stored[f"{title}, {name}"] = bits_per_weight(name, run.params, made.vectors())
    experiment.finish(stored)


# What the records show


def bits_packed(record, run):
    """What `pack` needed for each parameter, given the initial weights; None if it does not."""
    return next((r.get("bits per weight, stored") for r in record.runs(run)), None)


def tables(record: Record):
    def sizes(title, made_by):
        run = f"{title}, {made_by}"
        stored = record.measured(run), bits_packed(record, run)
        return [f"{bits:.2f}" if bits else "" for bits in stored]

    rows = [
        [made_by, *sizes("MNIST", made_by)]
        + [spread(record.last(f"{title}, {made_by}")) for title in MLPS]
        for made_by in CONTENDERS
    ]
    bits = ["bits a parameter", "by `pack`"]
    header = [f"after {BATCHES:,} mini-batches", *bits, *MLPS]
    others = [
        [f"{title}, {name}", *sizes(title, name), spread(record.last(f"{title}, {name}"))]
        for title, names in OTHERS.items()
        for name in names
    ]
    return {
        "few_values": table(header, rows),
        "few_values-others": table(["", *bits, "test accuracy"], others),
        "few_values-search": search_table(
            Record.load(SEARCH), CONTENDERS, "default hyperparameters"
        ),
    }


def overview(record: Record):
    return [
        [f"few values, {title}, {name}", "", record.last(f"{title}, {name}")]
        for title in MLPS
        for name in ("LAPerm, 2 values", "LAPerm, 3 values", "LAPerm, 16 values", "Adam, free")
    ]


def draw(record: Record):
    """Accuracy against bits: of codes, and of LAPerm also as `pack` stores it."""
    figure, axs = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    series = [(family, color, marker, color, record.measured) for family, color, marker in FAMILIES]
    family, color, marker = FAMILIES[0]
    series.append((family, color, marker, "none", lambda run: bits_packed(record, run)))
    for ax, letter, title in zip(axs, "ab", MLPS, strict=True):
        for family, color, marker, face, bits_of in series:
            runs = [f"{title}, {name}" for name in CONTENDERS if name.startswith(family)]
            points = [(bits_of(run), record.last(run)) for run in runs if bits_of(run)]
            if points:
                mean = np.array([found.mean() for _, found in points])
                ends = np.array([(found.min(), found.max()) for _, found in points]).T
                label = family if face == color else f"{family}, by pack"
                style = {"fmt": marker, "color": color, "mfc": face, "capsize": 3, "label": label}
                ax.errorbar([bits for bits, _ in points], mean, yerr=abs(ends - mean), **style)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        figures.percent(ax.yaxis, decimals=1)
        ax.set(title=f"({letter}) {title}", xlabel="bits a parameter", ylabel="test accuracy")
        ax.grid(alpha=0.3)
    figure.legend(*axs[0].get_legend_handles_labels(), loc="outside right center")
    return {"accuracy": figure}


if __name__ == "__main__":
    main()
