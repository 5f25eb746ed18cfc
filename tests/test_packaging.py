"""A wheel works outside the tree, recipes included."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FIND_TEMPLATE = (
    "import grrcoca_cli.evaluation.report as r, pathlib; "
    "print(pathlib.Path(r.__file__).with_name('report.html.j2').is_file())"
)
LIST_TEMPLATES = (
    "import grrcoca_cli.config as c, pathlib; print(*(path.name for path in (c.recipe_folder() / 'launch').iterdir()))"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with nothing but our wheel; a .pth file shows it this environment's packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("grrcoca-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True, timeout=120)
    python = folder / "env" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    # Last on the path, and without its own .pth files: the tree's editable install stays unseen.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin"


def test_the_wheel_works_outside_the_tree(installed: Path, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(
            [installed / words[0], *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("python", "-c", "import grrcoca_cli, medical; print(grrcoca_cli.__file__, medical.__file__)")
    assert str(ROOT / "grrcoca_cli") not in where
    assert "True" in run("python", "-c", FIND_TEMPLATE)
    assert {line.split()[0] for line in run("grrcoca", "ls", "recipes").splitlines()} == {
        path.stem for path in (ROOT / "recipes").glob("*.toml")
    }
    find_launch = (
        "from grrcoca_cli.config import recipe_folder as f; print(*(p.name for p in (f() / 'launch').iterdir()))"
    )
    assert set(run("python", "-c", find_launch).split()) == {path.name for path in (ROOT / "recipes/launch").iterdir()}
    settings = ["training.steps=1", "training.batch_size=8", "data.phantoms=20", "eval.limit=8", "model.image_size=32"]
    flags = [part for setting in settings for part in ("--set", setting)]
    run("grrcoca", "pretrain", "--recipe", "demo", "--out", "run", "--device", "cpu", *flags)
    assert run("grrcoca", "caption", "run/phantoms/test/phantom_00021.dcm", "--checkpoint", "run").count("\n") == 1
