"""What a sceptical reader asks of a comparison, side by side for every arm."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

from grrcoca_cli.commands.ablate_findings import FLAGGED, Findings, parameters_percent, times, tried
from grrcoca_cli.commands.ablate_markdown import number, table
from grrcoca_cli.commands.ablate_results import CURVES, ArmResult, equal_budget
from grrcoca_cli.commands.results import LABELS

Choice = Mapping[str, float | str]


def fairness_section(found: Findings) -> str:
    """Parameters, arithmetic, tuning, data order, evaluation batch and early stopping of each arm."""
    results = found.results[found.last]
    rows = [_fairness_row(found, result, results) for result in results]
    head = [
        "arm",
        "parameters",
        "against its baseline",
        "FLOPs a step",
        "steps",
        "batch",
        "learning rate",
        "settings tried",
    ]
    more = [
        "training samples",
        "data order by seed",
        "evaluation batch",
        "early stopping",
        "loss weights",
        "failed seeds",
    ]
    notes = (
        "An arm whose parameters differ from its baseline's by more than "
        f"{FLAGGED:g} % is marked. The data order is a hash of which sample came when; equal ones are equal orders. "
        "All runs are judged at their last step. First weights are drawn from the seed by each arm in its own order: "
        "they are alike in kind, not equal.\n"
    )
    return "\n".join(["## Fairness\n", table([*head, *more], rows), notes, _settings(results)])


def _fairness_row(found: Findings, result: ArmResult, results: Sequence[ArmResult]) -> list[str]:
    run = next(iter(result.runs.values()), None)
    failed = ", ".join(map(str, result.failed)) or "none"
    if run is None:
        return [result.arm.name, *[""] * 12, failed]
    percent = parameters_percent(result, results)
    mark = " (!)" if abs(percent) > FLAGGED else ""
    orders = {seed: cast(Mapping[str, object], each.facts["data_order"]) for seed, each in result.runs.items()}
    evaluation, weights = (cast(Mapping[str, float], run.facts[name]) for name in ("evaluation", "weights"))
    return [
        result.arm.name,
        f"{run.number('parameters'):,.0f}",
        "" if math.isnan(percent) else f"{percent:+.2f} %{mark}",
        f"{run.number('flops_per_step') / 1e9:.3f} G",
        ", ".join(sorted({f"{each.number('steps'):.0f}" for each in result.runs.values()})),
        f"{run.number('batch_size'):.0f}",
        f"{run.number('learning_rate'):g}",
        str(tried(found, result.arm.name)),
        f"{next(iter(orders.values()))['train']}",
        " ".join(f"{seed}: {str(order['hash'])[:6]}" for seed, order in orders.items()),
        f"{evaluation['batch']}",
        str(run.facts["early_stopping"]),
        f"{weights['contrastive']:g} contrastive, {weights['caption']:g} caption",
        failed,
    ]


def _settings(results: Sequence[ArmResult]) -> str:
    rows = [[result.arm.name, "; ".join(f"`{setting}`" for setting in result.arm.set) or "none"] for result in results]
    return table(["arm", "its settings"], rows)


def sweep_section(found: Findings) -> str:
    """Every value that was tried for every arm, with the loss that the choice went by."""
    if not found.sweep:
        return ""
    rows = [
        [
            arm,
            ", ".join(f"{name} = {value}" for name, value in choice.items()),
            number(loss) if math.isfinite(loss) else "diverged",
            _verdict(choice, several) if choice == found.choices[arm] else "",
        ]
        for arm, several in found.sweep.items()
        for choice, loss in several
    ]
    count = found.study.sweep_seeds
    seeds = "a seed" if count == 1 else f"{count} seeds"
    how = (
        f"On {seeds} of its own, by the validation loss at the last step, before the runs. A choice at the end of what "
        "was tried says that the best value may lie beyond.\n"
    )
    return "\n".join(["## Sweep\n", how, table(["arm", "setting", "validation loss", ""], rows)])


def _verdict(chosen: Choice, several: Sequence[tuple[Choice, float]]) -> str:
    for name, value in chosen.items():
        values = [choice[name] for choice, _ in several]
        numbers = [each for each in values if isinstance(each, int | float)]
        if len(set(numbers)) > 2 and value in (min(numbers), max(numbers)):
            return "chosen, at the end"
    return "chosen"


def equal_flops_section(results: Sequence[ArmResult]) -> str:
    """Validation losses where every arm has spent the arithmetic that the cheapest one spends in all."""
    how = (
        "Validation losses read off the curves where each arm has spent what the cheapest arm spends in all its steps. "
        "An arm that is read before its last step is read before its learning rate has come down: this view is hard on "
        "it.\n"
    )
    return "\n".join(["## At equal arithmetic\n", how, _budget_table(equal_budget(results, "flops_per_step"))])


def time_section(results: Sequence[ArmResult]) -> str:
    """Wall times, and the losses at equal time: last, since it alone differs when a study is run again."""
    found = times(results)
    rows = [
        [arm, f"{row['seconds_per_step']:.4f}", f"{row['seconds']:.0f}", ", ".join(map(str, row["threads"]))]
        for arm, row in cast(Mapping[str, Mapping[str, list[int]]], found["arms"]).items()
    ]
    how = "Medians over steps and runs, evaluations apart; other work on the machine shows in them.\n"
    budget = cast(Mapping[str, Mapping[str, float]], found["equal_time"])
    return "\n".join(
        [
            "## Time\n",
            how,
            table(["arm", "seconds a step", "seconds of training", "threads"], rows),
            "Validation losses when the fastest arm has ended, as above:\n",
            _budget_table(budget),
        ]
    )


def _budget_table(budget: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [arm, f"{100 * row['share']:.1f} %", *(number(row[name]) if name in row else "" for name in CURVES)]
        for arm, row in budget.items()
    ]
    return table(["arm", "of its steps", *(LABELS[name] for name in CURVES)], rows)
