"""All that a study found, and its JSON form."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import cast

import numpy as np

from grrcoca_cli.commands.ablate_results import ArmResult, Metric, equal_budget, mechanism_effects
from grrcoca_cli.config import Recipe
from grrcoca_cli.evaluation.effects import PowerLaw, fit_power_law
from grrcoca_cli.evaluation.statistics import Interval
from grrcoca_cli.studies import Study

SCHEMA = 1
SCALED = ("contrastive_loss", "caption_loss", "coca_loss")
FLAGGED = 1.0
"""Per cent of parameters beyond which two arms are not equal."""


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        study: What it asked.
        results: Of its arms by stage, ``pretrain`` before ``finetune``; of the confirmation, where there was one.
        screened: The same of the screening; empty where there was none.
        passed: Arms that the screening let through; where none, ``results`` are the screening's.
        sweep: What was tried for each arm, with the validation loss.
        choices: What was chosen.
        recipes: Of each arm, before the sweep's choice.
    """

    study: Study
    results: Mapping[str, Sequence[ArmResult]]
    screened: Mapping[str, Sequence[ArmResult]]
    passed: Sequence[str]
    sweep: Mapping[str, Sequence[tuple[Mapping[str, float | str], float]]]
    choices: Mapping[str, Mapping[str, float | str]]
    recipes: Mapping[str, Recipe]

    @property
    def last(self) -> str:
        """The stage that the study is about."""
        return list(self.results)[-1]

    @property
    def dropped(self) -> list[ArmResult]:
        """Arms that the screening left behind."""
        own = [result for result in self.screened.get(self.last, ()) if result.arm.name != result.arm.against]
        return [result for result in own if result.arm.name not in self.passed]

    @cached_property
    def scaling(self) -> dict[str, PowerLaw]:
        """Fitted losses by name, where the study asks for them and the runs determine them."""
        results = [result for result in self.results[self.last] if result.runs] if self.study.scaling else []
        found = {}
        for name in SCALED:
            used = [result for result in results if name in result.metrics]
            sizes = [result.fact("parameters") for result in used]
            losses = [result.metrics[name].value for result in used]
            if used and (fit := fit_power_law(sizes, [samples_of(result) for result in used], losses)) is not None:
                found[name] = fit
        return found


def samples_of(result: ArmResult) -> float:
    """Training samples of an arm."""
    run = next(iter(result.runs.values()))
    return float(cast(Mapping[str, float], run.facts["data_order"])["train"])


def parameters_percent(result: ArmResult, results: Sequence[ArmResult]) -> float:
    """How many parameters an arm has more than the one it is compared with; NaN where either never ended well."""
    other = next((each for each in results if each.arm.name == result.arm.against), None)
    return math.nan if other is None else 100 * (result.fact("parameters") / other.fact("parameters") - 1)


def tried(found: Findings, arm: str) -> int:
    """Settings that were tried for an arm before its runs."""
    return len(found.sweep.get(arm, ())) or 1


def as_json(found: Findings) -> dict[str, object]:
    """For programs. Everything but ``times`` depends on the study and the seeds alone."""
    study = found.study
    earlier = {stage: _stage(found, results) for stage, results in found.results.items() if stage != found.last}
    plain = {
        "schema": SCHEMA,
        "title": study.title,
        "stage": found.last,
        **_stage(found, found.results[found.last], found.dropped if found.passed else ()),
        **({"earlier_stages": earlier} if earlier else {}),
        "screening": _screening(found),
        "sweep": {
            arm: [
                {**choice, "validation_loss": loss, "chosen": choice == found.choices[arm]} for choice, loss in several
            ]
            for arm, several in found.sweep.items()
        },
        "scaling": {name: asdict(fit) for name, fit in found.scaling.items()},
        "times": times(found.results[found.last]),
    }
    return cast("dict[str, object]", to_plain(plain))


def _stage(found: Findings, results: Sequence[ArmResult], dropped: Sequence[ArmResult] = ()) -> dict[str, object]:
    return {
        "arms": [_arm(found, result, [*results, *dropped]) for result in (*results, *dropped)],
        "effects": [asdict(effect) for effect in mechanism_effects(results, found.recipes)],
        "equal_flops": equal_budget(results, "flops_per_step"),
    }


def _screening(found: Findings) -> dict[str, object] | None:
    if not found.screened:
        return None
    results = found.screened[found.last]
    return {
        "by": found.study.screen_by,
        "passed": list(found.passed),
        "dropped": [result.arm.name for result in found.dropped],
        "arms": [_arm(found, result, results) for result in results],
    }


def _arm(found: Findings, result: ArmResult, results: Sequence[ArmResult]) -> dict[str, object]:
    run = next(iter(result.runs.values()), None)
    percent = parameters_percent(result, results)
    return {
        "variant": result.arm.name,
        "against": result.arm.against,
        "phase": result.phase or None,
        "settings": list(result.arm.set),
        "chosen": dict(found.choices[result.arm.name]),
        "tried": tried(found, result.arm.name),
        "parameters": int(run.number("parameters")) if run else None,
        "parameters_percent": percent,
        "equal_parameters": abs(percent) <= FLAGGED,
        **{
            name: run.facts[name] if run else None
            for name in (
                "flops_per_step",
                "steps",
                "batch_size",
                "learning_rate",
                "early_stopping",
                "weights",
                "evaluation",
            )
        },
        "metrics": {name: _metric(metric) for name, metric in result.metrics.items()},
        "seeds": [
            {"seed": seed, "metrics": run.values, "data_order": run.facts["data_order"]}
            for seed, run in result.runs.items()
        ],
        "failed": [{"seed": seed, "reason": reason} for seed, reason in result.failed.items()],
    }


def _metric(metric: Metric) -> dict[str, object]:
    return {"value": metric.value, "interval": metric.interval, "change": metric.change and asdict(metric.change)}


def times(results: Sequence[ArmResult]) -> dict[str, object]:
    """Wall times, and the losses that equal time gives: what differs from run to run."""
    arms = {}
    for result in results:
        if result.runs:
            step = float(np.median([run.number("seconds_per_step") for run in result.runs.values()]))
            threads = sorted({int(run.number("threads")) for run in result.runs.values()})
            arms[result.arm.name] = {
                "seconds_per_step": step,
                "seconds": step * result.fact("steps"),
                "threads": threads,
            }
    return {"arms": arms, "equal_time": equal_budget(results, "seconds_per_step")}


def to_plain(value: object) -> object:
    """Intervals as pairs, what is not finite as None: what JSON can hold."""
    if isinstance(value, Interval):
        return [value.low, value.high]
    if isinstance(value, Mapping):
        if value.keys() == {"low", "high"}:  # an interval that `asdict` took apart
            return [value["low"], value["high"]]
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
