"""Section 5.2.1: ResNet20 on CIFAR-10 by LAPerm and by Adam, 200 epochs (Figure 11).

    python examples/paper/resnet20.py --data-dir DIR [--sync-period 10 400 1000]

The paper calls k = 10 frustrating; `--sync-period` takes more than one. Wants an accelerator:
without one, `--train-images 5000 --epochs 26` is a run of 2,028 mini-batches.
"""

import optax

import p2t_jax as p2t
from common import cifar, models
from common.experiment import Experiment, parser

PAPER = {"LAPerm, k = 10": "87.41 % (best)", "Adam": "91.74 % (best)"}


def main():
    options = parser(__doc__)
    cifar.add_options(options, epochs=200)
    options = options.parse_args()
    experiment = Experiment(
        "resnet20", options, batch_size=cifar.BATCH, l2=1e-4, sync_periods=options.sync_period,
        learning_rate="1e-3, divided by 10 at epochs 80, 120, 160, 180",
        train_images=options.train_images,
    )  # fmt: skip
    data = cifar.load(options)
    rate = cifar.divided_by_10_at([80, 120, 160, 180], len(data.train_images) // cifar.BATCH)
    adam = optax.chain(cifar.l2(1e-4), optax.adam(rate))  # as in the original paper of ResNet
    model = models.ResNet20()
    runs = {f"LAPerm, k = {k}": (model, p2t.laperm(adam, k)) for k in options.sync_period}
    if not options.no_adam:
        runs["Adam"] = (model, adam)
    cifar.compare(experiment, data, runs, PAPER)


if __name__ == "__main__":
    main()
