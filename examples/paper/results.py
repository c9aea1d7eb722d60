"""Make every table and figure of the experiments' pages from the records of the runs.

    python examples/paper/results.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, figures are the files
docs/images/results/SCRIPT-WHAT.png. `--check` writes nothing and fails if a table is not what the
records give. Needs no data and takes seconds.
"""

import argparse
import importlib
import re
import sys
from pathlib import Path

import matplotlib as mpl

from common import figures
from common.records import Record, spread, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = [ROOT / "docs" / "results.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
OTHER_PAGES = ("docs/choosing.md", "docs/devices.md", "docs/index.md", "README.md")
PAGES = [*RESULTS, *(ROOT / page for page in OTHER_PAGES)]
PICTURES = ROOT / "docs" / "images" / "results"
SCRIPTS = (
    "logistic_regression", "fully_connected", "rewiring", "weight_agnostic", "weight_profiles",
    "initial_profiles", "vgg", "resnet20", "transformer", "local_laperm", "error_feedback",
    "rewiring_layers", "few_values",
)  # fmt: skip
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def all_tables():
    """Every table, in Markdown, by name."""
    tables, rows = {}, []
    for name in SCRIPTS:
        script, record = importlib.import_module(name), Record.load(name)
        tables |= script.tables(record)
        for experiment, paper, accuracies in script.overview(record):
            rows.append([experiment, paper, spread(accuracies), str(len(accuracies) or "")])
    header = ["experiment", "the paper", "ours, at the end", "seeds"]
    return tables | {
        "overview": table(header, rows),
        "cost": cost_table(),
        "readme": readme_table(),
        "home": readme_table(rows=5),
    }


def cost_table():
    """What permuting costs in accuracy: LAPerm with error feedback, without it, and Adam alone."""
    network, transformer, vgg, resnet = map(
        Record.load, ("error_feedback", "transformer", "vgg", "resnet20")
    )
    feedback, k = figures.FEEDBACK, ", k = 10"
    rows = [
        [f"784-500-300-10, {data}, all searched",
         *(network.last(f"{data}, {name}") for name in (f"{feedback}{k}", f"LAPerm{k}", "Adam"))]
        for data in ("MNIST", "Fashion-MNIST")
    ] + [
        [f"vision transformer, Fashion-MNIST, {which}",
         *(transformer.last(f"{name}{end}") for name in (feedback, "LAPerm", "Adam"))]
        for which, end in (("default hyperparameters", ""), ("all searched", ", searched"))
    ] + [
        [f"{title}, CIFAR-10, {epochs} epochs",
         *(record.last(name) for name in (f"{feedback}{k}", f"LAPerm{k}", "Adam"))]
        for title, epochs, record in (("VGG-style network", 10, vgg), ("ResNet20", 5, resnet))
    ]  # fmt: skip
    header = ["test accuracy", "LAPerm, error feedback", "the paper's LAPerm", "Adam"]
    return table(header, [[name, *map(spread, values)] for name, *values in rows])


def readme_table(rows=None):
    """A few rows that say the most, or the first of them."""
    feedback, few, vgg, resnet, network, logistic, one_weight = map(
        Record.load,
        ("error_feedback", "few_values", "vgg", "resnet20", "fully_connected",
         "logistic_regression", "weight_agnostic"),
    )  # fmt: skip

    def of_network(run):
        return [spread(network.last(run.format(name))) for name in ("SGPerm", "Adam")]

    all_rows = [
        [
            "LAPerm with error feedback, 784-500-300-10, MNIST, 3,000 mini-batches, searched",
            spread(feedback.last(f"MNIST, {figures.FEEDBACK}, k = 10")),
            spread(feedback.last("MNIST, Adam")),
        ],
        [
            "the same on Fashion-MNIST",
            spread(feedback.last(f"Fashion-MNIST, {figures.FEEDBACK}, k = 10")),
            spread(feedback.last("Fashion-MNIST, Adam")),
        ],
        [
            "the same, two different weights a neuron: one bit each",
            spread(few.last("Fashion-MNIST, LAPerm, 2 values")),
            spread(few.last("Fashion-MNIST, Adam, free")),
        ],
        [
            "LAPerm with error feedback, VGG-style network, CIFAR-10, 10 epochs",
            spread(vgg.last(f"{figures.FEEDBACK}, k = 10")), spread(vgg.last("Adam")),
        ],
        [
            "LAPerm with error feedback, ResNet20, CIFAR-10, 5 epochs",
            spread(resnet.last(f"{figures.FEEDBACK}, k = 10")), spread(resnet.last("Adam")),
        ],
        [
            "SGPerm, 784-500-300-10, MNIST, 800 mini-batches, the paper's hyperparameters",
            *of_network("MNIST, {}"),
        ],
        ["the same, hyperparameters of both searched", *of_network("MNIST, {}, searched")],
        ["the same on Fashion-MNIST", *of_network("Fashion-MNIST, {}, searched")],
        [
            "SGPerm, 784-10, MNIST, 800 mini-batches",
            spread(logistic.last("SGPerm")), spread(logistic.last("Adam")),
        ],
        [
            "LAPerm (k = 1), all weights 0 or 0.03, 784-128-64-10, MNIST",
            spread(one_weight.last("F2, k = 1")), "",
        ],
    ]  # fmt: skip
    return table(["test accuracy", "permuting", "Adam"], all_rows[:rows])


def with_tables(text, tables):
    """A page, its tables replaced."""

    def replaced(match):
        if match[2] not in tables:
            raise KeyError(f"there is no table {match[2]}; there are {', '.join(sorted(tables))}")
        return f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}"

    return TABLE.sub(replaced, text)


def draw_all(folder):
    """Every figure, into files."""
    mpl.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        record = Record.load(name)
        if not record.contents["runs"]:
            continue  # there is nothing to draw yet
        for what, figure in importlib.import_module(name).draw(record).items():
            figure.savefig(folder / f"{name}-{what}.png", dpi=110)
            print(f"{name}-{what}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the tables")
    options = parser.parse_args()
    tables = all_tables()
    for page in PAGES:
        old = page.read_text()
        new = with_tables(old, tables)
        if options.check and new != old:
            sys.exit(f"{page}: its tables are not what the records give; run {__file__}")
        if new != old:
            page.write_text(new)
    if not options.check:
        draw_all(PICTURES)


if __name__ == "__main__":
    main()
