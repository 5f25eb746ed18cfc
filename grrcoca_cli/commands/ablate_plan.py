"""What an ablation would run: its arms with their parameters, how many runs, and how long they take."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grrcoca_cli.config import Recipe
from grrcoca_cli.console import duration
from grrcoca_cli.studies import Arm, Study, choices
from grrcoca_cli.training.costs import meta_model, step_flops


@dataclass(frozen=True)
class Plan:
    """A study whose runs are known and not done.

    Attributes:
        study: The study.
        arms: Its arms, or the chosen ones.
        recipes: Of each arm's pretraining, with the vocabulary of the tokenizer that all runs share.
        tunings: Of each arm's fine-tuning; empty where the study has none.
        seconds: A step of the first arm's pretraining, measured.
    """

    study: Study
    arms: Sequence[Arm]
    recipes: Mapping[str, Recipe]
    tunings: Mapping[str, Recipe]
    seconds: float

    def runs(self) -> dict[str, int]:
        """How many runs of each kind."""
        study, swept = self.study, sum(map(self._swept, self.arms))
        return {
            "sweep": swept,
            "runs": len(self.arms) * study.seeds,
            "confirmation_at_most": len(self.arms) * study.confirm_seeds,
        }

    def parameters(self) -> dict[str, int]:
        """Of each arm's model."""
        return {
            name: sum(parameter.numel() for parameter in meta_model(recipe.model).parameters())
            for name, recipe in self.recipes.items()
        }

    def total_seconds(self) -> float:
        """Of all training steps one after another, by the arithmetic of each arm's steps."""
        first = self.recipes[self.arms[0].name]
        flops = 0.0
        for arm in self.arms:
            recipe, judged = self.recipes[arm.name], self.study.seeds + self.study.confirm_seeds
            flops += (self._swept(arm) + judged) * recipe.training.steps * _flops(recipe, recipe)
            if tuning := self.tunings.get(arm.name):
                flops += judged * tuning.training.steps * _flops(recipe, tuning)
        return self.seconds * flops / _flops(first, first)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        counts = self.parameters()
        rows = [
            {
                "variant": arm.name,
                "against": arm.against,
                "parameters": counts[arm.name],
                "percent": round(_change(counts, arm), 2),
            }
            for arm in self.arms
        ]
        times = {"seconds_per_step": round(self.seconds, 4), "seconds_to_end": round(self.total_seconds(), 1)}
        return {"schema": 1, "arms": rows, **self.runs(), **times}

    def lines(self) -> list[str]:
        """For people."""
        counts = self.parameters()
        return [
            *(
                f"{arm.name}: {counts[arm.name]:,} parameters, {_change(counts, arm):+.2f} % against {arm.against}"
                for arm in self.arms
            ),
            ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.runs().items()),
            f"time: about {duration(self.total_seconds())} for the training steps of all runs, one run at a time; "
            f"{self.seconds:.3g} s a step of {self.arms[0].name}, measured, the others by their arithmetic",
        ]

    def show(self, *, as_json: bool) -> None:
        """Print it."""
        print(json.dumps(self.as_json()) if as_json else "\n".join(self.lines()))

    def _swept(self, arm: Arm) -> int:
        return len(choices(arm)) * self.study.sweep_seeds if len(choices(arm)) > 1 else 0


def _change(counts: Mapping[str, int], arm: Arm) -> float:
    """Per cent of parameters more than the arm that it is compared with."""
    return 100 * (counts[arm.name] / counts[arm.against] - 1)


def _flops(model: Recipe, run: Recipe) -> float:
    """Operations of a step of ``run`` with the model of another recipe, with captions as long as the context."""
    training = run.training
    return step_flops(
        meta_model(model.model),
        training.batch_size,
        model.model.context_length,
        contrastive=training.batch_size // training.accumulation,
    )
