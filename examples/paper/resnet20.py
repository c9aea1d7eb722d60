r"""Section 5.2.1: ResNet20 on CIFAR-10 by LAPerm and by Adam, 200 epochs (Figure 11).

    python examples/paper/resnet20.py --data-dir DIR [--epochs 200] [--sync-period 10 400]
        [--only NAME ...]

The paper finds k = 10 frustrating, its authors' follow-up uses 400 to 1,000. With fewer epochs the
learning rate falls earlier in proportion. Two runs at once without an accelerator:

    taskset -c 0 python examples/paper/resnet20.py --epochs 10 --sync-period 10 400 \
        --only "LAPerm, k = 10" Adam
    taskset -c 1 python examples/paper/resnet20.py --epochs 10 --sync-period 10 400 \
        --only "LAPerm, k = 400"
"""

import optax

from common import cifar, models
from common.experiment import Experiment
from common.records import Record

L2 = 1e-4  # as in the original paper of ResNet
DROPS = (0.4, 0.6, 0.8, 0.9)  # of the rate: at epochs 80, 120, 160 and 180 of 200
PAPER = {"LAPerm, k = 10": "87.41% (best)", "Adam": "91.74% (best)"}


def main():
    options = cifar.arguments(__doc__, epochs=200)
    experiment = Experiment(
        "resnet20", options, batch_size=cifar.BATCH, epochs=options.epochs, l2=L2,
        learning_rate=cifar.RATE, divided_by_10_after=DROPS,
    )  # fmt: skip
    data = cifar.load(options)
    steps = cifar.steps_of(options, data)
    adam = optax.chain(cifar.l2(L2), optax.adam(cifar.divided_by_10(DROPS, steps)))
    model = models.ResNet20()
    runs = {name: (model, tx) for name, tx in cifar.laperm_runs(options, adam, steps).items()}
    cifar.train(experiment, data, runs | {"Adam": (model, adam)})


def tables(record: Record):
    return cifar.tables(record, "resnet20", PAPER)


def overview(record: Record):
    return cifar.overview(record, "ResNet20", PAPER)


def draw(record: Record):
    paper = {
        "the paper's LAPerm, 200 epochs": ("LAPerm", 0.8741),
        "the paper's Adam, 200 epochs": ("Adam", 0.9174),
    }
    return cifar.draw(record, "ResNet20 on CIFAR-10", paper)


if __name__ == "__main__":
    main()
