"""``--data`` without its kind: every command tells shards from a folder alike."""

from pathlib import Path

import pytest

from grrcoca_cli.commands.ablate_data import with_data
from grrcoca_cli.commands.train import Options, resolve_recipe
from grrcoca_cli.files import write_atomically


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("x/{00000..00002}.tar", "shards"),
        ("x/*.tar", "shards"),
        ("index.npz", "shards"),
        ("s3://bucket/index.npz", "shards"),
        ("tars", "shards"),
        ("images", "folder"),
    ],
)
def test_shards_are_known_by_their_path(data: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tars/00000.tar", "images/a.png"):
        Path(name).parent.mkdir()
        write_atomically(Path(name), b"")
    assert resolve_recipe(Options(Path("out"), "demo", data=data)).data.dataset == kind
    assert with_data({"data": {"dataset": "phantoms"}}, data)["data"] == {"dataset": kind, "path": data}


def test_a_kind_that_is_given_stays() -> None:
    assert with_data({"data": {"dataset": "roco"}}, "index.npz")["data"]["dataset"] == "roco"
    options = Options(Path("out"), "demo", data="index.npz", dataset="folder")
    assert resolve_recipe(options).data.dataset == "folder"
