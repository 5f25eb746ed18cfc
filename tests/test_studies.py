"""Every shipped study stands: it parses, its arms build, and those that claim equal parameters have them."""

import re
from pathlib import Path

import pytest

from grrcoca_cli.config import recipe_folder
from grrcoca_cli.errors import UsageError
from grrcoca_cli.studies import (
    MECHANISMS,
    Arm,
    Study,
    arms_of,
    check_arms,
    choices,
    combine,
    named_arms,
    read_study,
    recipe_of,
    study_names,
    tables_of,
)
from grrcoca_cli.training.costs import meta_model

SMALL = {"title": "t", "variants": ("baseline-coca", "grr-coca")}


def parameters(study: Study) -> dict[str, int]:
    recipes = check_arms(arms_of(study), tables_of(study))
    return {name: sum(p.numel() for p in meta_model(recipe.model).parameters()) for name, recipe in recipes.items()}


@pytest.mark.parametrize("name", study_names())
def test_every_study_stands(name: str) -> None:
    study = read_study(name)
    counts = parameters(study)
    for arm in arms_of(study):
        if arm.equal_parameters:
            assert counts[arm.name] == pytest.approx(counts[arm.against], rel=0.01), arm.name
    head = (recipe_folder() / "studies" / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")[0]
    launches = [line for line in head.splitlines() if line.startswith("#   grrcoca ablate ")]
    assert len(launches) == 2
    assert all(f"--recipe {name} " in line for line in launches)
    assert "Every number here is ours" in head
    assert f"{name}.toml" in (recipe_folder() / "studies" / "README.md").read_text(encoding="utf-8")


def test_the_default_grid_is_all_eight_combinations_and_nothing_else() -> None:
    study = read_study("mechanisms")
    recipes = check_arms(arms_of(study), tables_of(study))
    levels = {tuple(getattr(recipe.model, knob) for knob, _, _ in MECHANISMS.values()) for recipe in recipes.values()}
    assert len(recipes) == len(levels) == 8
    for recipe in recipes.values():
        text = recipe.model.text_norm, recipe.model.text_mlp, recipe.model.text_positions
        assert text == ("rmsnorm", "geglu", "rope")
        rest = recipe.model_dump() | {"model": None}
        assert rest == recipes["grr-coca"].model_dump() | {"model": None}


def test_a_wide_geglu_is_compared_with_a_baseline_of_the_same_text_decoders() -> None:
    study = read_study("controls")
    (wide,) = (arm for arm in arms_of(study) if arm.name == "grr-coca-wide")
    recipes = check_arms(arms_of(study), tables_of(study))
    assert recipes[wide.name].model.geglu == recipes[wide.against].model.geglu == "wide"
    assert not wide.equal_parameters


@pytest.mark.parametrize("name", ["studies/mechanisms", str(recipe_folder() / "studies" / "mechanisms.toml")])
def test_a_study_has_three_names(name: str) -> None:
    assert read_study(name) == read_study("mechanisms")


def test_settings_come_in_order() -> None:
    study = Study.model_validate(SMALL | {"training": {"steps": 7, "batch_size": 8}})
    tables = tables_of(study, ["training.batch_size=16", "model.rope=axial"])
    arm = Arm(name="a", set=("model.rope=raster",), against="a")
    found = recipe_of(arm, tables, {"training.learning_rate": 0.5}, seed=3)
    assert found["training"] == {"steps": 7, "batch_size": 16, "learning_rate": 0.5, "seed": 3}
    assert found["model"]["rope"] == "raster"
    assert tables["model"]["rope"] == "axial"  # what is common is not written into


def test_chosen_arms_keep_their_baseline_where_it_is_there() -> None:
    study = read_study("objectives")
    assert [arm.against for arm in arms_of(study, ["clip-grr", "clip-baseline"])] == ["clip-baseline"] * 2
    assert [arm.against for arm in arms_of(study, ["rope", "clip-grr"])] == ["rope"] * 2


def test_a_sweep_is_the_same_for_all_arms_but_for_what_one_adds() -> None:
    own = Arm(name="own", sweep={"training.weight_decay": (0.0, 0.1)})
    study = Study.model_validate(SMALL | {"arm": (own,), "sweep": {"training.learning_rate": (1e-3, 2e-3)}})
    found = {arm.name: choices(arm) for arm in arms_of(study)}
    assert found["grr-coca"] == found["baseline-coca"] == [{"training.learning_rate": rate} for rate in (1e-3, 2e-3)]
    assert len(found["own"]) == 4


def test_a_named_arm_that_is_given_again_keeps_its_place_and_settings() -> None:
    study = Study.model_validate(SMALL | {"arm": (Arm(name="baseline-coca", sweep={"training.clip": (1.0, 2.0)}),)})
    first, second = arms_of(study)
    assert (first.name, first.set) == ("baseline-coca", named_arms()["baseline-coca"].set)
    assert (len(choices(first)), len(choices(second))) == (2, 1)


def test_combined_arms_hold_the_settings_of_all() -> None:
    arms = [Arm(name=name, set=("model.rope=axial", f"model.{name}=true"), against="z") for name in ("x", "y")]
    found = combine("plus", arms)
    assert (found.name, found.against) == ("plus", "z")
    assert found.set == ("model.rope=axial", "model.x=true", "model.y=true")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("title = ", "not TOML"),
        ('title = "t"', "no arm"),
        ('title = "t"\nvariants = ["grr-coca"]\nsseds = 3', "sseds"),
        ('title = "t"\nvariants = ["grr-coca"]\n[training]\nseed = 3', "training.seed"),
        ('title = "t"\nvariants = ["grr-coca"]\ncombined = "plus"', "confirm_seeds"),
        ('title = "t"\n[[arm]]\nname = "../up"', "name"),
    ],
)
def test_what_does_not_stand_is_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=said):
        read_study(str(path))


def test_wrong_names_get_the_nearest_right_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'mechanisms'"):
        read_study("mechanism")
    with pytest.raises(UsageError, match="did you mean 'grr-coca'"):
        arms_of(read_study("mechanisms"), ["grr-cocoa"])
    with pytest.raises(UsageError, match="twice"):
        arms_of(read_study("mechanisms"), ["rope", "rope"])
    with pytest.raises(UsageError, match="--seeds"):
        tables_of(read_study("mechanisms"), ["training.seed=4"])
    wrong = Study.model_validate(SMALL | {"arm": (Arm(name="a", set=("model.ropee=axial",)),)})
    with pytest.raises(UsageError, match=r"arm a: .*did you mean 'rope'"):
        check_arms(arms_of(wrong), tables_of(wrong))


def test_named_arms_have_their_own_names() -> None:
    assert all(name == arm.name for name, arm in named_arms().items())


def test_the_page_on_studies_shows_one_that_stands_and_names_all_arms(tmp_path: Path) -> None:
    page = (recipe_folder() / "studies" / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "own.toml").write_text(shown)
    study = read_study(str(tmp_path / "own.toml"))
    assert set(check_arms(arms_of(study), tables_of(study))) == {"baseline-coca", "grr-coca", "deeper"}
    assert [name for name in named_arms() if f"`{name}`" not in page] == []
