"""Section 1.2: weight profiles before and after training, and how similar they are (Figures 1, 2).

    python examples/paper/weight_profiles.py --data-dir DIR

Adam trains the network of Section 5.1.2 for 10 epochs. Similarity is the fraction of the variance
of a layer's weights that the layer's mean profile explains: 1 if all neurons have the same sorted
weights. Without sorting it is close to 0: the information is in the order.
"""

import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import data, models
from common.experiment import Experiment, mnist, parser
from common.records import Record, table

EPOCHS = 10
LAYERS = ("784-500", "500-300", "300-10")
VIEWS = {  # what is drawn of the first two layers, and how it is sorted
    "before training, sorted": True,
    "after training": False,
    "after training, sorted": True,
}
QUANTILES = (0, 5, 50, 95, 100)  # per cent, over the neurons of a layer


def main():
    options = parser(__doc__).parse_args()
    experiment = Experiment("weight_profiles", options, batch_size=64, epochs=EPOCHS, Adam=1e-3)
    mnist_data = mnist(data.load("mnist", options.data_dir))
    per_epoch = 30 if options.short else len(mnist_data.train_images) // 64
    steps = per_epoch if options.short else EPOCHS * per_epoch

    similarity, arrays = {"before": [], "after": [], "after, not sorted": []}, {}
    for seed in experiment.seeds:
        run = experiment.fit(
            "Adam", models.MLP((500, 300, 10)), optax.adam(1e-3), mnist_data, seed,
            evaluate_at=range(0, steps + 1, per_epoch),
        )  # fmt: skip
        similarity["before"].append(by_layer(run.initial_params, sort=True))
        similarity["after"].append(by_layer(run.params, sort=True))
        similarity["after, not sorted"].append(by_layer(run.params, sort=False))
        arrays = arrays or quantiles(run)
    measured = {}
    for when, values in similarity.items():
        means = np.round(np.mean(values, axis=0), 4).tolist()
        measured[when] = dict(zip(LAYERS, means, strict=True))
    experiment.finish(measured, arrays)


def by_layer(params, sort):
    """The similarity of the profiles of every layer."""
    vectors = [np.transpose(layer["kernel"]) for layer in params.values()]
    return [float(p2t.profiles.profile_similarity(np.sort(w) if sort else w)) for w in vectors]


def quantiles(run):
    """Quantiles over a layer's neurons at every rank (sorted) or place (not), for the figure."""
    found = {}
    for i, layer in enumerate(LAYERS[:2]):
        for view, sort in VIEWS.items():
            params = run.params if "after" in view else run.initial_params
            vectors = np.transpose(params[f"Dense_{i}"]["kernel"])
            vectors = np.sort(vectors) if sort else vectors
            found[f"{layer}: {view}"] = np.percentile(vectors, QUANTILES, axis=0)
    return found


def tables(record: Record):
    rows = [
        [when, *(f"{record.measured(when)[layer]:.3f}" for layer in LAYERS)]
        for when in ("before", "after", "after, not sorted")
    ]
    return {"weight_profiles": table(["", *LAYERS], rows)}


def overview(record: Record):
    return []  # its subject is not accuracy


def draw(record: Record):
    """The first two layers before and after training, as they are (1a) and sorted (1b)."""
    figure, axs = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained", sharey="row")
    letters = iter("abcdef")
    for row, layer in zip(axs, LAYERS[:2], strict=True):
        for ax, (view, sort) in zip(row, VIEWS.items(), strict=True):
            least, low, median, high, most = record.array(f"{layer}: {view}")
            places = np.arange(len(median))
            ax.fill_between(places, least, most, color="0.85", linewidth=0, label="all neurons")
            band = {"color": "#56B4E9", "linewidth": 0, "label": "5% to 95% of them"}
            ax.fill_between(places, low, high, **band)
            ax.plot(places, median, color="black", linewidth=1, label="median")
            ax.set(title=f"({next(letters)}) {layer}: {view}", xlabel="rank" if sort else "place")
        row[0].set_ylabel("weight")
    axs[0, 0].legend(loc="upper left")
    return {"profiles": figure}


if __name__ == "__main__":
    main()
