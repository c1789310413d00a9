"""What fairlearn, aequitas and SliceLine report of tables of changes; runs in an environment that holds them.

Arguments: a folder of `NAME.parquet` tables and the file to write. Columns: before, after, shown (denominators), the
attributes x0, x1, …; how each tool is asked, and what counts as its report, stands in its function.
"""

import itertools
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

warnings.simplefilter("ignore")
LEAST, SHARE, TOP = 30, 0.005, 10


def crossings(names, depth=3):
    return [one for size in range(1, depth + 1) for one in itertools.combinations(names, size)]


def fairlearn(table, attributes):
    """MetricFrame of the mean change with its own bootstrap intervals (40 draws), once a crossing of up to two
    attributes: of three, with 100 draws, a table takes minutes. Reported: groups of at least 30 units whose 97.5 %
    quantile lies below zero, the lowest mean first; the whole by `overall_ci`."""
    from fairlearn.metrics import MetricFrame

    def change(before, after, shown):
        return (np.sum(after) - np.sum(before)) / np.sum(shown)

    found, apart, whole = [], [], False
    for names in crossings(attributes, 2):
        frame = MetricFrame(
            metrics={"change": change},
            y_true=table["before"],
            y_pred=table["after"],
            sensitive_features=table[list(names)],
            sample_params={"change": {"shown": table["shown"]}},
            n_boot=40,
            ci_quantiles=[0.025, 0.975],
            random_state=0,
        )
        low, high = (one["change"] for one in frame.overall_ci)
        whole = bool(high < 0)
        groups, bounds = frame.by_group, frame.by_group_ci[1]["change"]
        counts = table.groupby(list(names)).size()
        for place in counts.index[counts >= LEAST]:
            values = place if isinstance(place, tuple) else (place,)
            if bounds[place] < 0:
                found.append((float(groups["change"][place]), dict(zip(names, map(int, values), strict=True))))
                apart.append(bool(bounds[place] < low))
    order = sorted(range(len(found)), key=lambda i: found[i][0])
    return {"slices": [found[i][1] for i in order[:TOP]], "whole": whole, "apart": any(apart)}


def aequitas(table, attributes):
    """Audit of the share of units that lost ("predicted positive"), against the largest group, with every crossing as
    a column; reported: groups of at least 30 units where its test at 5 % says so and the ratio is beyond its usual
    1.25, the highest ratio first. It says nothing of the whole."""
    from aequitas.bias import Bias
    from aequitas.group import Group

    frame = pd.DataFrame({"score": (table["after"] < table["before"]).astype(int)})
    frame["label_value"] = (table["before"] > table["before"].median()).astype(int)
    columns = {}
    for names in crossings(attributes):
        columns["&".join(names)] = names
        frame["&".join(names)] = table[list(names)].astype(str).agg("&".join, axis=1)
    crosstab, _ = Group().get_crosstabs(frame, attr_cols=list(columns))
    shares = Bias().get_disparity_major_group(
        crosstab, original_df=frame, check_significance=True, mask_significance=True, selected_significance=["score"]
    )
    kept = shares[(shares["group_size"] >= LEAST) & (shares["ppr_disparity"].notna())]
    worse = kept[(kept["pprev_disparity"] > 1.25) & (kept["score_significance"].fillna(False).astype(bool))]
    found = []
    for _, row in worse.sort_values("pprev_disparity", ascending=False).head(TOP).iterrows():
        values = map(int, row["attribute_value"].split("&"))
        found.append(dict(zip(columns[row["attribute_name"]], values, strict=True)))
    return {"slices": found, "whole": False, "apart": bool(found)}


def sliceline(table, attributes):
    """Slicefinder over the loss of every unit (0 where it gained) with alpha 0.95, kinder to small slices than the
    package's 0.6; reported: the slices it returns with a score above zero. It says nothing of the whole, nor how sure
    it is."""
    from sliceline.slicefinder import Slicefinder

    loss = np.maximum(0.0, (table["before"] - table["after"]) / table["shown"]).to_numpy()
    support = max(LEAST, int(SHARE * len(table)))
    finder = Slicefinder(alpha=0.95, k=TOP, max_l=3, min_sup=support, verbose=False).fit(
        table[attributes].to_numpy(), loss
    )
    found = [
        {name: int(value) for name, value in zip(attributes, row, strict=True) if value is not None}
        for row, told in zip(finder.top_slices_, finder.top_slices_statistics_, strict=True)
        if told["slice_score"] > 0
    ]
    return {"slices": found, "whole": False, "apart": bool(found)}


TOOLS = {"fairlearn": fairlearn, "aequitas": aequitas, "SliceLine": sliceline}


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    tools = sys.argv[3].split(",") if len(sys.argv) > 3 else list(TOOLS)
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pd.read_parquet(path)
        attributes = [name for name in table.columns if name.startswith("x")]
        for name in tools:
            start = time.perf_counter()
            try:
                told = TOOLS[name](table, attributes)
            except Exception as error:  # a rival that cannot take a table is told as such
                told = {"slices": [], "whole": False, "apart": False, "error": f"{type(error).__name__}: {error}"[:200]}
            found.setdefault(name, {})[path.stem] = told | {"seconds": time.perf_counter() - start}
    target.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
