"""``grrcoca demo``: the main job from drawn data to a scored caption, offline, in minutes."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from grrcoca_cli.captioner import Captioner
from grrcoca_cli.commands.datasets import open_split
from grrcoca_cli.commands.evaluate import caption_and_measure, judge_subject, shown_settings
from grrcoca_cli.commands.result_tables import show_tables
from grrcoca_cli.commands.results import as_json as results_as_json
from grrcoca_cli.commands.train import Options, finetune, pretrain
from grrcoca_cli.config import DataConfig, build_recipe, read_recipe
from grrcoca_cli.console import duration, say
from grrcoca_cli.data.base import ImageSource, Pixels
from grrcoca_cli.errors import ExitCode
from grrcoca_cli.evaluation.judge import Evaluation
from grrcoca_cli.files import explain_os_errors, make_folder, write_json
from grrcoca_cli.provenance import provenance
from medical.phantom_files import write_dicom_set, write_shards
from medical.phantoms import attribute_accuracy

HELD_OUT = 200
SEED = 0


def demo(out: Path, device: str, *, as_json: bool) -> ExitCode:
    """Draw phantoms, pretrain on shards, fine-tune on DICOM files, caption and score files never trained on."""
    began = time.monotonic()
    pretraining = read_recipe("demo")["data"]["phantoms"]
    finetuning = read_recipe("demo_finetune")["data"]["phantoms"]
    make_folder(out)
    shards, studies = out / "data" / "shards", out / "data" / "studies"
    if not (studies / "test_captions.csv").exists():
        say(f"1/4  drawing {pretraining + finetuning + 2 * HELD_OUT} synthetic studies into {out / 'data'}")
        splits = {"train": finetuning, "valid": HELD_OUT, "test": HELD_OUT}
        with explain_os_errors(out):
            write_shards(shards, count=pretraining, seed=SEED)
            write_dicom_set(studies, splits=splits, seed=SEED, first=pretraining)

    say("2/4  pretraining on web-like pairs (webdataset shards)")
    pretrain(Options(out / "pretrain", "demo", data=str(shards), device=device))
    say("3/4  fine-tuning on reports (DICOM files)")
    tuned = Options(out / "finetune", "demo_finetune", data=str(studies), device=device)
    checkpoint = finetune(tuned, out / "pretrain")
    assert checkpoint is not None

    say(f"4/4  judging on {HELD_OUT} studies that were never trained on")
    captioner = Captioner.load(checkpoint, device)
    recipe = build_recipe(read_recipe("demo_finetune"), "demo_finetune")
    dataset = open_split(DataConfig(dataset="folder", path=str(studies)), "test")
    samples = [dataset[index] for index in range(len(dataset))]
    subject = caption_and_measure(captioner, dataset, samples, recipe, "test")
    predictions = subject.predictions
    result = judge_subject(subject, recipe.eval)
    made_with = provenance(shown_settings(recipe, of_files=False), **subject.made_with)
    captioner.read = _blank
    blind = caption_and_measure(captioner, dataset, samples, recipe, "test").predictions

    references = {sample.key: sample.captions[0] for sample in samples}
    shares = attribute_accuracy(predictions, references)
    blind_shares = attribute_accuracy(blind, references)
    shown = next((s for s in samples if "no focal" not in s.captions[0]), samples[0])
    summary = {
        "schema": 1,
        "file": str(Path(str(shown.image)).resolve()),
        "caption": predictions[shown.key],
        "reference": shown.captions[0],
        "right": shares,
        "right_on_blank_pictures": blind_shares,
        "minutes": round((time.monotonic() - began) / 60, 2),
        **results_as_json(result, made_with=made_with),
    }
    write_json(out / "results.json", summary)
    if as_json:
        print(json.dumps(summary))
    else:
        _show(out, summary, result, made_with, shares, blind_shares)
    return ExitCode.OK


def _blank(source: ImageSource) -> Pixels:
    return np.zeros((1, 64, 64), dtype=np.float32)


def _show(
    out: Path,
    summary: dict[str, object],
    result: Evaluation,
    made_with: dict[str, Any],
    shares: dict[str, float],
    blind: dict[str, float],
) -> None:
    print(f"picture    {summary['file']}  (synthetic)")
    print(f"caption    {summary['caption']}")
    print(f"reference  {summary['reference']}\n")
    show_tables(result, made_with)
    print(f"\n{'right in the caption':<22}{'model':>8}{'blank pictures':>16}")
    for name, share in shares.items():
        print(f"{name.replace('_', ' '):<22}{share:>8.1%}{blind[name]:>16.1%}")
    print(f"\nmade in {duration(60 * float(str(summary['minutes'])))}:")
    for name in ("data/studies", "pretrain", "finetune", "finetune/loss.png", "results.json"):
        print(f"  {(out / name).resolve()}")
    print(f"\nnext: grrcoca caption {out / 'data/studies/test'} --checkpoint {out / 'finetune'}")
    print("Phantoms are synthetic and this model is for trying the tool out: not a diagnosis, not for clinical use.")
