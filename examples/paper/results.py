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

from common.records import Record, spread, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = [ROOT / "docs" / "results.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
PAGES = [*RESULTS, *(ROOT / page for page in ("docs/devices.md", "docs/index.md", "README.md"))]
PICTURES = ROOT / "docs" / "images" / "results"
SCRIPTS = (
    "logistic_regression", "fully_connected", "rewiring", "weight_agnostic", "weight_profiles",
    "initial_profiles", "vgg", "resnet20", "transformer", "local_laperm", "error_feedback",
    "rewiring_layers",
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
    return tables | {"overview": table(header, rows), "readme": readme_table()}


def readme_table():
    """A few rows that say the most."""
    profiles, network, logistic, one_weight = map(
        Record.load,
        ("initial_profiles", "fully_connected", "logistic_regression", "weight_agnostic"),
    )
    import initial_profiles

    def of_network(run):
        return [spread(network.last(run.format(name))) for name in ("SGPerm", "Adam")]

    rows = [
        [
            "LAPerm (k = 20), 784-500-300-10, MNIST, 3,000 mini-batches",
            spread(profiles.last(initial_profiles.NORMAL)),
            spread(profiles.last(initial_profiles.ADAM)),
        ],
        [
            "SGPerm, the same network, 800 mini-batches, the paper's hyperparameters",
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
    return table(["test accuracy", "permuting", "Adam"], rows)


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
