"""A run's plots as PNG files: learning curves, where the time went, error kinds over turns, the summary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlef_jax.analysis.summary import BOUNDS, EVALUATIONS
from rlef_jax.types import Status

Record = Mapping[str, Any]

# Distinguishable with every common colour blindness (Okabe and Ito, 2008).
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


def plot_learning(records: Sequence[Record], path: Path) -> Path:
    """Curves over iterations: solve rates, reward, KL, mismatch, clipping, explained variance, speed, time."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    axes = figure.subplots(2, 4)
    _solve_rates(axes[0, 0], records)
    _curve(axes[0, 1], records, "reward", "Reward per episode")
    _curve(axes[0, 2], records, "kl_to_ref", "KL to the reference policy (per token)")
    _curve(axes[0, 3], records, "explained_variance", "Value: explained variance")
    _curve(axes[1, 0], records, "clip_fraction", "Tokens clipped by PPO", percent=True)
    _mismatch(axes[1, 1], records)
    _curve(axes[1, 2], records, "tokens_per_s", "Tokens per second")
    _time_split(axes[1, 3], records)
    axes[0, 2].set_ylim(bottom=min(0.0, axes[0, 2].get_ylim()[0]))
    axes[1, 2].set_ylim(bottom=0)
    return _save(figure, path)


def plot_error_kinds(records: Sequence[Record], path: Path, *, window: int = 3) -> Path:
    """For each turn, what became of its responses: in the first `window` iterations and in the last."""
    turns = sorted({int(m[1]) for r in records for name in r if (m := re.match(r"turn(\d+)/", name))})
    window = max(1, min(window, len(records) // 2))
    spans = {"first": records[:window], "last": records[-window:]} if len(records) > 1 else {"only": records}
    rows = [(turn, when, part) for turn in turns for when, part in spans.items()]
    figure = Figure(figsize=(9, 1.4 + 0.5 * len(rows)), layout="constrained")
    axis = figure.subplots()
    shown: dict[Status, Any] = {}
    for y, (turn, _, part) in enumerate(rows):
        left = 0.0
        for status in Status:
            share = _mean([r.get(f"turn{turn}/{status.value}") or 0.0 for r in part if _reached(r, turn)])
            if share > 0:
                shown[status] = axis.barh(y, share, left=left, color=STATUS_COLOURS[status], edgecolor="white")
                left += share
    labels = [f"turn {turn}, {when} {len(part)} iteration{'s' * (len(part) > 1)}" for turn, when, part in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title("What became of the responses that reached a turn", loc="left")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    order = [s for s in Status if s in shown]
    if order:
        handles, names = [shown[s] for s in order], [STATUS_LABELS[s] for s in order]
        figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
    return _save(figure, path)


def plot_summary(summary: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """1@1 and 1@3 of each evaluation, with the interval of 1@3, beside the bounds of any player."""
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
                      ha="center", fontsize=9)  # fmt: skip
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
    for name, label, colour in (("solved", "in all turns", BLUE), ("solved_turn1", "at turn 1", ORANGE)):
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


def _mismatch(axis: Axes, records: Sequence[Record]) -> None:
    _frame(axis, "Sampler against trainer: |difference of log p|")
    for name, label, colour in (("mismatch_max", "largest", ORANGE), ("mismatch_mean", "mean", BLUE)):
        steps, values = series(records, name)
        axis.plot(steps, values, color=colour, marker=_marker(steps), ms=4, label=label)
    if any((r.get("mismatch_max") or 0) > 0 for r in records):
        axis.set_yscale("log")
    axis.legend(frameon=False)


def _time_split(axis: Axes, records: Sequence[Record]) -> None:
    """Seconds by stage, stacked; what no stage claims of the total is "other"."""
    _frame(axis, "Seconds per iteration")
    timed = [r for r in records if r.get("time/total")]
    names = sorted({n for r in timed for n in r if n.startswith("time/") and n != "time/total"})
    if not timed or not names:
        return
    parts = {n.removeprefix("time/"): np.array([r.get(n) or 0.0 for r in timed]) for n in names}
    rest = np.array([r["time/total"] for r in timed]) - sum(parts.values())
    parts = dict(sorted(parts.items(), key=lambda item: -item[1].sum()))
    if rest.mean() > 0.01 * np.mean([r["time/total"] for r in timed]):
        parts["other"] = np.maximum(rest, 0.0)
    colours = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW)
    steps, bottom = [r["step"] for r in timed], np.zeros(len(timed))
    for i, (name, seconds) in enumerate(parts.items()):
        colour = GREY if name == "other" else colours[i % len(colours)]
        axis.bar(steps, seconds, bottom=bottom, width=1.0, color=colour, label=name)
        bottom = bottom + seconds
    axis.set_ylim(top=1.35 * bottom.max())  # room for the legend above the bars
    axis.legend(frameon=False, fontsize=8, reverse=True, ncols=2, loc="upper left")


def series(records: Sequence[Record], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, records that lack it left out."""
    pairs = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _frame(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel("iteration")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _marker(steps: Sequence[int]) -> str:
    """Points where there are few enough to tell apart."""
    return "o" if len(steps) <= 40 else ""


def _reached(record: Record, turn: int) -> bool:
    return any(name.startswith(f"turn{turn}/") for name in record)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
