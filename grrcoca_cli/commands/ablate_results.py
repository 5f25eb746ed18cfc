"""From the files of finished runs to what a study found: nothing trains, and the same files give the same numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from grrcoca_cli.commands.ablate_runs import EXAMPLES, read_eval
from grrcoca_cli.evaluation.effects import factorial_effects, mean_over_seeds, sign_flip_p
from grrcoca_cli.evaluation.examples import Examples, batch_labels, measures_of, read_examples
from grrcoca_cli.evaluation.statistics import Difference, Interval, compare, holm
from grrcoca_cli.studies import MECHANISMS, Arm

if TYPE_CHECKING:
    from grrcoca_cli.config import Recipe
    from grrcoca_cli.evaluation.measures import Measure

PERMUTATIONS, RESAMPLES = 5000, 1000
BY_BATCH = ("contrastive_loss", "coca_loss")
"""Metrics whose examples depend on those of their evaluation batch: batches are swapped and resampled whole."""

CURVES = ("contrastive_loss", "ppl_token", "coca_loss")


@dataclass(frozen=True)
class RunResult:
    """One stage of one run, as its files have it.

    Attributes:
        seed: Of the run.
        facts: ``eval.json``.
        examples: None where the loss stopped being finite.
        values: Each metric over all examples.
    """

    seed: int
    facts: Mapping[str, object]
    examples: Examples | None
    values: dict[str, float]

    @property
    def weights(self) -> tuple[float, float]:
        """Of the contrastive and of the caption loss."""
        weights = cast(Mapping[str, float], self.facts["weights"])
        return weights["contrastive"], weights["caption"]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps, and the validation loss ``name`` after each."""
        rows = cast(Sequence[Mapping[str, float]], self.facts["curve"])
        return [row["step"] for row in rows], [row[name] for row in rows]

    def number(self, name: str) -> float:
        """A fact that is a number."""
        return float(cast(float, self.facts[name]))


@dataclass(frozen=True)
class Change:
    """An arm less the one it is compared with, paired by seed.

    Attributes:
        percent: Mean over seeds of the relative change.
        interval: 95 %, Student's t over seeds.
        p: Of the same t.
        p_holm: Adjusted for the arms of the table.
        p_sign_flip: Exact test over seeds.
        pairs: Seeds that both arms finished.
        examples: The difference in the metric's own unit over the paired examples, models as they are.
    """

    percent: float
    interval: Interval | None
    p: float | None
    p_holm: float | None
    p_sign_flip: float
    pairs: int
    examples: Difference


@dataclass(frozen=True)
class Metric:
    """Mean over seeds with its interval, and how it changed."""

    value: float
    interval: Interval | None
    change: Change | None = None


@dataclass(frozen=True)
class ArmResult:
    """What came out for one arm.

    Attributes:
        arm: What it is.
        runs: Those that ended well, by seed.
        failed: Reasons of those whose loss stopped being finite, by seed.
        metrics: By name.
        phase: ``screened`` or ``confirmed`` in a study that does both.
    """

    arm: Arm
    runs: dict[int, RunResult]
    failed: dict[int, str]
    metrics: dict[str, Metric]
    phase: str = ""

    def fact(self, name: str) -> float:
        """A number that all its runs agree on; NaN where there is no run."""
        return next((run.number(name) for run in self.runs.values()), float("nan"))


@dataclass(frozen=True)
class Effect:
    """A main effect or an interaction of mechanisms, in the metric's unit and in per cent of the baseline."""

    metric: str
    factors: tuple[str, ...]
    value: float
    interval: Interval | None
    p: float | None
    percent: float


def load_runs(folder: Path, arm: Arm, seeds: Sequence[int], stage: str) -> tuple[dict[int, RunResult], dict[int, str]]:
    """The runs of an arm that ended well, and the reasons of those that did not."""
    runs, failed = {}, {}
    for seed in seeds:
        run_folder = folder / arm.name / f"seed-{seed}"
        facts = read_eval(run_folder / stage)
        if facts.get("state") == "measured":
            examples = read_examples(run_folder / stage / EXAMPLES)
            run = RunResult(seed, facts, examples, {})
            values = {measure.name: measure.value for measure in measures_of([examples], *run.weights)}
            runs[seed] = replace(run, values=values)
        else:  # a run that fails in pretraining has no later stage
            reasons = [read_eval(run_folder / name).get("reason") for name in (stage, "pretrain")]
            failed[seed] = str(next(filter(None, reasons), "not run"))
    return runs, failed


def judge_arms(folder: Path, arms: Sequence[Arm], seeds: Sequence[int], stage: str, phase: str = "") -> list[ArmResult]:
    """Every arm of a stage with its intervals and its changes against the arm that it names."""
    loaded = {arm.name: load_runs(folder, arm, seeds, stage) for arm in arms}
    results = []
    for arm in arms:
        runs, failed = loaded[arm.name]
        others = loaded[arm.against][0] if arm.against in loaded and arm.against != arm.name else {}
        results.append(ArmResult(arm, runs, failed, _metrics(runs, others), phase))
    return _adjusted(results)


def _metrics(runs: Mapping[int, RunResult], others: Mapping[int, RunResult]) -> dict[str, Metric]:
    names = list(dict.fromkeys(name for run in runs.values() for name in run.values))
    found = {}
    differences = _over_examples(runs, others)
    for name in names:
        estimate = mean_over_seeds([run.values[name] for run in runs.values() if name in run.values])
        seeds = [seed for seed in runs if seed in others and name in runs[seed].values and name in others[seed].values]
        change = None
        if seeds and name in differences:
            ratios = [
                100 * (runs[seed].values[name] / others[seed].values[name] - 1)
                for seed in seeds
                if others[seed].values[name]
            ]
            mean = mean_over_seeds(ratios or [float("nan")])
            gaps = [runs[seed].values[name] - others[seed].values[name] for seed in seeds]
            change = Change(mean.value, mean.interval, mean.p, None, sign_flip_p(gaps), len(seeds), differences[name])
        found[name] = Metric(estimate.value, estimate.interval, change)
    return found


