"""From runs to findings, on runs that are made up: effects find their arms, budgets are read off curves."""

from dataclasses import replace

import pytest

from grrcoca_cli.commands.ablate_fairness import sweep_section
from grrcoca_cli.commands.ablate_findings import Findings
from grrcoca_cli.commands.ablate_results import ArmResult, Metric, RunResult, equal_budget, mechanism_effects
from grrcoca_cli.studies import MECHANISMS, Arm, Study, arms_of, check_arms, read_study, tables_of

LOSSES = ("contrastive_loss", "ppl_token", "coca_loss")


def result(arm: Arm, loss: float, seeds: int = 3, **facts: object) -> ArmResult:
    runs = {seed: RunResult(seed, facts, None, dict.fromkeys(LOSSES, loss + 10 * seed)) for seed in range(seeds)}
    return ArmResult(arm, runs, {}, dict.fromkeys(LOSSES, Metric(loss, None)))


def test_effects_come_from_the_eight_arms_and_not_from_controls() -> None:
    study = read_study("mechanisms")
    arms = arms_of(study, [*study.variants, "grr-coca-axial", "coca"])
    recipes = check_arms(arms, tables_of(study))

    def loss(arm: Arm) -> float:
        model = recipes[arm.name].model
        if model.rope == "axial" or model.text_norm == "layernorm":
            return 1e6
        gains = dict(zip(MECHANISMS, (-0.5, -0.2, -3.0), strict=True))
        return 20 + sum(gains[name] for name, (knob, on, _) in MECHANISMS.items() if getattr(model, knob) == on)

    found = mechanism_effects([result(arm, loss(arm)) for arm in reversed(arms)], recipes)
    main = {effect.factors: effect for effect in found if effect.metric == "coca_loss"}
    assert {names: effect.value for names, effect in main.items()} == pytest.approx(
        {("rmsnorm",): -0.5, ("geglu",): -0.2, ("rope",): -3.0}
        | {names: 0 for names in main if len(names) > 1}
    )  # fmt: skip
    assert main[("rope",)].percent == pytest.approx(100 * -3 / 30)  # of the baseline's mean over seeds
    assert len(main) == 7


def test_effects_need_all_eight_arms_and_common_seeds() -> None:
    study = read_study("mechanisms")
    arms = arms_of(study)
    recipes = check_arms(arms, tables_of(study))
    results = [result(arm, 1.0) for arm in arms]
    assert mechanism_effects(results[1:], recipes) == []
    assert mechanism_effects([replace(results[0], runs={}), *results[1:]], recipes) == []


def test_an_equal_budget_is_what_the_cheapest_arm_spends() -> None:
    def curve(*losses: float) -> list[dict[str, float]]:
        return [{"step": 10.0 * step} | dict.fromkeys(LOSSES, loss) for step, loss in enumerate(losses)]

    cheap = result(Arm(name="cheap"), 1, curve=curve(9, 5, 4), steps=20, flops_per_step=3.0)
    dear = result(Arm(name="dear"), 1, curve=curve(9, 3, 1), steps=20, flops_per_step=4.0)
    found = equal_budget([cheap, dear], "flops_per_step")
    assert found["cheap"]["share"] == 1
    assert found["cheap"]["coca_loss"] == 4
    assert found["dear"]["share"] == 0.75
    assert found["dear"]["coca_loss"] == pytest.approx(2)  # halfway from step 10 to 20


def test_no_run_gives_no_budget() -> None:
    assert equal_budget([result(Arm(name="a"), 1, seeds=0)], "flops_per_step") == {}


@pytest.mark.parametrize(("best", "said"), [(0, "chosen, at the end"), (1, "chosen"), (2, "chosen, at the end")])
def test_a_choice_at_the_end_of_a_sweep_is_marked(best: int, said: str) -> None:
    study = Study(title="t", variants=("grr-coca",))
    tried = [({"training.learning_rate": rate}, float("inf")) for rate in (1e-4, 2e-4, 4e-4)]
    found = Findings(study, {"pretrain": []}, {}, (), {"a": tried}, {"a": tried[best][0]}, {})
    rows = [line for line in sweep_section(found).splitlines() if line.startswith("| a |")]
    assert [row.rpartition(" | ")[2] for row in rows] == [f"{said} |" if place == best else " |" for place in range(3)]
    assert "diverged" in rows[0]
