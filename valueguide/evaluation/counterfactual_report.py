"""The counterfactual replay as one page: what would have been chosen, and whether to trust the values."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from valueguide.evaluation.plots import task_bars, value_strips
from valueguide.evaluation.report import section, settings_table, write_page

_PALETTE = ("#2f6fed", "#d19a1c", "#3aa58f", "#8a56d6", "#d24b4b", "#6b8e23")
_LOGGED_COLOR = "#8b93a1"
#: Rows of the episode table that are shown at once; the JSON has all.
_EPISODES = 40
_TONES = {"success": "good", "failure": "bad"}


def write_counterfactual_report(path: Path, results: dict[str, Any], logged: str) -> None:
    """results: of `counterfactual_results.build_results`; logged: the name of the log's own scores in it."""
    colors = _colors(results["critics"], logged)
    critics = results["critics"]
    sections = [
        _headline(results, colors),
        section(
            "Would the choice have differed?", _legend(critics, colors, logged) + _changes(results, colors)
        ),
        section("Do the values fit what happened?", _strips(critics, colors) + _outcomes(results)),
        section("Do the scores agree?", _agreement(results)),
        *(
            section(f"Episodes that changed most: {name}", _episodes(entry["episodes"]))
            for name, entry in critics.items()
            if name != logged or len(critics) == 1
        ),
        section("Why the new choice was taken", _reasons(results)),
        section("Settings", settings_table(results["settings"])),
    ]
    write_page(path, "valueguide replay: counterfactual choices", sections)


def _colors(critics: dict[str, Any], logged: str) -> dict[str, str]:
    others = [name for name in critics if name != logged]
    return {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(others)} | {logged: _LOGGED_COLOR}


def _headline(results: dict[str, Any], colors: dict[str, str]) -> str:
    log, settings = results["log"], results["settings"]
    outcomes = ", ".join(f"{count} {kind}" for kind, count in log["outcomes"].items() if count)
    low, high = log["k"]
    facts = (
        f"{settings['dataset']}: {log['decisions']} logged decisions of {log['episodes']} episodes "
        f"({outcomes}) on {len(log['tasks'])} tasks, {low if low == high else f'{low} to {high}'} "
        f"candidates, {log['executed_length']} steps executed. Chosen again with temperature "
        f"{settings['beta']:g} and the {settings['aggregate']} over members."
    )
    cards = "".join(_card(name, entry, colors[name]) for name, entry in results["critics"].items())
    return (
        f"<header><h1>{escape(_verdict(results))}</h1><p>{escape(facts)}</p>"
        f"<p><b>What this cannot tell.</b> {escape(results['caveat'])}</p></header>"
        f'<div class="cards">{cards}</div>'
    )


def _verdict(results: dict[str, Any]) -> str:
    name, entry = next(iter(results["critics"].items()))
    rate = entry["changed"]["all"]
    if rate["rate"] is None:
        return f"{name} scored nothing"
    return f"{name} would have chosen otherwise in {100 * rate['rate']:.1f}% of {rate['n']} decisions"


def _card(name: str, entry: dict[str, Any], paint: str) -> str:
    rate, auc = entry["changed"]["all"], entry["outcome"]["auc"]
    share = "-" if rate["rate"] is None else f"{100 * rate['rate']:.1f}%"
    low, high = rate["wilson95"]
    return (
        f'<div class="card" style="--arm:{paint}"><span>{escape(name)}: changed</span><b>{share}</b>'
        f"<small>95% {100 * low:.1f} to {100 * high:.1f}, {rate['n']} decisions</small>"
        f"<small>AUC for success {escape(shown(auc))}</small></div>"
    )


