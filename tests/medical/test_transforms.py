"""The radiology augmentation: by seed alone, small, never mirrored, never out of range."""

import pytest
import torch

from grrcoca_cli.config import build_recipe
from grrcoca_cli.errors import UsageError
from medical.transforms import jitter_window, radiology_augmentation

SIZE = 64


@pytest.fixture
def image() -> torch.Tensor:
    """A grey picture with one bright square left of the middle and above it."""
    picture = torch.full((3, SIZE, SIZE), 0.2)
    picture[:, 12:20, 8:16] = 0.9
    return picture


def center_of_mass(picture: torch.Tensor) -> tuple[float, float]:
    weights = (picture[0] > 0.6).float()
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return float((weights * rows).sum() / weights.sum()), float((weights * columns).sum() / weights.sum())


def test_the_seed_alone_decides(image):
    first = radiology_augmentation(image, 7)
    radiology_augmentation(image, 8)
    torch.rand(3)
    assert torch.equal(radiology_augmentation(image, 7), first)
    assert not torch.equal(radiology_augmentation(image, 8), first)
    assert torch.isfinite(radiology_augmentation(image, 2**63 - 1)).all()


def test_what_comes_out_is_a_plain_picture_and_the_input_stays(image):
    before = image.clone()
    changed = radiology_augmentation(image, 3)
    assert type(changed) is torch.Tensor
    assert (changed.shape, changed.dtype) == (image.shape, torch.float32)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(image, before)
    assert not torch.equal(changed, image)


def test_grey_stays_grey_and_colour_stays_colour(image):
    grey = radiology_augmentation(image, 5)
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    image[0] *= 0.5
    colour = radiology_augmentation(image, 5)
    assert not torch.equal(colour[0], colour[1])


def test_left_stays_left_and_moves_are_as_small_as_stated(image):
    row, column = center_of_mass(image)
    moves = []
    for seed in range(60):
        moved = center_of_mass(radiology_augmentation(image, seed))
        moves.append(max(abs(moved[0] - row), abs(moved[1] - column)))
    # 3 % shift, and 5 degrees and 5 % at 29 pixels from the middle: under 2 + 2.5 + 1.5 pixels and the square's edge
    assert max(moves) < 7
    assert max(moves) > 1


def test_a_black_picture_gets_noise_alone(image):
    noise = radiology_augmentation(torch.zeros(3, SIZE, SIZE), 1)
    assert 0 < noise.max() < 0.06  # six standard deviations


def test_the_window_jitter_is_a_window(image):
    ramp = torch.linspace(0, 1, SIZE).expand(1, SIZE, SIZE)
    for seed in range(20):
        moved = jitter_window(ramp, seed)
        assert moved[..., 0].eq(0).all()  # air stays black, metal white
        assert moved[..., -1].eq(1).all()
        assert moved.diff(dim=-1).ge(0).all()
        assert (moved - ramp).abs().max() <= 0.05 / 0.9 + 0.1 / 0.9 + 1e-6
    assert not torch.equal(jitter_window(ramp, 0), jitter_window(ramp, 1))


@pytest.mark.parametrize("name", ["flip", "quarter_turns"])
def test_a_recipe_that_would_make_captions_false_is_refused(name):
    for radiology in ({"dataset": "roco"}, {"dataset": "phantoms"}, {"dataset": "folder", "augment": "radiology"}):
        with pytest.raises(UsageError, match=rf"data\.{name} is refused on radiology.*left or right"):
            build_recipe({"data": {name: True, **radiology}}, "a recipe")
    with pytest.raises(UsageError, match=r"needs data\.augment"):
        build_recipe({"data": {name: True, "dataset": "shards"}}, "a recipe")
    assert build_recipe({"data": {name: True, "dataset": "shards", "augment": "picture"}}, "a recipe")
