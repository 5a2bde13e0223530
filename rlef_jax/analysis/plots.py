"""A run's plots as PNG files: learning curves, time per stage, signs of drift, error kinds over turns, the summary."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlef_jax.analysis.summary import BOUNDS, EVALUATIONS
from rlef_jax.files import named_in_errors
from rlef_jax.types import Status

Record = Mapping[str, Any]

# Distinguishable with all common forms of colour blindness (Okabe and Ito, 2008).
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999",
)  # fmt: skip
STATUS_COLOURS = {
    Status.PASSED: GREEN,
    Status.WRONG_ANSWER: ORANGE,
    Status.RUNTIME_ERROR: RED,
    Status.TIME_LIMIT: BLUE,
    Status.MEMORY_LIMIT: PURPLE,
    Status.OUTPUT_LIMIT: SKY,
    Status.SYNTAX_ERROR: YELLOW,
    Status.NO_CODE: GREY,
    Status.INFRA_ERROR: "#000000",
}
STATUS_LABELS = {status: status.value.replace("_", " ").lower() for status in Status}
_VISIBLE = 0.005  # smaller shares of a bar are too thin to see
_ON_WHITE = dict(facecolor="white", edgecolor="none", pad=0.8)  # a background, so that lines don't cross numbers
_SIDE_BY_SIDE = ("staleness_mean", "idle/learner", "idle/actor")


def plot_learning(records: Sequence[Record], path: Path) -> Path:
    """Curves over iterations: solve rates, reward, KL, mismatch, clipping, explained variance, speed, time.

    If actor and learner ran side by side, a ninth panel shows staleness and idle time. Returns `path`.
    """
    side_by_side = any(r.get(name) is not None for r in records for name in _SIDE_BY_SIDE)
    rows, columns = (3, 3) if side_by_side else (2, 4)
    figure = Figure(figsize=(3.75 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns).ravel()
    _solve_rates(axes[0], records)
    _curve(axes[1], records, "reward", "Reward per episode")
    _curve(axes[2], records, "kl_to_ref", "KL to the reference policy (mean over turns)")
    _curve(axes[3], records, "explained_variance", "Value: explained variance")
    _curve(axes[4], records, "clip_fraction", "Tokens clipped by PPO", percent=True)
    _mismatch(axes[5], records)
    _curve(axes[6], records, "tokens_per_s", "Tokens per second")
    _time_split(axes[7], records)
    axes[2].set_ylim(bottom=min(0.0, axes[2].get_ylim()[0]))
    axes[6].set_ylim(bottom=0)
    if side_by_side:
        _staleness(axes[8], records)
    return _save(figure, path)


def plot_drift(records: Sequence[Record], path: Path) -> Path:
    """What shows that a policy drifts off, over iterations: quantiles of KL and ratio, entropy, gradient norm, the
    share of invalid code at each turn, the length of responses. Returns `path`."""
    figure = Figure(figsize=(11.25, 7.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    kl = {"kl_to_ref_max": "largest", "kl_to_ref_q95": "95 %", "kl_to_ref": "mean", "kl_to_ref_q50": "median"}
    _curves(axes[0], records, kl, "KL to the reference policy, over turns")
    axes[0].set_yscale("symlog", linthresh=0.01)
    ratios = {f"ratio_q{n}": f"{int(n)} %" for n in ("99", "95", "50", "05", "01")}
    _curves(axes[1], records, ratios, "Ratio to the iteration's first policy, over tokens")
    _curves(axes[2], records, {"entropy": ""}, "Entropy per token, estimated")
    _curves(axes[3], records, {"grad_norm": ""}, "Norm of the gradient, before clipping")
    norms = series(records, "grad_norm")[1]
    if norms and 0 < 10 * min(norms) < max(norms):
        axes[3].set_yscale("log")
    turns = sorted({int(m[1]) for r in records for name in r if (m := re.fullmatch(r"turn(\d+)/invalid", name))})
    _curves(axes[4], records, {f"turn{n}/invalid": f"turn {n}" for n in turns}, "Responses without code that parses")
    axes[4].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[4].set_ylim(bottom=0)
    _curves(axes[5], records, {"response_tokens": ""}, "Tokens per response")
    return _save(figure, path)


def plot_arms(arms: Mapping[str, Sequence[Sequence[Record]]], path: Path) -> Path:
    """Learning curves of several arms, {name: the records of each of its runs}: the mean over an arm's runs, and the
    range from its lowest to its highest run. Returns `path`."""
    panels = {
        "reward": "Reward per episode",
        "solved": "Solved in training",
        "kl_to_ref": "KL to the reference policy (mean over turns)",
        "turn3/invalid": "Third responses without code that parses",
    }
    figure = Figure(figsize=(7.5, 7.2), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(2, 2).ravel(), panels.items(), strict=True):
        for (arm, runs), colour in zip(arms.items(), itertools.cycle((BLUE, ORANGE, GREEN, PURPLE, RED, SKY, GREY))):
            by_step: dict[int, list[float]] = {}
            for records in runs:
                for step, value in zip(*series(records, name), strict=True):
                    by_step.setdefault(step, []).append(value)
            steps = sorted(by_step)
            axis.plot(steps, [_mean(by_step[s]) for s in steps], color=colour, label=arm, linewidth=1.6)
            axis.fill_between(
                steps, [min(by_step[s]) for s in steps], [max(by_step[s]) for s in steps], color=colour, alpha=0.15,
                linewidth=0,
            )  # fmt: skip
        _frame(axis, title)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _save(figure, path)


def plot_error_kinds(records: Sequence[Record], path: Path, *, window: int = 3) -> Path:
    """Statuses of the responses at each turn, in the first iteration (initial weights) and in the last `window`.

    Statuses whose share is always below `_VISIBLE` are combined. Returns `path`.
    """
    turns = sorted({int(m[1]) for r in records for name in r if (m := re.match(r"turn(\d+)/", name))})
    window = max(1, min(window, len(records) - 1))
    spans = {"first": records[:1], "last": records[-window:]} if len(records) > 1 else {"only": records}
    rows = [(turn, period, span) for turn in turns for period, span in spans.items()]
    shares = [{s: _share(span, turn, s) for s in Status} for turn, _, span in rows]
    visible = [s for s in Status if any(turn_shares[s] >= _VISIBLE for turn_shares in shares)]
    figure = Figure(figsize=(9, 1.4 + 0.5 * len(rows)), layout="constrained")
    axis = figure.subplots()
    bars: dict[str, Any] = {}
    for y, turn_shares in enumerate(shares):
        left = 0.0
        parts = [(STATUS_LABELS[s], turn_shares[s], STATUS_COLOURS[s]) for s in visible]
        rest = sum(turn_shares.values()) - sum(turn_shares[s] for s in visible)
        for label, share, colour in [*parts, (f"others, each below {_VISIBLE:.1%}", rest, "#444444")]:
            if share > 1e-9:
                bars[label] = axis.barh(y, share, left=left, color=colour, edgecolor="white")
                left += share
    durations = {1: "iteration"} | {n: f"{n} iterations" for n in range(2, window + 1)}
    labels = [f"turn {turn}, {period} {durations[len(span)]}" for turn, period, span in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title("What became of the responses that reached a turn", loc="left")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    names = [name for name in dict.fromkeys((*STATUS_LABELS.values(), *bars)) if name in bars]
    if names:
        figure.legend([bars[n] for n in names], names, loc="outside lower center", ncols=4, frameon=False)
    return _save(figure, path)


def plot_summary(summary: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """1@1 and 1@3 of each evaluation, with the interval of 1@3 and the best possible scores. Returns `path`."""
    keys = [k for k in EVALUATIONS if summary.get(k, {}).get("1@3") is not None]
    figure = Figure(figsize=(9, 1.6 + 0.6 * len(keys)), layout="constrained")
    axis = figure.subplots()
    for y, key in enumerate(keys):
        low, high = summary[key]["1@3_ci"]
        axis.plot([low, high], [y, y], color=BLUE, lw=3, alpha=0.4, solid_capstyle="butt")
        if summary[key].get("1@1") is not None:
            axis.plot(summary[key]["1@1"], y, "o", mfc="white", mec=BLUE, ms=8, label="1@1" if y == 0 else None)
        axis.plot(summary[key]["1@3"], y, "o", color=BLUE, ms=9, label="1@3, 95 % interval" if y == 0 else None)
        axis.annotate(f"{summary[key]['1@3']:.1f}", (summary[key]["1@3"], y), (0, 9), textcoords="offset points",
                      ha="center", fontsize=9, bbox=_ON_WHITE)  # fmt: skip
    for (key, label), style in zip(BOUNDS.items(), (":", "--", "-")):
        if key in summary.get("bounds", {}):
            value = summary["bounds"][key]
            axis.axvline(value, color=GREY, ls=style, lw=1.2, zorder=0, label=f"{label} ({value:.1f})")
    axis.set_yticks(range(len(keys)), [EVALUATIONS[k] for k in keys])
    axis.set_ylim(len(keys) - 0.4, -0.7)
    axis.set_xlim(0, 100)
    axis.set_xlabel("problems solved (%)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return _save(figure, path)


def _solve_rates(axis: Axes, records: Sequence[Record]) -> None:
    _frame(axis, "Training problems solved")
    for name, label, colour in (("solved", "at the last turn", BLUE), ("solved_turn1", "at turn 1", ORANGE)):
        steps, values = series(records, name)
        axis.plot(steps, values, color=colour, marker=_marker(steps), ms=4, label=label)
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.legend(frameon=False)


def _curve(axis: Axes, records: Sequence[Record], name: str, title: str, *, percent: bool = False) -> None:
    _frame(axis, title)
    steps, values = series(records, name)
    axis.plot(steps, values, color=BLUE, marker=_marker(steps), ms=4)
    if percent:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ylim(bottom=0)


def _curves(axis: Axes, records: Sequence[Record], labels: Mapping[str, str], title: str) -> None:
    """A curve for each metric, with a legend where there are several."""
    _frame(axis, title)
    drawn = [(label, *series(records, name)) for name, label in labels.items()]
    for (label, steps, values), colour in zip(drawn, (ORANGE, GREEN, BLUE, PURPLE, RED, SKY, GREY, YELLOW)):
        if steps:
            axis.plot(steps, values, color=colour, marker=_marker(steps), ms=4, label=label)
    if len(labels) > 1 and any(steps for _, steps, _ in drawn):
        axis.legend(frameon=False, fontsize=8)


def _mismatch(axis: Axes, records: Sequence[Record]) -> None:
    _frame(axis, "Sampler against trainer: |difference of log p|")
    for name, label, colour in (("mismatch_max", "largest", ORANGE), ("mismatch_mean", "mean", BLUE)):
        steps, values = series(records, name)
        axis.plot(steps, values, color=colour, marker=_marker(steps), ms=4, label=label)
    if any((r.get("mismatch_max") or 0) > 0 for r in records):
        axis.set_yscale("log")
    axis.legend(frameon=False)


def _time_split(axis: Axes, records: Sequence[Record]) -> None:
    """Stacked seconds per stage; "other" is unassigned time and stages below 1 % of the total.

    Bars above 1.6 times the median of all but the first are cut and labelled: the first iteration compiles.
    """
    _frame(axis, "Seconds per iteration")
    timed = [r for r in records if r.get("time/total")]
    names = sorted({n for r in timed for n in r if n.startswith("time/") and n != "time/total"})
    if not timed or not names:
        return
    parts = {n.removeprefix("time/"): np.array([r.get(n) or 0.0 for r in timed]) for n in names}
    total = np.array([r["time/total"] for r in timed])
    parts = {n: s for n, s in parts.items() if s.sum() >= 0.01 * total.sum()}
    parts = dict(sorted(parts.items(), key=lambda item: -item[1].sum()))
    rest = np.maximum(total - sum(parts.values()), 0.0)
    if rest.sum() >= 0.01 * total.sum():
        parts["other"] = rest
    colours = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW)
    steps, bottom = [r["step"] for r in timed], np.zeros(len(timed))
    for i, (name, seconds) in enumerate(parts.items()):
        colour = GREY if name == "other" else colours[i % len(colours)]
        axis.bar(steps, seconds, bottom=bottom, width=1.0, color=colour, label=name)
        bottom = bottom + seconds
    top = 1.6 * float(np.median(total[1:])) if len(total) > 1 else 1.05 * float(bottom.max())
    axis.set_ylim(top=top)
    for step, height in zip(steps, bottom):
        if height > top:
            axis.annotate(f"{height:.0f}", (step, top), (0, -3), textcoords="offset points", ha="center", va="top",
                          fontsize=8, bbox=_ON_WHITE)  # fmt: skip
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _staleness(axis: Axes, records: Sequence[Record]) -> None:
    """Age of the weights that sampled the tokens, and the idle time of learner and actor."""
    _frame(axis, "Staleness (left), idle time (right)")
    steps, values = series(records, "staleness_mean")
    axis.plot(steps, values, color=GREEN, marker=_marker(steps), ms=4, label="staleness, iterations")
    axis.set_ylim(bottom=0, top=max([1.0, *values]) * 1.1)
    right = axis.twinx()
    for name, label, colour in (("idle/learner", "learner idle", BLUE), ("idle/actor", "actor idle", ORANGE)):
        steps, values = series(records, name)
        right.plot(steps, values, color=colour, marker=_marker(steps), ms=4, label=label)
    right.set_ylim(0, 1.05)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.spines[["top", "left"]].set_visible(False)
    lines = [*axis.get_lines(), *right.get_lines()]
    axis.legend(lines, [str(line.get_label()) for line in lines], frameon=False, fontsize=8, ncols=3,
                loc="upper center", bbox_to_anchor=(0.5, -0.16))  # fmt: skip


def series(records: Sequence[Record], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a metric, without records that lack it."""
    pairs = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _frame(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel("iteration")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _marker(steps: Sequence[int]) -> str:
    """A marker if there are few enough points to distinguish."""
    return "o" if len(steps) <= 40 else ""


def _share(records: Sequence[Record], turn: int, status: Status) -> float:
    """The mean share of a status at a turn, over the records that reached it."""
    return _mean([r.get(f"turn{turn}/{status.value}") or 0.0 for r in records if _reached(r, turn)])


def _reached(record: Record, turn: int) -> bool:
    return any(name.startswith(f"turn{turn}/") for name in record)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with named_in_errors(path):
        figure.savefig(path, dpi=110)
    return path