def _legend(critics: dict[str, Any], colors: dict[str, str], logged: str) -> str:
    items = "".join(
        f'<li><i style="background:{colors[name]}"></i><b>{escape(name)}</b> '
        f"{'the scores in the log, chosen again' if name == logged else escape(entry['version'])}</li>"
        for name, entry in critics.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _changes(results: dict[str, Any], colors: dict[str, str]) -> str:
    critics = results["critics"]
    tasks = list(results["log"]["tasks"])
    # A task without decisions has no bar.
    bars = {
        name: {"tasks": {task: cell for task, cell in entry["changed"]["tasks"].items() if cell["n"]}}
        for name, entry in critics.items()
    }
    rows = [
        (task.replace("_", " "), [e["changed"]["tasks"][task] for e in critics.values()]) for task in tasks
    ]
    for kind, count in results["log"]["outcomes"].items():
        if count:
            label = {
                "success": "episodes that succeeded",
                "failure": "that failed",
                "helped": "that a human helped",
            }
            rows.append((label[kind], [e["changed"]["outcomes"][kind] for e in critics.values()]))
    rows.append(
        ("against the logged critic's preference", [e["against_logged_critic"] for e in critics.values()])
    )
    body = "".join(f"<tr><th>{escape(head)}</th>{''.join(map(_rate, cells))}</tr>" for head, cells in rows)
    total = "".join(_rate(entry["changed"]["all"]) for entry in critics.values())
    regret = "".join(f"<td>{escape(shown(e['regret'], 3))}</td>" for e in critics.values())
    path = "".join(
        f"<td>{e['changed']['on_path']['decisions']} <span>of {e['changed']['on_path']['n']}</span></td>"
        for e in critics.values()
    )
    return (
        f"{task_bars(bars, tasks, 'Share of changed choices per task', colors.__getitem__)}"
        f'<div class="scroll"><table><thead><tr><th></th>{_head(critics)}</tr></thead><tbody>{body}'
        f"<tr><th>regret of what ran</th>{regret}</tr>"
        f"<tr><th>decisions up to the first change</th>{path}</tr></tbody>"
        f"<tfoot><tr><th>all decisions</th>{total}</tr></tfoot></table></div>"
        '<p class="note">Changed: another candidate than the one that ran. Small print: 95% Wilson '
        "intervals, in percent, as if decisions were independent. Regret: how much more the critic's best "
        "candidate is worth to it than the one that ran, mean over decisions, with a bootstrap over "
        f"episodes.{_drawn(results['settings'])}</p>"
    )


def _drawn(settings: dict[str, Any]) -> str:
    if not settings["beta"]:
        return ""
    return (
        " With a temperature, choices are drawn and many change by chance: the logged critic's column shows "
        "how many."
    )


def _strips(critics: dict[str, Any], colors: dict[str, str]) -> str:
    groups = {name: entry["first_values"] for name, entry in critics.items()}
    return (
        f"{value_strips(groups, colors.__getitem__)}"
        '<p class="note">A dot an episode: the value of its first choice. A critic that knows what will come '
        "has its successes further right.</p>"
    )


def _outcomes(results: dict[str, Any]) -> str:
    critics = results["critics"]
    kinds = (
        ("rank correlation with the realised return", "spearman", None),
        ("the same within tasks", "spearman_within_tasks", None),
        ("AUC of the first value for success", "auc", None),
        ("the same within tasks", "auc_within_tasks", None),
        ("mean value, episodes that succeeded", "mean_value", "success"),
        ("mean value, episodes that failed", "mean_value", "failure"),
        ("difference", "mean_value", "difference"),
    )
    rows = []
    for head, key, part in kinds:
        figures = [e["outcome"][key][part] if part else e["outcome"][key] for e in critics.values()]
        rows.append(f"<tr><th>{escape(head)}</th>{''.join(map(_figure, figures))}</tr>")
    versus = results["versus_logged"]
    for key, head in (("auc", "AUC"), ("spearman", "rank correlation")):
        if versus:
            cells = "".join(_figure(versus[n][key], "+") if n in versus else "<td></td>" for n in critics)
            rows.append(f"<tr><th>{head}, less the logged critic's</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{_head(critics)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Small print: 95% intervals by bootstrap over episodes. The value is that of the '
        "candidate that ran, since the outcome is its. Episodes in which a human drove are left out; one "
        "that a limit ended counts as failed. AUC: the chance that a success began with a higher value than "
        "a failure; 0.5 is no better than a coin. Within tasks: the mean over tasks in which it is defined, "
        "so that knowing the hard tasks does not count.</p>"
    )


def _agreement(results: dict[str, Any]) -> str:
    rows = []
    for name, entry in results["critics"].items():
        found, same = entry["agreement"], entry["same_version"]
        exact = ""
        if same:
            exact = (
                f"the same critic in {same['decisions']}: values differ by at most "
                f"{same['largest_difference']:.1e}"
            )
        pair = f"{escape(name)} and what the log says"
        rows.append(
            f"<tr><th>{pair}</th>{_figure(found)}<td>{found['decisions']}</td>"
            f"{_rate(_complement(entry['against_logged_critic']))}"
            f'<td class="wide">{exact}</td></tr>'
        )
    for names, found in results["between"].items():
        a, _, b = names.partition("_vs_")
        rows.append(
            f"<tr><th>{escape(a)} and {escape(b)}</th>{_figure(found['rank'])}"
            f"<td>{found['rank']['decisions']}</td>{_rate(found['same'])}<td></td></tr>"
        )
    return (
        '<div class="scroll"><table><thead><tr><th></th><th>rank correlation</th><th>decisions</th>'
        f"<th>same choice</th><th></th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Spearman over the candidates of one decision, averaged; bootstrap over episodes. '
        "The log's choice is the one that its critic preferred, whether or not it ran.</p>"
    )


def _episodes(table: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><th>{row['episode']}</th><td>{escape(row['task'].replace('_', ' '))}</td>"
        f'<td class="{_TONES.get(row["outcome"], "")}">{row["outcome"]}</td>'
        f"<td>{row['decisions']}</td><td>{row['changed']}</td>"
        f"<td>{'-' if row['first_change'] is None else row['first_change'] + 1}</td>"
        f"<td>{row['regret']:.3f}</td></tr>"
        for row in table[:_EPISODES]
    )
    more = f" {len(table) - _EPISODES} more in counterfactual.json." if len(table) > _EPISODES else ""
    return (
        '<div class="scroll"><table><thead><tr><th>episode</th><th>task</th><th>outcome</th>'
        "<th>decisions</th><th>changed</th><th>first change at decision</th>"
        "<th>mean regret of what ran</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        '<p class="note">After the first change the states are not those that the new choice would have '
        f"met.{more}</p>"
    )


def _reasons(results: dict[str, Any]) -> str:
    entries = {"in the log": results["log"]["reasons"]}
    entries |= {name: entry["reasons"] for name, entry in results["critics"].items()}
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="wide">'
        f"{', '.join(f'{escape(reason)} {count}' for reason, count in sorted(reasons.items()))}</td></tr>"
        for name, reasons in entries.items()
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _head(critics: dict[str, Any]) -> str:
    return "".join(f"<th>{escape(name)}</th>" for name in critics)


def _rate(cell: dict[str, Any]) -> str:
    if not cell["n"]:
        return "<td>-</td>"
    low, high = cell["wilson95"]
    return (
        f"<td>{100 * cell['rate']:.1f}% <span>{cell['successes']}/{cell['n']}</span>"
        f"<small>{100 * low:.0f} to {100 * high:.0f}</small></td>"
    )


def _complement(cell: dict[str, Any]) -> dict[str, Any]:
    """The share of the others."""
    if not cell["n"]:
        return cell
    low, high = cell["wilson95"]
    others = {"successes": cell["n"] - cell["successes"], "rate": 1 - cell["rate"]}
    return {**cell, **others, "wilson95": [1 - high, 1 - low]}


def _figure(found: dict[str, Any], sign: str = "") -> str:
    if found["value"] is None:
        return "<td>undefined</td>"
    interval = found["ci95"]
    small = f"{interval[0]:{sign}.2f} to {interval[1]:{sign}.2f}" if interval else "too few episodes"
    return f"<td>{found['value']:{sign}.2f}<small>{small}</small></td>"


def shown(found: dict[str, Any], digits: int = 2, sign: str = "") -> str:
    """A figure with its interval as plain text."""
    if found["value"] is None:
        return "undefined"
    value = f"{found['value']:{sign}.{digits}f}"
    if found["ci95"] is None:
        return value
    low, high = (f"{bound:{sign}.{digits}f}" for bound in found["ci95"])
    return f"{value} ({low} to {high})"
