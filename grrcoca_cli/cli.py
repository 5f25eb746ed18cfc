"""The Typer app: names, flags, help. Imports nothing heavy; what a command needs is loaded when it runs."""

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from grrcoca_cli import __version__
from grrcoca_cli.console import end_progress, say
from grrcoca_cli.errors import ExitCode, GrrcocaError, UsageError

P = ParamSpec("P")

app = typer.Typer(
    name="grrcoca",
    help="Train, run and judge contrastive captioners (GRR-CoCa) on radiology pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local values, which may be a patient's
    context_settings={"help_option_names": ["-h", "--help"]},
)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a knob of the recipe; repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Resume = Annotated[
    str,
    typer.Option(
        help="auto: continue what --out holds, or start. never: refuse if it holds a run. force: continue it with "
        "another recipe or other data."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained on what, and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="A checkpoint, or a run folder (its newest sound one).", show_default=False),
]


def _command(function: Callable[P, ExitCode | None]) -> Callable[P, None]:
    """Show a user's errors as one line, and end with the exit code that tells them apart."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            try:
                code = function(*args, **kwargs)
                sys.stdout.flush()  # a full disk is found here, not at the interpreter's end
            finally:
                end_progress()
        except GrrcocaError as error:
            known_to_one = error.exit_code == ExitCode.OUT_OF_RESOURCES  # all other errors meet every process alike
            text = str(error) if error.exit_code == ExitCode.STOPPED_AND_SAVED else f"error: {error}"
            say(text, every_rank=known_to_one)
            code = error.exit_code
        except KeyboardInterrupt:
            say("interrupted")
            code = ExitCode.INTERRUPTED
        except BrokenPipeError:  # the reader, `head` say, has enough
            _drop_stdout()
            code = ExitCode.OK
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _drop_stdout()
            say(f"error: no space left to write {error.filename or 'standard output'}: the result is incomplete")
            code = ExitCode.OUT_OF_RESOURCES
        raise typer.Exit(int(code or ExitCode.OK))

    return run


def _drop_stdout() -> None:
    """Discard what is still buffered, which could not be written at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@_command
def _print_versions() -> None:
    from importlib.metadata import version

    print(f"grrcoca {__version__} (torch {version('torch')}, Python {sys.version.split()[0]})")


def _version(show: bool) -> None:
    if show:
        _print_versions()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions.")
    ] = False,
) -> None:
    pass


@app.command()
@_command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, runs and results.")] = Path("runs/demo"),
    device: Device = "auto",
    json: Json = False,
) -> ExitCode | None:
    """The main job in minutes, on synthetic phantoms: pretrain, fine-tune, caption a DICOM file, evaluate."""
    from grrcoca_cli.commands.demo import demo as run

    return run(out, device, as_json=json)


