"""A study's report for people: Markdown with pictures, and the same as JSON beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from grrcoca_cli.commands.ablate_fairness import equal_flops_section, fairness_section, sweep_section, time_section
from grrcoca_cli.commands.ablate_findings import Findings, as_json, parameters_percent
from grrcoca_cli.commands.ablate_markdown import number, p_value, span, table
from grrcoca_cli.commands.ablate_plots import draw_changes, draw_curves, draw_effects, draw_scaling
from grrcoca_cli.commands.ablate_results import ArmResult, Change, Effect, Metric, mechanism_effects
from grrcoca_cli.commands.results import LABELS
from grrcoca_cli.evaluation.examples import HIGHER_IS_BETTER, LOSSES
from grrcoca_cli.files import write_atomically, write_json

SURE = 0.05
STAGES = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}


def write_report(out: Path, found: Findings) -> None:
    """Write ``report.md``, its pictures and ``report.json`` into ``out``."""
    parts = [f"# {found.study.title}\n", _about(found)]
    for stage, results in reversed(list(found.results.items())):
        parts += _stage_sections(out, found, stage, results)
    if found.screened:
        parts.append(_screening_section(found))
    if found.scaling:
        draw_scaling(out / "scaling.png", found)
        parts.append(_scaling_section(found))
    results = found.results[found.last]
    parts += [sweep_section(found), fairness_section(found), equal_flops_section(results), time_section(results)]
    write_json(out / "report.json", as_json(found))
    write_atomically(out / "report.md", "\n".join(part for part in parts if part))


def _about(found: Findings) -> str:
    results = found.results[found.last]
    run = next((run for result in results for run in result.runs.values()), None)
    if run is None:
        return "No run ended well.\n"
    seeds = sorted({seed for result in results for seed in result.runs})
    facts = run.facts["evaluation"]
    assert isinstance(facts, Mapping)
    left = f"; {facts['left_out']} pairs of a last short batch have no part in it" if facts["left_out"] else ""
    return (
        f"{len(results)} arms, seeds {', '.join(map(str, seeds))}. Every arm sees the same samples in the same order "
        f"for a seed, with the same schedule. Judged on {facts['samples']} samples (split `{facts['split']}`, "
        f"{facts['distinct_captions']} distinct captions) that no arm was trained on; the contrastive loss is among "
        f"{facts['batch']} pairs, the same for all arms{left}. Arms of a comparison are paired by seed. Intervals are "
        "95 %, Student's t over seeds; p is of the same t, Holm's is adjusted for the arms of the table, metric by "
        "metric.\n"
    )


def _stage_sections(out: Path, found: Findings, stage: str, results: Sequence[ArmResult]) -> list[str]:
    title = STAGES[stage]
    effects = mechanism_effects(results, found.recipes)
    draw_curves(out / f"curves-{stage}.png", results)
    draw_changes(out / f"changes-{stage}.png", results)
    parts = [
        f"## {title}: losses\n",
        _loss_table(results),
        f"![changes](changes-{stage}.png)\n",
        _change_table(results),
        f"## {title}: the same over examples\n",
        _example_table(results),
        f"## {title}: retrieval and captions\n",
        _score_table(results),
    ]
    if effects:
        draw_effects(out / f"effects-{stage}.png", effects)
        parts += [
            f"## {title}: effects of the mechanisms\n",
            _effect_table(effects),
            f"![effects](effects-{stage}.png)\n",
        ]
    curves = f"![curves](curves-{stage}.png)\n\nLine: mean over seeds. Band: smallest to largest.\n"
    return [*parts, f"## {title}: validation losses\n", curves]


def _loss_table(results: Sequence[ArmResult]) -> str:
    """As the paper's: each loss, and its relative change."""
    rows = []
    for result in results:
        cells = [result.arm.name]
        for name in LOSSES:
            metric = result.metrics.get(name)
            cells.append("not trained" if metric is None else f"{number(metric.value)} {span(metric.interval)}".strip())
            cells.append("" if metric is None or metric.change is None else f"{metric.change.percent:+.2f} %")
        rows.append(cells)
    return table(["arm", *(head for name in LOSSES for head in (LABELS[name], "change"))], rows)


def _change_table(results: Sequence[ArmResult]) -> str:
    rows = [
        [
            result.arm.name,
            result.arm.against,
            LABELS[name],
            f"{change.percent:+.2f} %",
            span(change.interval, signed=True, unit=" %"),
            p_value(change.p),
            p_value(change.p_holm),
            p_value(change.p_sign_flip),
            str(change.pairs),
        ]
        for result, name, _, change in _changes(results, LOSSES)
    ]
    head = ["arm", "against", "loss", "change", "95 % over seeds", "p", "p, Holm", "p, sign flip", "seeds"]
    return table(head, rows) if rows else ""


