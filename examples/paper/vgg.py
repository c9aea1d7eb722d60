r"""Section 5.2.2: a VGG-style network on CIFAR-10, 1,000 epochs (Figure 12).

    python examples/paper/vgg.py --data-dir DIR [--epochs 1000] [--sync-period 10 10-782]
        [--only NAME ...]

LAPerm without any regularization; Adam with L2 and dropout as in the paper, and without. With fewer
epochs the learning rate falls earlier in proportion. Without an accelerator a few epochs are a
matter of hours; two runs at once, each on a core of its own, take no longer than one:

    taskset -c 0 python examples/paper/vgg.py --epochs 20 --sync-period 10 10-782 \
        --only "LAPerm, k = 10" "LAPerm, k = 10 to 782"
    taskset -c 1 python examples/paper/vgg.py --epochs 20 --sync-period 10 10-782 --only Adam
"""

import optax

from common import cifar, models
from common.experiment import Experiment
from common.records import Record

L2, DROPOUT, DROPS = 1e-4, (0.2, 0.3, 0.4), (0.5, 0.7)  # DROPS: of the rate, at epochs 500 and 700
PAPER = {"LAPerm, k = 10": "90.03% (best)", "Adam, regularized": "below LAPerm (Figure 12)"}


def main():
    options = cifar.arguments(__doc__, epochs=1000)
    experiment = Experiment(
        "vgg", options, batch_size=cifar.BATCH, epochs=options.epochs, l2=L2, dropout=DROPOUT,
        learning_rate=cifar.RATE, divided_by_10_after=DROPS,
    )  # fmt: skip
    data = cifar.load(options)
    steps = cifar.steps_of(options, data)
    adam = optax.adam(cifar.divided_by_10(DROPS, steps))
    runs = {
        name: (models.VGG(), tx) for name, tx in cifar.laperm_runs(options, adam, steps).items()
    }
    runs["Adam"] = (models.VGG(), adam)
    runs["Adam, regularized"] = (models.VGG(DROPOUT), optax.chain(cifar.l2(L2), adam))
    cifar.train(experiment, data, runs)


def tables(record: Record):
    return cifar.tables(record, "vgg", PAPER)


def overview(record: Record):
    return cifar.overview(record, "VGG-style network", PAPER)


def draw(record: Record):
    title = "The VGG-style network on CIFAR-10"
    return cifar.draw(record, title, {"the paper's LAPerm, 1,000 epochs": ("LAPerm", 0.9003)})


if __name__ == "__main__":
    main()
