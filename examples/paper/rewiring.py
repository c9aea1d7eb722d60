"""Section 5.2.3: rewiring a network of which 90 % is pruned (Figures 13 to 15).

    python examples/paper/rewiring.py --data-dir DIR [--seeds 3]

Experiment 1 trains it by LAPerm over Adam for 1,500 mini-batches, which moves connections, and goes
on with Adam, which inherits all inner states, the zeros fixed. Experiment 2 trains the same weights
by Adam alone, the zeros fixed. The paper's k is 30; a k of 300 is tried as well.
"""

import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import data, models, training
from common.experiment import Experiment, mnist, parser
from p2t_jax import plots

KEEP, SYNC_PERIODS, BATCH = 0.1, (30, 300), 64
RANDOM = "Adam (random)"
PAPER = {
    RANDOM: "below the reconnected one after epoch 25",
    "LAPerm, k = 30": "about 60 %",
    "Adam (reconnected, k = 30)": "above the random one",
}


def zeros(params):
    """How many weights are zero, in each layer."""
    return {name: int((layer["kernel"] == 0).sum()) for name, layer in params.items()}


def moved_zeros(before, after):
    """The part of the zeros that is in another place than before."""
    pairs = [(before[name]["kernel"] == 0, after[name]["kernel"] == 0) for name in before]
    return float(sum((b & ~a).sum() for b, a in pairs) / sum(b.sum() for b, _ in pairs))


def main():
    options = parser(__doc__, seeds=3).parse_args()
    mnist_data = mnist(data.load("mnist", options.data_dir))
    per_epoch = len(mnist_data.train_images) // BATCH
    epochs, switch, early, every = (48, 1500, 2700, 50)
    if options.short:
        epochs, switch, early, every = 1, 60, 120, 30
    steps = 120 if options.short else epochs * per_epoch
    learning_rate = optax.piecewise_constant_schedule(
        1e-3, {28 * per_epoch: 0.1, 38 * per_epoch: 0.1}
    )
    experiment = Experiment(
        "rewiring", options, keep=KEEP, sync_periods=SYNC_PERIODS, epochs=epochs, switch=switch,
        batch_size=BATCH, learning_rate="1e-3, divided by 10 at epochs 28 and 38",
    )  # fmt: skip
    model = models.MLP((500, 300, 10))
    fixed_zeros = optax.chain(optax.adam(learning_rate), p2t.keep_zeros())

    def pruned(key, params):
        return p2t.prune(key, params, KEEP)

    moved = {k: [] for k in SYNC_PERIODS}
    weights = {}
    for seed in experiment.seeds:

        def fit(name, tx, start, seed=seed, **until):
            return experiment.fit(name, model, tx, mnist_data, seed, start=start, **until)

        for k in SYNC_PERIODS:
            laperm = p2t.laperm(optax.adam(learning_rate), k)
            start = training.initial_state(model, laperm, mnist_data, seed, adapt=pruned)
            phase_1 = fit(f"LAPerm, k = {k}", laperm, start, steps=switch, every=every)
            # All inner states: the momenta, and the count that the learning rate depends on.
            inherited = (phase_1.state.opt_state[0], fixed_zeros.init(phase_1.params)[1])
            state = phase_1.state._replace(params=phase_1.params, opt_state=inherited)
            phase_2 = fit(
                f"Adam (reconnected, k = {k})", fixed_zeros, state, steps=steps, every=5 * every
            )
            assert zeros(start.params) == zeros(phase_1.params) == zeros(phase_2.params)
            assert moved_zeros(phase_1.params, phase_2.params) == 0
            moved[k].append(moved_zeros(start.params, phase_1.params))
            weights[f"(b) LAPerm (k = {k}), then Adam"] = phase_2.params

        start = start._replace(opt_state=fixed_zeros.init(start.params))
        random = fit(RANDOM, fixed_zeros, start, steps=steps, every=5 * every)
        assert moved_zeros(start.params, random.params) == 0

    draw_curves(experiment, switch, early)
    draw_weights(
        experiment, {"(a) random weights": start.params, **weights, "(c) Adam": random.params}
    )
    last = {
        run["optimizer"]: experiment.curves(run["optimizer"])[1][:, -1] for run in experiment.runs
    }
    experiment.finish(
        PAPER,
        **{
            f"zeros moved in phase 1, k = {k}": f"{np.mean(moved[k]):.1%}; afterwards none"
            for k in SYNC_PERIODS
        },
        **{
            f"reconnected (k = {k}) minus random, by seed": ", ".join(
                f"{100 * d:+.2f} %" for d in last[f"Adam (reconnected, k = {k})"] - last[RANDOM]
            )
            for k in SYNC_PERIODS
        },
        **{"zeros in each layer, before and after": zeros(start.params)},
    )


def draw_curves(experiment, switch, early):
    """Figure 15: the whole training, and its beginning."""
    figure, (whole, beginning) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for ax in (whole, beginning):
        for k in SYNC_PERIODS:
            phases = {f"LAPerm, k = {k}": 0, f"Adam (reconnected, k = {k})": switch}
            curves = zip(*map(experiment.curves, phases), strict=True)
            both = [np.concatenate(parts, axis=-1) for parts in curves]
            plots.learning_curve(*both, phases=phases, ax=ax)
        plots.learning_curve(*experiment.curves(RANDOM), label=RANDOM, ax=ax)
    whole.set(ylim=(0.95, 0.985), title="(a) the whole training")
    beginning.set(xlim=(0, early), ylim=(0.2, 1), title=f"(b) the first {early:,} mini-batches")
    experiment.save_picture(figure, "accuracy")


def draw_weights(experiment, weights):
    """Figures 13 and 14: the first layer's connection pattern, whole and zoomed in."""
    windows = {
        "connections": {},
        "connections-zoom": {"rows": slice(100, 200), "columns": slice(100, 300)},
    }
    for what, window in windows.items():
        figure, axs = plt.subplots(
            1, len(weights), figsize=(5 * len(weights), 4.5), layout="constrained"
        )
        for ax, (title, params) in zip(axs, weights.items(), strict=True):
            plots.connections(np.asarray(params["Dense_0"]["kernel"]), ax=ax, **window)
            ax.set_title(title)
        experiment.save_picture(figure, what)


if __name__ == "__main__":
    main()