@app.command()
@_command
def pretrain(
    recipe: Annotated[
        str, typer.Option(help="A packaged recipe (grrcoca ls recipes) or a TOML file.")
    ] = "pretrain_cc12m",
    data: Annotated[str, typer.Option(help="Shards ('shards/{00000..01242}.tar'), or a folder.")] = "",
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/RECIPE")] = None,
    set_: Settings = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a captioner from first values, on web pictures with their captions."""
    from grrcoca_cli.commands.train import Options, show_result
    from grrcoca_cli.commands.train import pretrain as run

    target = out or Path("runs") / Path(recipe).stem
    options = Options(target, recipe, set_ or (), data, device, resume, dry_run, as_json=json)
    show_result(options, run(options))


@app.command()
@_command
def finetune(
    dataset: Annotated[str, typer.Option(help="roco, coco, flickr30k, folder, … (grrcoca ls datasets).")] = "roco",
    data: Annotated[str, typer.Option(help="Where the data set lies.")] = "",
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/RECIPE")] = None,
    recipe: Annotated[
        str, typer.Option(help="A packaged recipe or a TOML file.", show_default="finetune_DATASET")
    ] = "",
    set_: Settings = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train on from a checkpoint, on radiology pictures or any folder."""
    from grrcoca_cli.commands.train import Options, finetune_recipe, show_result
    from grrcoca_cli.commands.train import finetune as run

    name = recipe or finetune_recipe(dataset)
    target = out or Path("runs") / Path(name).stem
    options = Options(target, name, set_ or (), data, device, resume, dry_run, dataset, as_json=json)
    show_result(options, run(options, checkpoint))


@app.command()
@_command
def caption(
    paths: Annotated[
        list[str],
        typer.Argument(help="DICOM files, pictures, folders, zips, a DICOMDIR; - for stdin.", show_default=False),
    ],
    checkpoint: Checkpoint = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="text, jsonl, csv, fhir, or sr (structured reports, needs --with-identity).",
            show_default="by the suffix of --out, else text",
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write there; an interrupted run goes on.", show_default=False)
    ] = None,
    beam: Annotated[int | None, typer.Option(help="Beams; 1 is greedy.", show_default=False)] = None,
    frame: Annotated[str, typer.Option(help="A number from 0, first, middle, all; auto chooses by kind.")] = "auto",
    window: Annotated[
        str,
        typer.Option(
            help="lung, bone, brain, …, CENTRE/WIDTH, or the index or name of a window of the file.",
            show_default="the checkpoint's",
        ),
    ] = "",
    series: Annotated[bool, typer.Option("--series", help="Group files; a slice of each volume.")] = False,
    id_: Annotated[str, typer.Option("--id", help="Name results by path, hash (of the content) or index.")] = "path",
    with_identity: Annotated[
        bool, typer.Option("--with-identity", help="Allow output that carries the patient's identity (sr).")
    ] = False,
    set_: Settings = None,
    device: Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Short for --format jsonl.")] = False,
) -> ExitCode | None:
    """Caption a DICOM file, a picture, or every one in a folder."""
    from grrcoca_cli.commands.caption import Options
    from grrcoca_cli.commands.caption import caption as run

    if beam is not None and beam < 1:
        raise UsageError(f"--beam {beam}: give 1 (greedy) or more")
    if json and format_ not in ("", "jsonl"):
        raise UsageError(f"--json is short for --format jsonl, and --format {format_} was given, too: choose one")
    settings = [*(set_ or ()), *([f"generation.beams={beam}"] if beam is not None else [])]
    return run(
        Options(
            paths=paths,
            checkpoint=checkpoint,
            format="jsonl" if json else format_,
            out=out,
            frame=frame,
            window=window,
            series=series,
            name_by=id_,
            with_identity=with_identity,
            settings=settings,
            device=device,
        )
    )


