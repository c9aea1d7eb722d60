"""Section 5.2.2: a VGG-style network on CIFAR-10, 1,000 epochs (Figure 12).

    python examples/paper/vgg.py --data-dir DIR [--sync-period 10]

LAPerm without any regularization, Adam with L2 and dropout. Wants an accelerator: without one,
`--train-images 5000 --epochs 26` is a run of 2,028 mini-batches.
"""

import optax

import p2t_jax as p2t
from common import cifar, models
from common.experiment import Experiment, parser

PAPER = {"LAPerm, k = 10": "90.03 % (best)", "Adam, regularized": "below LAPerm (Figure 12)"}


def main():
    options = parser(__doc__)
    cifar.add_options(options, epochs=1000)
    options = options.parse_args()
    experiment = Experiment(
        "vgg", options, batch_size=cifar.BATCH, l2=1e-4, dropout=(0.2, 0.3, 0.4),
        sync_periods=options.sync_period, learning_rate="1e-3, divided by 10 at epochs 500, 700",
        train_images=options.train_images,
    )  # fmt: skip
    data = cifar.load(options)
    adam = optax.adam(cifar.divided_by_10_at([500, 700], len(data.train_images) // cifar.BATCH))
    model = models.VGG()
    runs = {f"LAPerm, k = {k}": (model, p2t.laperm(adam, k)) for k in options.sync_period}
    if not options.no_adam:
        regularized = optax.chain(cifar.l2(1e-4), adam)
        runs["Adam, regularized"] = (models.VGG(dropout=(0.2, 0.3, 0.4)), regularized)
    cifar.compare(experiment, data, runs, PAPER)


if __name__ == "__main__":
    main()
