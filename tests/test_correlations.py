"""infer/tables/correlations.py: figures of quality reports beside what rows reach, by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from configs.program import InputError
from infer.tables import correlations


def rows(tmp_path, reports, values):
    """Groups as infer.compare makes them, only as much of them as correlations read."""
    groups = {}
    for at, (report, value) in enumerate(zip(reports, values, strict=True)):
        (tmp_path / str(at)).mkdir()
        (tmp_path / str(at) / "quality.json").write_text(json.dumps(report))
        metrics = {"item_level/ndcg@10": {"value": value}}
        result = SimpleNamespace(
            manifest={"inputs": {"sids": {"path": str(tmp_path / str(at))}}}, get=metrics.get
        )
        groups[f"row{at}"] = [SimpleNamespace(result=result)]
    return groups


def test_figures_are_ranked_by_how_they_go_with_a_metric(tmp_path):
    (tmp_path / "twice").mkdir()
    lifts, errors = [1.0, 2.0, 3.0, 4.0], [0.4, 0.1, 0.3, 0.2]
    reports = [{"lift": a, "levels": [{"error": b, "size": 8}]} for a, b in zip(lifts, errors, strict=True)]
    found = correlations.of_rows(rows(tmp_path, reports, [0.1, 0.2, 0.4, 0.3]), ["item_level/ndcg@10"])
    # Places 0 1 3 2 of the metric: with 0 1 2 3 the sum of squares is 2, 1 - 6 * 2 / 60; with 3 0 2 1 it is 9 + 1 + 1 + 1.
    assert found == {
        "lift": {"item_level/ndcg@10": 0.8, "rows": 4},
        "levels/1/error": {"item_level/ndcg@10": pytest.approx(1 - 6 * 12 / 60), "rows": 4},
    }
    twice = rows(tmp_path / "twice", reports, [0.1, 0.2, 0.4, 0.3])
    twice["row0 trained otherwise"] = [SimpleNamespace(result=SimpleNamespace(
        manifest=twice["row0"][0].result.manifest, get={"item_level/ndcg@10": {"value": 0.9}}.get
    ))]  # fmt: skip
    assert correlations.of_rows(twice, ["item_level/ndcg@10"]) == found, (
        "one row for each set of IDs, the first"
    )
    lines = correlations.markdown(found).splitlines()
    assert lines[-2:] == ["| lift | 0.80 | 4 |", "| levels/1/error | -0.20 | 4 |"]
    (tmp_path / "few").mkdir()
    with pytest.raises(InputError, match="3 rows have semantic IDs"):
        correlations.of_rows(rows(tmp_path / "few", reports[:3], [0.1, 0.2, 0.3]), ["item_level/ndcg@10"])