def _example_table(results: Sequence[ArmResult]) -> str:
    rows = [
        [
            result.arm.name,
            result.arm.against,
            LABELS[name],
            f"{change.examples.value:+.4f}",
            span(change.examples.interval, signed=True),
            p_value(change.examples.p),
        ]
        for result, name, _, change in _changes(results, (*LOSSES, *HIGHER_IS_BETTER))
    ]
    how = (
        "Difference in the metric's own unit, summed over the paired seeds example by example: a paired sign-flip test "
        "(p) and a paired bootstrap (95 %) over examples, for contrastive and CoCa loss over whole evaluation batches. "
        "They ask whether other examples would say the same of these very models; whether other seeds would, the table "
        "above says.\n"
    )
    return (
        how + "\n" + table(["arm", "against", "metric", "difference", "95 % over examples", "p"], rows) if rows else ""
    )


def _changes(results: Sequence[ArmResult], names: Sequence[str]) -> list[tuple[ArmResult, str, Metric, Change]]:
    return [
        (result, name, metric, metric.change)
        for result in results
        for name in names
        if (metric := result.metrics.get(name)) is not None and metric.change is not None
    ]


def _score_table(results: Sequence[ArmResult]) -> str:
    rows = []
    for result in results:
        found = [result.metrics.get(name) for name in HIGHER_IS_BETTER]
        cells = [
            "" if metric is None else f"{number(metric.value)} {span(metric.interval)}".strip() for metric in found
        ]
        rows.append([result.arm.name, *cells])
    return table(["arm", *(LABELS[name] for name in HIGHER_IS_BETTER)], rows)


def _effect_table(effects: Sequence[Effect]) -> str:
    rows = [
        [
            LABELS[effect.metric],
            " × ".join(effect.factors),
            f"{effect.value:+.4f}",
            span(effect.interval, signed=True),
            p_value(effect.p),
            f"{effect.percent:+.2f} %",
        ]
        for effect in effects
    ]
    how = (
        "An effect is what switching a mechanism on does, averaged over the others being on or off; an interaction is "
        "half of what one mechanism more changes in the effect, or the interaction, of the others: below 0 two help "
        "each other beyond what each does alone. The p are not adjusted for their number.\n"
    )
    return how + "\n" + table(["loss", "mechanisms", "effect", "95 % over seeds", "p", "of the baseline"], rows)


def _screening_section(found: Findings) -> str:
    results, seeds = found.screened[found.last], found.study.seeds
    dropped = ", ".join(result.arm.name for result in found.dropped) or "none"
    fresh = (
        f"The tables above are of {found.study.confirm_seeds} fresh seeds alone, so that choosing the best ones here "
        "flatters none. Confirmed is what is better there with Holm's p below .05."
        if found.passed
        else "With nothing to confirm, the tables above are the screening's."
    )
    lines = [
        "## Screening and confirmation\n",
        f"Screened on {seeds} seed{'s' if seeds > 1 else ''}, by the mean change in {LABELS[found.study.screen_by]}. "
        f"Passed: {', '.join(found.passed) or 'none'}. Dropped: {dropped}. {fresh}\n",
    ]
    if found.passed:
        lines += [_verdicts(found), "The screening itself:\n", _loss_table(results), _change_table(results)]
    return "\n".join(lines)


def _verdicts(found: Findings) -> str:
    """Each arm's change in both phases, by the loss that the screening went by."""
    name = found.study.screen_by
    screened, confirmed = (
        {result.arm.name: metric.change for result in results if (metric := result.metrics.get(name)) and metric.change}
        for results in (found.screened[found.last], found.results[found.last])
    )
    rows = []
    for arm in dict.fromkeys((*screened, *confirmed)):
        first, second = screened.get(arm), confirmed.get(arm)
        holds = second is not None and second.percent < 0 and second.p_holm is not None and second.p_holm < SURE
        rows.append(
            [
                arm,
                f"{first.percent:+.2f} %" if first else "",
                f"{second.percent:+.2f} % {span(second.interval, signed=True, unit=' %')}" if second else "",
                p_value(second.p_holm) if second else "",
                "dropped" if second is None else "confirmed" if holds else "not confirmed",
            ]
        )
    return table(["arm", f"{LABELS[name]}, screening", "confirmation", "p, Holm", "verdict"], rows)


def _scaling_section(found: Findings) -> str:
    rows = [
        [
            LABELS[name],
            f"{fit.parameters.value:.4f}",
            span(fit.parameters.interval),
            f"{fit.samples.value:.4f}",
            span(fit.samples.interval),
            f"{100 * fit.error:.1f} %",
        ]
        for name, fit in found.scaling.items()
    ]
    sizes = [
        [
            result.arm.name,
            f"{result.fact('parameters'):,.0f}",
            f"{parameters_percent(result, found.results[found.last]):+.1f} %",
        ]
        for result in found.results[found.last]
    ]
    return "\n".join(
        [
            "## Scaling\n",
            "loss = c · parameters^-a · samples^-b, by least squares on logarithms over the arms; without a floor, "
            "which so short a series cannot tell from the exponents.\n",
            table(["loss", "a", "95 %", "b", "95 %", "residual"], rows),
            "![scaling](scaling.png)\n",
            table(["arm", "parameters", "against its baseline"], sizes),
        ]
    )
