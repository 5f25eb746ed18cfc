"""``grrcoca ls`` and ``grrcoca info``: answers at once, so nothing here loads torch."""

import json
from pathlib import Path
from typing import Any

from grrcoca_cli.config import SIZES, VARIANTS, read_recipe, recipe_folder, recipe_names
from grrcoca_cli.errors import UsageError
from grrcoca_cli.studies import read_study, study_names
from grrcoca_cli.training.checkpoint import (
    CONFIG,
    checkpoint_hash,
    checkpoints_of,
    count_parameters,
    find_checkpoint,
    read_config,
)
from grrcoca_cli.training.runfolder import describe_state, run_state

DATASETS = {
    "shards": "webdataset tars as img2dataset writes them (CC12M): a folder, glob or brace pattern",
    "folder": "a folder with a CSV or JSON Lines of pictures and captions; DICOM files count as pictures",
    "roco": "ROCO (repository with pictures fetched, Kaggle's copy), ROCOv2 (Zenodo), or the Hub's parquet files",
    "coco": "MS-COCO: train2014, val2014 and annotations, or dataset_coco.json of Karpathy's splits",
    "flickr30k": "Flickr30k: flickr30k-images and results_20130124.token, results.csv or dataset_flickr30k.json",
    "phantoms": "synthetic studies, drawn on the spot: for trying things out",
}


def list_things(what: str, *, as_json: bool) -> None:
    """Print recipes, studies, data sets or models, a line each.

    Raises:
        UsageError: There is no such list.
    """
    lists = {"recipes": _recipes, "studies": _studies, "datasets": lambda: DATASETS, "models": _models}
    if what not in lists:
        raise UsageError(f"ls {what}: choose {', '.join(lists)}")
    rows = lists[what]()
    if as_json:
        print(json.dumps({"schema": 1, what: [{"name": name, "about": about} for name, about in rows.items()]}))
        return
    width = max(len(name) for name in rows) + 2
    for name, about in rows.items():
        print(f"{name:<{width}}{about}")


def _recipes() -> dict[str, str]:
    """Each recipe with the first line of its head comment."""
    return {
        name: (recipe_folder() / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        for name in recipe_names()
        if read_recipe(name)
    }


def _studies() -> dict[str, str]:
    """Each study with its question."""
    return {name: read_study(name).title for name in study_names()}


def _models() -> dict[str, str]:
    rows = {}
    for name, parts in VARIANTS.items():
        image, text = (
            ", ".join(parts[f"{tower}_{part}"] for part in ("norm", "mlp", "positions")) for tower in ("image", "text")
        )
        rows[name] = f"variant: image encoder {image}; text decoder {text}"
    for name, dims in SIZES.items():
        rows[name] = (
            f"size: {dims['image_size']} px, ViT {dims['image_layers']} x {dims['image_width']}, decoders "
            f"{dims['unimodal_layers']} + {dims['multimodal_layers']} x {dims['text_width']}"
        )
    return rows


def show_checkpoint(path: Path, *, as_json: bool) -> None:
    """Print what a checkpoint is, or how a run stands that has not saved one yet.

    Raises:
        CheckpointRefused: It is damaged or not a checkpoint.
    """
    status = run_state(path)
    if status and not (path / CONFIG).is_file() and not checkpoints_of(path):
        if as_json:
            print(json.dumps({"schema": 1, "run": str(path), "checkpoint": None, "status": status}))
        else:
            print(f"run             {path}\nstatus          {describe_state(path)}")
            print("checkpoint      this run has not saved one yet")
        return
    folder = find_checkpoint(path)
    config = read_config(folder)
    rows: dict[str, Any] = {
        "checkpoint": str(folder),
        "variant": config.model.variant_name,
        "size": config.model.size_name,
        "parameters": count_parameters(folder),
        "steps": config.step,
        "trained on": config.trained_on,
        "picture": f"{config.image.size} px, {config.image.fit}, DICOM window {config.image.window}",
        "vocabulary": config.model.vocab_size,
        "context length": config.model.context_length,
        "weights": checkpoint_hash(folder),
        "grrcoca": config.grrcoca_version,
    }
    if as_json:
        # The keys with blanks stay beside their new names for one version.
        rows |= {name.replace(" ", "_"): value for name, value in rows.items()}
        found = {"schema": 1, **rows, "config": config.model_dump(mode="json")}
        print(json.dumps({**found, "status": status} if status else found))
        return
    if status:
        rows["status"] = describe_state(path)
    for name, value in rows.items():
        print(f"{name:<16}{f'{value:,}' if isinstance(value, int) else value}")
