"""Studies: grids of arms and seeds that ``ablate`` runs, read from ``recipes/studies``; what each arm is by name."""

import difflib
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from grrcoca_cli.config import (
    VARIANTS,
    Recipe,
    Section,
    apply_settings,
    build_recipe,
    parse_toml,
    read_recipe,
    recipe_folder,
)
from grrcoca_cli.errors import UsageError

Tables = dict[str, dict[str, object]]
"""Of a recipe, by section."""

MECHANISMS = {
    "rmsnorm": ("image_norm", "rmsnorm", "layernorm"),
    "geglu": ("image_mlp", "geglu", "gelu"),
    "rope": ("image_positions", "rope", "learned"),
}
"""Name of each mechanism of the image encoder: its knob in ``[model]``, the knob's value with it and without it."""

SECTIONS = ("model", "data", "training", "eval", "generation")


class Arm(Section):
    """One thing that is compared.

    Attributes:
        name: Of its folder, too.
        set: Its settings, each ``section.key=value``.
        against: The arm that it is compared with; where empty, the study's baseline.
        equal_parameters: Whether it claims as many parameters as that arm, to one per cent.
        sweep: Settings of which it tries every value beside those that the study's sweep tries for all arms.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+._-]*$")
    set: tuple[str, ...] = ()
    against: str = ""
    equal_parameters: bool = True
    sweep: dict[str, tuple[float | str, ...]] = Field(default_factory=dict)


class Finetuning(Section):
    """The second stage of every run.

    Attributes:
        recipe: Packaged, or a file.
        data: A folder; where empty, and the recipe's set is ``phantoms``, reports of other phantoms are drawn.
        set: Settings over the recipe; the study's ``[eval]`` and ``[generation]`` hold here, too.
    """

    recipe: str = "finetune_folder"
    data: str = ""
    set: tuple[str, ...] = ()


class Study(Section):
    """A grid of runs and how they are judged; ``[model]`` to ``[generation]`` are common to all arms.

    Attributes:
        title: The question.
        base: The recipe that the common settings stand over; where empty, the defaults.
        seeds: Runs an arm, with training seeds 0, 1 and so on.
        variants: Arms by name: those of `named_arms`.
        arm: Further arms; one that is named as a variant takes its place, with its settings where it has none.
        baseline: The arm that the others are compared with.
        sweep: Settings with the values that are tried for every arm alike before the runs, on other seeds; the
            values with the lowest validation loss (``training.monitor``) are then the arm's.
        sweep_seeds: Seeds a value of the sweep, numbered from `SWEEP_SEED`.
        confirm_seeds: Where above 0, ``seeds`` is a screening: arms that do better than theirs on its mean
            ``screen_by`` run again on so many fresh seeds, on which alone they are then judged, with Holm's
            correction.
        screen_by: The loss that the screening goes by.
        combined: Name of a further arm in the confirmation: the settings of all that passed, together.
        scaling: Fit loss against parameters and training samples over all arms.
        split: Of the data that the runs are judged on; where empty, ``test`` if there is one, else what training
            validates on.
        test: Phantoms that runs are judged on.
        finetune: A second stage.
    """

    title: str
    base: str = ""
    seeds: int = Field(default=3, ge=1)
    variants: tuple[str, ...] = ()
    arm: tuple[Arm, ...] = ()
    baseline: str = "baseline-coca"
    sweep: dict[str, tuple[float | str, ...]] = Field(default_factory=dict)
    sweep_seeds: int = Field(default=1, ge=1)
    confirm_seeds: int = Field(default=0, ge=0)
    screen_by: Literal["contrastive_loss", "caption_loss", "coca_loss"] = "coca_loss"
    combined: str = ""
    scaling: bool = False
    split: str = ""
    test: int = Field(default=512, ge=2)
    finetune: Finetuning | None = None
    model: dict[str, object] = Field(default_factory=dict)
    data: dict[str, object] = Field(default_factory=dict)
    training: dict[str, object] = Field(default_factory=dict)
    eval: dict[str, object] = Field(default_factory=dict)
    generation: dict[str, object] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _stands(self) -> Self:
        if not (self.variants or self.arm):
            raise ValueError("it has no arm: give variants, or [[arm]]")
        if self.combined and not self.confirm_seeds:
            raise ValueError("combined takes part in the confirmation: set confirm_seeds")
        if "seed" in self.training:
            raise ValueError("training.seed is counted through by the study: set seeds")
        return self


SWEEP_SEED = 1000
"""First seed of a sweep, far from those of the runs."""


def named_arms() -> dict[str, Arm]:
    """Every arm that has a name without a study.

    The eight combinations of the image encoder's mechanisms over the paper's text decoders; the original CoCa; and
    the controls: the wide GEGLU (in the text decoders, too, hence with a baseline of its own) and axial RoPE.
    """
    arms = {}
    for chosen in itertools.product((False, True), repeat=len(MECHANISMS)):
        on = [name for name, is_on in zip(MECHANISMS, chosen, strict=True) if is_on]
        name = "+".join(on) if 0 < len(on) < len(MECHANISMS) else "grr-coca" if on else "baseline-coca"
        knobs = zip(MECHANISMS.values(), chosen, strict=True)
        settings = [f"model.{knob}={with_it if is_on else without}" for (knob, with_it, without), is_on in knobs]
        settings = [f"model.variant={'grr-coca' if all(chosen) else 'baseline-coca'}", *settings]
        arms[name] = Arm(name=name, set=tuple(settings))
    original = ("model.variant=coca", *(f"model.{knob}={value}" for knob, value in VARIANTS["coca"].items()))
    arms["coca"] = Arm(name="coca", set=original, equal_parameters=False)
    grr, baseline, wide = arms["grr-coca"].set, arms["baseline-coca"].set, "model.geglu=wide"
    arms["grr-coca-axial"] = Arm(name="grr-coca-axial", set=(*grr, "model.rope=axial"))
    arms["baseline-coca-wide"] = Arm(name="baseline-coca-wide", set=(*baseline, wide), equal_parameters=False)
    arms["grr-coca-wide"] = Arm(
        name="grr-coca-wide", set=(*grr, wide), against="baseline-coca-wide", equal_parameters=False
    )
    return arms


def study_names() -> list[str]:
    """Names that ``ablate --recipe`` knows."""
    return sorted(path.stem for path in (recipe_folder() / "studies").glob("*.toml"))


def read_study(name_or_file: str) -> Study:
    """A packaged study (``mechanisms`` or ``studies/mechanisms``), or that of a TOML file.

    Raises:
        UsageError: There is no such study, it is not TOML, or it holds a name or value that does not fit.
    """
    packaged = recipe_folder() / "studies" / f"{name_or_file.removeprefix('studies/')}.toml"
    path = packaged if packaged.stem in study_names() and not Path(name_or_file).is_file() else Path(name_or_file)
    try:
        return Study.model_validate(parse_toml(path.read_text(encoding="utf-8"), f"study {path}"))
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(study_names())
        raise UsageError(
            f"no study {name_or_file!r}: it is neither a readable file nor one of {known}{_nearest(name_or_file)}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"study {path} is not TOML: {error}") from error
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UsageError(f"study {path}: " + "; ".join(line.removeprefix(": ") for line in lines)) from error


def arms_of(study: Study, chosen: Sequence[str] = ()) -> list[Arm]:
    """The study's arms, or the ``chosen`` ones of them and of `named_arms`, in that order; ``against`` filled in.

    Raises:
        UsageError: There is no arm of that name, or one is named twice.
    """
    known = named_arms()
    for arm in study.arm:
        named = known.get(arm.name, arm)
        known[arm.name] = arm if arm.set else arm.model_copy(update={"set": named.set})
    names = list(chosen) or [*study.variants, *(arm.name for arm in study.arm if arm.name not in study.variants)]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"no arm {name!r}: they are {', '.join(known)}{hint}")
        if names.count(name) > 1:
            raise UsageError(f"arm {name!r} is named twice")
    baseline = study.baseline if study.baseline in names else names[0]
    arms = [known[name] for name in names]
    return [
        arm.model_copy(
            update={"against": arm.against if arm.against in names else baseline, "sweep": _sweep(study, arm)}
        )
        for arm in arms
    ]


def _sweep(study: Study, arm: Arm) -> dict[str, tuple[float | str, ...]]:
    return {**study.sweep, **arm.sweep}


def tables_of(study: Study, settings: Sequence[str] = ()) -> Tables:
    """What all arms have in common: the base recipe, the study's sections over it, and ``--set`` over those.

    Raises:
        UsageError: A setting is wrong, or is of the seed.
    """
    tables: Mapping[str, Mapping[str, object]] = read_recipe(study.base) if study.base else {}
    merged = {section: {**tables.get(section, {}), **getattr(study, section)} for section in SECTIONS}
    if any(setting.split("=")[0].strip() == "training.seed" for setting in settings):
        raise UsageError("training.seed is counted through by ablate: give --seeds N")
    return apply_settings({**tables, **merged}, settings)


def recipe_of(arm: Arm, tables: Tables, choice: Mapping[str, float | str] | None = None, seed: int = 0) -> Tables:
    """The tables of one run: the arm's settings over the common ones, then what its sweep chose, then the seed.

    Raises:
        UsageError: A setting of the arm is not of the form ``section.key=value``.
    """
    merged = apply_settings(tables, arm.set)
    for name, value in (choice or {}).items():
        section, _, key = name.partition(".")
        merged.setdefault(section, {})[key] = value
    merged.setdefault("training", {})["seed"] = seed
    return merged


def check_arms(arms: Sequence[Arm], tables: Tables) -> dict[str, Recipe]:
    """The validated recipe of each arm, with the first of the values that it sweeps.

    Raises:
        UsageError: An arm's recipe does not stand.
    """
    found: dict[str, Recipe] = {}
    for arm in arms:
        for choice in choices(arm):
            recipe = build_recipe(recipe_of(arm, tables, choice), f"arm {arm.name}")
            found.setdefault(arm.name, recipe)
    return found


def choices(arm: Arm) -> list[dict[str, float | str]]:
    """Every combination of the values that the arm sweeps, one without any where it sweeps nothing."""
    return [dict(zip(arm.sweep, values, strict=True)) for values in itertools.product(*arm.sweep.values())]


def combine(name: str, arms: Sequence[Arm]) -> Arm:
    """An arm with the settings of all ``arms``; what it sweeps and is compared with are the first one's."""
    settings = tuple(dict.fromkeys(setting for arm in arms for setting in arm.set))
    return arms[0].model_copy(update={"name": name, "set": settings, "equal_parameters": False})


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name.removeprefix("studies/"), study_names(), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