@app.command("eval")
@_command
def evaluate(
    checkpoint: Checkpoint = None,
    dataset: Annotated[str, typer.Option(help="As finetune takes it.")] = "folder",
    data: Annotated[str, typer.Option(help="Where the data set lies.")] = "",
    split: Annotated[str, typer.Option(help="Split to measure on; 'all' for the whole set.")] = "test",
    predictions: Annotated[Path | None, typer.Option(help="Score these captions instead.", show_default=False)] = None,
    references: Annotated[
        list[Path] | None,
        typer.Option(help="Their references; repeatable.", show_default=False),
    ] = None,
    missing: Annotated[
        str, typer.Option(help="References without prediction: error, or zero (count as empty).")
    ] = "error",
    compare: Annotated[
        Path | None, typer.Option(help="Other captions of the same images: paired differences.", show_default=False)
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report there.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Keep a row an image: .jsonl or .csv.", show_default=False)] = None,
    idf: Annotated[Path | None, typer.Option(help="CIDEr-D's document frequencies.", show_default=False)] = None,
    set_: Settings = None,
    device: Device = "auto",
    json: Json = False,
) -> ExitCode | None:
    """Judge a checkpoint on a data set, or anybody's captions against references."""
    from grrcoca_cli.commands.evaluate import Options
    from grrcoca_cli.commands.evaluate import evaluate as run

    return run(
        Options(
            checkpoint=checkpoint,
            dataset=dataset,
            data=data,
            split=split,
            predictions=predictions,
            references=references or (),
            missing=missing,
            compare=compare,
            idf=idf,
            out=out,
            report=report,
            settings=set_ or (),
            device=device,
            as_json=json,
        )
    )


@app.command()
@_command
def ablate(
    recipe: Annotated[
        str, typer.Option(help="A packaged study (grrcoca ls studies) or a TOML file of one.")
    ] = "mechanisms",
    variants: Annotated[
        str, typer.Option(help="Arms, as grr-coca,rope,baseline-coca.", show_default="the study's")
    ] = "",
    seeds: Annotated[int | None, typer.Option(help="Runs an arm.", show_default="the study's")] = None,
    data: Annotated[str, typer.Option(help="Shards or a folder instead of the study's data.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the study.", show_default="runs/ablate-STUDY")] = None,
    set_: Settings = None,
    jobs: Annotated[int, typer.Option(help="Runs at once; 0 is one a device.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which arms would be run, and stop.")] = False,
    device: Annotated[str, typer.Option(help="As of pretrain; several as cuda:0,cuda:1.")] = "auto",
    json: Json = False,
) -> ExitCode | None:
    """Compare variants fairly: a grid of arms and seeds is trained, judged and reported; goes on where it stopped."""
    from grrcoca_cli.commands.ablate import Options
    from grrcoca_cli.commands.ablate import ablate as run

    return run(
        Options(
            recipe=recipe,
            out=out or Path("runs") / f"ablate-{Path(recipe).stem}",
            variants=variants,
            seeds=seeds,
            settings=set_ or (),
            data=data,
            device=device,
            jobs=jobs,
            dry_run=dry_run,
            as_json=json,
        )
    )


@app.command()
@_command
def ls(
    what: Annotated[str, typer.Argument(help="recipes, studies, datasets or models.")] = "recipes",
    json: Json = False,
) -> None:
    """List recipes, studies, data sets or model variants and sizes."""
    from grrcoca_cli.commands.listing import list_things

    list_things(what, as_json=json)


@app.command()
@_command
def info(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint or run folder.", show_default=False)],
    json: Json = False,
) -> None:
    """Say what a checkpoint is."""
    from grrcoca_cli.commands.listing import show_checkpoint

    show_checkpoint(checkpoint, as_json=json)


@app.command()
@_command
def doctor(json: Json = False) -> ExitCode | None:
    """Check the installation: versions, device, codecs."""
    from grrcoca_cli.commands.doctor import doctor as run

    return run(as_json=json)


prepare = typer.Typer(help="Make data ready: shards, their index, CC12M's pictures.", no_args_is_help=True)
app.add_typer(prepare, name="prepare")


@prepare.command("index")
@_command
def prepare_index(
    shards: Annotated[
        list[str],
        typer.Argument(help="A folder, files, a glob, 'shards/{00000..01242}.tar', or an address.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The index.", show_default="grrcoca-index.npz beside the shards")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare every byte of the shards with their index instead.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read shards.")] = 2,
    json: Json = False,
) -> ExitCode | None:
    """Index shards once, so that a run opens them at once and notices every later damage; goes on where it stopped."""
    from grrcoca_cli.commands.prepare import prepare_index as run

    return run(shards, out, check=check, processes=workers, as_json=json)


@prepare.command("cc12m")
@_command
def prepare_cc12m(
    urls: Annotated[Path, typer.Argument(help="cc12m.tsv: address, tab, caption.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the shards.", show_default=False)],
    image_size: Annotated[int, typer.Option(min=1, help="Shorter side of the kept pictures, in pixels.")] = 256,
    processes: Annotated[int, typer.Option(min=1, help="Processes of img2dataset.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process.")] = 64,
    download: Annotated[bool, typer.Option("--run", help="Run img2dataset now, then check.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Say what came back, and index it.")] = False,
    json: Json = False,
) -> ExitCode | None:
    """Print the img2dataset command for CC12M's addresses; afterwards, check what it brought."""
    from grrcoca_cli.commands.prepare_cc12m import Options
    from grrcoca_cli.commands.prepare_cc12m import prepare_cc12m as run

    return run(Options(urls, out, image_size, processes, threads, download, check), as_json=json)


@prepare.command("shards")
@_command
def prepare_shards(
    dataset: Annotated[str, typer.Option(help="roco, coco, flickr30k, folder, … (grrcoca ls datasets).")],
    data: Annotated[str, typer.Option(help="Where the data set lies.")],
    out: Annotated[Path, typer.Option(help="Folder of the new shards.", show_default=False)],
    split: Annotated[
        str, typer.Option(help="Its split; 'all' for the whole set.", show_default="train; all of a set without splits")
    ] = "",
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Samples a shard.")] = 1000,
    window: Annotated[str, typer.Option(help="Window of DICOM files, which become PNG.")] = "auto",
    keep_keys: Annotated[
        bool, typer.Option("--keep-keys", help="Of a folder, keep file names as keys instead of their hashes.")
    ] = False,
    json: Json = False,
) -> ExitCode | None:
    """Turn a data set into webdataset shards, with their index; goes on where it stopped."""
    from grrcoca_cli.commands.prepare_shards import Options
    from grrcoca_cli.commands.prepare_shards import prepare_shards as run

    return run(Options(dataset, data, split, out, samples_per_shard, window, keep_keys), as_json=json)


def main() -> None:
    """Entry point of the ``grrcoca`` command."""
    # Looking for pydantic's plugins opens the metadata of every installed package, a twentieth of a short command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    app()
