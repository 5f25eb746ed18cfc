"""``grrcoca ablate``: a study's grid of arms and seeds, run, judged and reported; goes on where it was stopped."""

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import tomli_w

from grrcoca_cli.commands.ablate_data import TOKENIZER, SharedData, with_data
from grrcoca_cli.commands.ablate_findings import Findings, as_json
from grrcoca_cli.commands.ablate_plan import Plan
from grrcoca_cli.commands.ablate_report import write_report
from grrcoca_cli.commands.ablate_results import is_better, judge_arms
from grrcoca_cli.commands.ablate_runs import Job, Stage, read_eval
from grrcoca_cli.commands.ablate_workers import run_jobs
from grrcoca_cli.config import Recipe, apply_settings, build_recipe, read_recipe
from grrcoca_cli.console import say
from grrcoca_cli.errors import ExitCode, UsageError
from grrcoca_cli.files import lock_folder, make_folder, write_atomically, write_json
from grrcoca_cli.studies import (
    SWEEP_SEED,
    Arm,
    Study,
    Tables,
    arms_of,
    check_arms,
    choices,
    combine,
    read_study,
    recipe_of,
    tables_of,
)

Choice = dict[str, float | str]

OF_BOTH_STAGES = ("eval.", "generation.")
"""Settings of ``--set`` that fine-tuning takes as well; the others are of pretraining."""


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    recipe: str
    out: Path
    variants: str = ""
    seeds: int | None = None
    settings: Sequence[str] = ()
    data: str = ""
    device: str = "auto"
    jobs: int = 0
    dry_run: bool = False
    as_json: bool = False


@dataclass
class _Grid:
    """The study with everything that its runs share; ``choices`` fills as sweeps end."""

    study: Study
    tables: Tables
    settings: Sequence[str]
    out: Path
    shared: SharedData
    tokenizer: str
    devices: Sequence[str]
    at_once: int
    choices: dict[str, Choice] = field(default_factory=dict)

    def job(self, arm: Arm, seed: int, folder: Path, choice: Choice, *, judged: bool) -> Job:
        """An arm's run with a seed; without ``judged`` its pretraining alone, which nothing is measured of."""
        tables = recipe_of(arm, self.tables, choice, seed)
        placed = self.shared.place(tables)
        placed["data"] = {**placed["data"], "tokenizer": self.tokenizer}
        of = self.shared.judged(tables, placed, self.study.split) if judged else None
        stages = [Stage("pretrain", placed, of)]
        if judged and self.study.finetune is not None:
            stages.append(self._finetuning(arm, seed))
        return Job(arm.name, seed, folder / arm.name / _label(choice, judged) / f"seed-{seed}", tuple(stages))

    def _finetuning(self, arm: Arm, seed: int) -> Stage:
        tables = self.tuning_tables(arm, seed)
        placed = self.shared.place(tables, "report")
        return Stage("finetune", placed, self.shared.judged(tables, placed, self.study.split, "report"))

    def tuning_tables(self, arm: Arm, seed: int) -> Tables:
        """Fine-tuning's own recipe, judged as pretraining is, with the arm's ``training`` settings."""
        stage = self.study.finetune
        assert stage is not None
        common = [setting for setting in self.settings if setting.startswith(OF_BOTH_STAGES)]
        training = [setting for setting in arm.set if setting.startswith("training.")]
        tables = read_recipe(stage.recipe)
        tables |= {name: {**tables.get(name, {}), **getattr(self.study, name)} for name in ("eval", "generation")}
        tables = apply_settings(tables, [*stage.set, *common, *training, f"training.seed={seed}"])
        return with_data(tables, stage.data)

    def run(self, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
        """The runs of ``arms`` at their chosen settings; seed by seed, so that what is done is paired."""
        jobs = [
            self.job(arm, seed, self.out / "runs", self.choices[arm.name], judged=True)
            for seed in seeds
            for arm in arms
        ]
        run_jobs(jobs, self.at_once, self.devices)

    def sweep(self, arms: Sequence[Arm]) -> dict[str, list[tuple[Choice, float]]]:
        """Try every arm's choices and keep the best; gives each with its validation loss, infinite if it diverged."""
        seeds = range(SWEEP_SEED, SWEEP_SEED + self.study.sweep_seeds)
        jobs = {
            (arm.name, place): [self.job(arm, seed, self.out / "sweep", choice, judged=False) for seed in seeds]
            for arm in arms
            if len(choices(arm)) > 1
            for place, choice in enumerate(choices(arm))
        }
        run_jobs([job for several in jobs.values() for job in several], self.at_once, self.devices)
        found = {}
        for arm in arms:
            tried = [(choice, _loss(jobs.get((arm.name, place), ()))) for place, choice in enumerate(choices(arm))]
            self.choices[arm.name] = min(tried, key=lambda each: each[1])[0]
            if len(tried) > 1:
                found[arm.name] = tried
        return found


def ablate(options: Options) -> ExitCode:
    """Run what is not done, then report on all of it.

    Raises:
        UsageError: The study, an arm or a flag is wrong.
        StoppedAndSaved: A signal came; the same command goes on.
    """
    study = read_study(options.recipe)
    if options.seeds is not None:
        if options.seeds < 1:
            raise UsageError(f"--seeds {options.seeds}: give 1 or more")
        study = study.model_copy(update={"seeds": options.seeds})
    arms = arms_of(study, [name.strip() for name in options.variants.split(",") if name.strip()])
    tables = with_data(tables_of(study, options.settings), options.data)
    recipes = check_arms(arms, tables)
    if options.dry_run:
        _plan(study, arms, tables, options).show(as_json=options.as_json)
        say("dry run: nothing was kept")
        return ExitCode.OK
    with lock_folder(options.out):
        write_json(options.out / "study.json", study.model_dump(mode="json") | {"set": list(options.settings)})
        grid = _open_grid(study, arms, tables, options)
        found = _run_study(grid, arms, recipes)
        write_report(options.out, found)
    if options.as_json:
        print(json.dumps(as_json(found)))
    else:
        print((options.out / "report.md").read_text(encoding="utf-8"), end="")
    say(f"report: {options.out / 'report.md'}")
    return ExitCode.OK


def _open_grid(study: Study, arms: Sequence[Arm], tables: Tables, options: Options) -> _Grid:
    shared = SharedData(options.out, study.test)
    tokenizer = shared.tokenizer([shared.place(recipe_of(arm, tables)) for arm in arms])
    devices = [name.strip() for name in options.device.split(",") if name.strip()] or ["auto"]
    return _Grid(study, tables, options.settings, options.out, shared, tokenizer, devices, options.jobs or len(devices))


def _run_study(grid: _Grid, arms: Sequence[Arm], recipes: dict[str, Recipe]) -> Findings:
    study, runs = grid.study, grid.out / "runs"
    sweep = grid.sweep(arms)
    seeds = range(study.seeds)
    grid.run(arms, seeds)
    stages = ["pretrain", *(["finetune"] if study.finetune else [])]
    if not study.confirm_seeds:
        results = {stage: judge_arms(runs, arms, seeds, stage) for stage in stages}
        return Findings(study, results, {}, (), sweep, grid.choices, recipes)

    screened = {stage: judge_arms(runs, arms, seeds, stage, "screened") for stage in stages}
    passed = [result.arm for result in screened[stages[-1]] if is_better(result, study.screen_by)]
    names = [arm.name for arm in passed]
    say(f"passed the screening: {', '.join(names) or 'none'}")
    if not passed:
        return Findings(study, screened, screened, (), sweep, grid.choices, recipes)
    confirmed = list(passed)
    if study.combined and len(passed) > 1:
        together = combine(study.combined, passed)
        recipes = recipes | check_arms([together], grid.tables)
        sweep |= grid.sweep([together])
        confirmed.append(together)
    needed = {arm.against for arm in confirmed}
    again = [*(arm for arm in arms if arm.name in needed), *(arm for arm in confirmed if arm.name not in needed)]
    fresh = range(study.seeds, study.seeds + study.confirm_seeds)
    grid.run(again, fresh)
    results = {stage: judge_arms(runs, again, fresh, stage, "confirmed") for stage in stages}
    return Findings(study, results, screened, names, sweep, grid.choices, recipes)


def _label(choice: Choice, judged: bool) -> str:
    """A folder's name; the runs of an arm stand right in its own."""
    return "" if judged else ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in choice.items())