def _over_examples(runs: Mapping[int, RunResult], others: Mapping[int, RunResult]) -> dict[str, Difference]:
    """Sign-flip tests and bootstrap intervals over examples, of sums over the seeds that both arms have."""
    seeds = [seed for seed in runs if seed in others]
    if not seeds:
        return {}
    mine, its = (_pooled(side, seeds) for side in (runs, others))
    names = {measure.name for measure in its}
    first = runs[seeds[0]]
    assert first.examples is not None
    batch = int(cast(Mapping[str, int], first.facts["evaluation"])["batch"])
    found: dict[str, Difference] = {}
    for by_batch, labels in ((True, batch_labels(first.examples, batch)), (False, None)):
        chosen = [measure for measure in mine if measure.name in names and (measure.name in BY_BATCH) == by_batch]
        found |= compare(chosen, its, clusters=labels, resamples=RESAMPLES, permutations=PERMUTATIONS)
    return found


def _pooled(runs: Mapping[int, RunResult], seeds: Sequence[int]) -> "list[Measure]":
    chosen = [runs[seed] for seed in seeds]
    return measures_of([run.examples for run in chosen if run.examples is not None], *chosen[0].weights)


def _adjusted(results: Sequence[ArmResult]) -> list[ArmResult]:
    """Holm's correction over the arms, metric by metric."""
    raw: dict[str, dict[str, float]] = {}
    for result in results:
        for name, metric in result.metrics.items():
            if metric.change is not None and metric.change.p is not None:
                raw.setdefault(name, {})[result.arm.name] = metric.change.p
    adjusted = {name: dict(zip(ps, holm(list(ps.values())), strict=True)) for name, ps in raw.items()}

    def adjust(arm: str, name: str, metric: Metric) -> Metric:
        if metric.change is None:
            return metric
        return replace(metric, change=replace(metric.change, p_holm=adjusted.get(name, {}).get(arm)))

    return [
        replace(
            result, metrics={name: adjust(result.arm.name, name, metric) for name, metric in result.metrics.items()}
        )
        for result in results
    ]


def mechanism_effects(results: Sequence[ArmResult], recipes: "Mapping[str, Recipe]") -> list[Effect]:
    """Main effects and interactions of the mechanisms, where the arms hold all eight combinations of them.

    Only eight that differ in the mechanisms alone count; controls stand beside them.
    """
    grids: dict[str, dict[tuple[bool, ...], ArmResult]] = {}
    for result in results:
        recipe = recipes[result.arm.name]
        levels = tuple(getattr(recipe.model, knob) == on for knob, on, _ in MECHANISMS.values())
        rest = recipe.model_dump()
        for knob in ("variant", *(knob for knob, _, _ in MECHANISMS.values())):
            del rest["model"][knob]
        grids.setdefault(json.dumps(rest, sort_keys=True), {}).setdefault(levels, result)
    cells = next((grid for grid in grids.values() if len(grid) == 2 ** len(MECHANISMS)), None)
    if cells is None:
        return []
    seeds = [seed for seed in next(iter(cells.values())).runs if all(seed in cell.runs for cell in cells.values())]
    found = []
    for metric in CURVES if seeds else ():
        values = {
            levels: [cell.runs[seed].values[metric] for seed in seeds if metric in cell.runs[seed].values]
            for levels, cell in cells.items()
        }
        if any(len(each) < len(seeds) for each in values.values()):
            continue
        baseline = float(np.mean(values[(False,) * len(MECHANISMS)]))
        for factors, estimate in factorial_effects(values, list(MECHANISMS)).items():
            percent = 100 * estimate.value / baseline
            found.append(Effect(metric, factors, estimate.value, estimate.interval, estimate.p, percent))
    return found


def equal_budget(results: Sequence[ArmResult], cost: str) -> dict[str, dict[str, float]]:
    """Validation losses of each arm where it has spent what the cheapest arm spends in all, read off its curve.

    Args:
        results: Of one stage.
        cost: Of a step: ``flops_per_step`` or ``seconds_per_step`` (its median over the runs).

    Returns:
        By arm: ``share`` of its steps that the budget pays for, and the mean over seeds of each loss there.
    """
    costs = {r.arm.name: float(np.median([run.number(cost) for run in r.runs.values()])) for r in results if r.runs}
    steps = {r.arm.name: float(np.median([run.number("steps") for run in r.runs.values()])) for r in results if r.runs}
    if not costs:
        return {}
    budget = min(costs[name] * steps[name] for name in costs)
    found = {}
    for result in results:
        if result.runs:
            name = result.arm.name
            reached = budget / costs[name]
            losses = {metric: _at(result, metric, reached) for metric in CURVES if metric in result.metrics}
            found[name] = {"share": reached / steps[name], **losses}
    return found


def _at(result: ArmResult, metric: str, step: float) -> float:
    values = []
    for run in result.runs.values():
        steps, losses = run.curve(metric)
        if not steps:
            return float("nan")
        values.append(float(np.interp(step, steps, losses)))
    return float(np.mean(values))


def is_better(result: ArmResult, metric: str) -> bool:
    """Whether the loss ``metric`` fell on average over the seeds."""
    found = result.metrics.get(metric)
    return found is not None and found.change is not None and found.change.percent < 0
