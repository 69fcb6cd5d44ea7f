"""Learning runs side by side: rates, pairs and takeovers by hand, and the page that shows them."""

from xml.etree import ElementTree

import pytest

from valueguide.errors import ConfigError
from valueguide.evaluation.learning import compare_runs
from valueguide.evaluation.learning_report import (
    format_comparison,
    write_learning_plots,
    write_learning_report,
)


def make_run(method, seed, wins, last=1, takeovers=1, **settings):
    """wins: arm -> episodes of the end, of two tasks alike, that succeed."""
    rows = [
        {"arm": arm, "task": task, "episode": j, "success": j in won}
        for arm, won in wins.items()
        for task in ("a", "b")
        for j in range(4)
    ]
    own = {
        "method": method,
        "seed": seed,
        "suite": "wxai-state",
        "iterations": last,
        "evaluations": 4,
        "final": 4,
    }
    collected = [
        {"task": task, "takeovers": takeovers, "human_steps": 5, "steps": 20, "success": True}
        for task in "ab"
    ]
    return {
        "settings": own | settings,
        "evaluated": {f"eval-{last}": rows},
        "collected": {"collect-0": collected, "collect-1": collected},
        "learning": [],
    }


def test_rates_pairs_and_takeovers_by_hand():
    runs = [
        make_run("aloe", 0, {"base": {0}, "guided": {0, 1, 2, 3}}),
        make_run("aloe", 1, {"base": {0}, "guided": {0, 1}}, takeovers=2),
        make_run("dagger", 0, {"base": {0}}),
    ]
    out = compare_runs(runs)
    guided = out["final"]["aloe, policy and critic"]
    assert guided["mean"] == 0.75 and guided["n"] == 16 and guided["seeds"] == [1.0, 0.5]
    assert out["final"]["dagger, policy alone"]["tasks"] == {"a": 0.25, "b": 0.25}
    pair = out["paired"]["aloe, policy and critic - dagger, policy alone"]
    assert pair["delta"] == pytest.approx(0.5) and pair["n"] == 8
    assert pair["ci95"][0] < 0.5 < pair["ci95"][1]
    assert out["paired"]["aloe, policy alone - dagger, policy alone"]["delta"] == 0
    assert [p["takeovers"] for p in out["takeovers"]["aloe"]] == [1.5, 1.5]
    assert out["takeovers"]["dagger"][0]["human_share"] == 0.25
    # What works while it learns: with aloe the guided policy.
    assert out["success"]["aloe"] == [{"iteration": 1, **guided}]


def test_runs_of_other_budgets_are_not_compared():
    runs = [make_run("aloe", 0, {"base": {0}}), make_run("awr", 0, {"base": {0}}, episodes=3)]
    compare_runs([runs[0]])
    runs[0]["settings"]["episodes"] = 4
    with pytest.raises(ConfigError, match="episodes"):
        compare_runs(runs)
    with pytest.raises(ConfigError, match="none"):
        compare_runs([])


def test_the_page_shows_every_method_and_is_self_contained(tmp_path):
    runs = [make_run("aloe", 0, {"base": {0}, "guided": {0, 1}}), make_run("none", 0, {"base": {1}})]
    comparison = compare_runs(runs)
    write_learning_report(tmp_path / "report.html", comparison)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2 and "http" not in page.replace("http://www.w3.org", "")
    for text in ("aloe, policy and critic", "none, policy alone", "Takeovers", "50.0"):
        assert text in page
    assert "aloe, policy and critic" in format_comparison(comparison)


def test_the_plots_are_pictures_of_their_own(tmp_path):
    runs = [make_run("aloe", 0, {"base": {0}, "guided": {0, 1}}), make_run("none", 0, {"base": {1}})]
    write_learning_plots(tmp_path, compare_runs(runs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["success.svg", "takeovers.svg"]
    for path in tmp_path.iterdir():
        picture = ElementTree.fromstring(path.read_text())
        space = "{http://www.w3.org/2000/svg}"
        assert picture.tag == f"{space}svg" and picture.find(f"{space}style") is not None
        assert {"aloe", "none"} <= {text.text for text in picture.iter(f"{space}text")}