def _loss(jobs: Sequence[Job]) -> float:
    """Mean of the last validation loss by the recipe's monitor; infinite where a run diverged."""
    losses = []
    for job in jobs:
        facts = read_eval(job.folder / "pretrain")
        monitor = build_recipe(job.stages[0].tables, job.label).training.monitor
        curve = cast(Sequence[dict[str, float]], facts.get("curve", ()))
        losses.append(curve[-1][monitor] if curve else math.inf)
    return sum(losses) / len(losses) if losses else math.inf


def _plan(study: Study, arms: Sequence[Arm], tables: Tables, options: Options) -> Plan:
    """What would be run, with the tokenizer of the real run and a measured step; nothing is kept."""
    from grrcoca_cli.commands.train import Options as Training
    from grrcoca_cli.commands.train import measure_step
    from grrcoca_cli.data.tokenizer import CaptionTokenizer

    kept = options.out / TOKENIZER
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if kept.is_file():  # an earlier start's, which the real run would take
            make_folder((scratch / TOKENIZER).parent)
            shutil.copyfile(kept, scratch / TOKENIZER)
        grid = _open_grid(study, arms, tables, replace(options, out=scratch))
        vocabulary = f"model.vocab_size={CaptionTokenizer.load(Path(grid.tokenizer)).vocab_size}"
        recipes = check_arms(arms, apply_settings(tables, [vocabulary]))
        tunings = {
            arm.name: build_recipe(grid.tuning_tables(arm, 0), f"arm {arm.name}") for arm in arms if study.finetune
        }
        first = grid.job(arms[0], 0, scratch / "trial", choices(arms[0])[0], judged=False)
        path = scratch / "trial.toml"
        write_atomically(path, tomli_w.dumps(first.stages[0].tables))
        seconds = measure_step(Training(scratch / "trial", str(path), device=grid.devices[0], dry_run=True))
    return Plan(study, arms, recipes, tunings, seconds)
