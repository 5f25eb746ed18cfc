"""`grrcoca eval` and `grrcoca finetune` on small real layouts."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from grrcoca_cli.captioner import Captioner
from grrcoca_cli.cli import app
from grrcoca_cli.commands.datasets import open_split
from grrcoca_cli.config import DataConfig
from grrcoca_cli.model.losses import Pairs, contrastive_loss

LOSSES = ["contrastive_loss", "caption_loss", "coca_loss", "ppl_token", "ppl_word", "bits_per_byte"]
RETRIEVAL = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
SINGLES = ["image_to_text_median_rank", "text_to_image_median_rank", "ece", "spearman_logprob_cider"]
SCORES = ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d", "imageclef_rouge1", "chrf"]
PROXIES = [f"{kind}_conflict" for kind in ("side", "negation", "modality", "plane", "numbers")]
QUICK = ("training.steps=3", "training.batch_size=8", "training.warmup_steps=1", "data.workers=0", "eval.batch_size=8")


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def finetune(*words: object, settings: tuple[str, ...] = QUICK) -> tuple[int, str, str]:
    flags = [part for setting in settings for part in ("--set", setting)]
    return run("finetune", "--device", "cpu", *words, *flags)


def test_a_checkpoint_on_a_folder_of_dicom(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    kept = tmp_path / "captions.jsonl"
    words = ["--checkpoint", tiny_run, "--data", phantom_studies, "--json", "--out", kept, "--set", "eval.batch_size=4"]
    code, out, _ = run("eval", *words)
    found = json.loads(out)
    assert code == 0
    assert list(found["metrics"]) == LOSSES + RETRIEVAL + SINGLES + SCORES + PROXIES
    values = {name: entry["value"] for name, entry in found["metrics"].items()}
    assert values["coca_loss"] == pytest.approx(2 * values["caption_loss"] + values["contrastive_loss"])
    assert values["ppl_token"] == pytest.approx(math.exp(values["caption_loss"]))
    assert "among 4 pairs; 2 of a last short batch left out" in " ".join(found["notes"])

    code, out, _ = run("eval", "--predictions", kept, "--references", phantom_studies / "test_captions.csv", "--json")
    assert code == 0
    again = {name: entry["value"] for name, entry in json.loads(out)["metrics"].items()}
    assert again == {name: values[name] for name in SCORES + PROXIES}


def test_losses_are_summed_before_they_are_divided(tiny_run: Path, phantom_studies: Path) -> None:
    """Against a plain computation, one caption at a time."""
    _, out, _ = run("eval", "--checkpoint", tiny_run, "--data", phantom_studies, "--json", "--set", "eval.batch_size=2")
    values = {name: entry["value"] for name, entry in json.loads(out)["metrics"].items()}
    captioner = Captioner.load(tiny_run, "cpu")
    model, tokenizer = captioner.checkpoint.model, captioner.checkpoint.tokenizer
    dataset = open_split(DataConfig(dataset="folder", path=str(phantom_studies)), "test")
    nll = targets = size = words = 0.0
    images, texts = [], []
    for index in range(len(dataset)):
        sample = dataset[index]
        picture = captioner.prepare([captioner.read(sample.image)])
        tokens = torch.tensor([tokenizer.encode(sample.captions[0], 40)])
        with torch.inference_mode():
            output = model(picture, tokens, 0)
            hidden, _ = model.encode_text(tokens, 0)
            logits = model.text_decoder.head(model.text_decoder.decode(hidden[:, :-1], output.memory))[0]
        nll -= logits.log_softmax(-1).gather(1, tokens[0, 1:].unsqueeze(1)).sum().item()
        targets += len(logits)
        text = tokenizer.decode(tokens[0].tolist())
        size, words = size + len(text.encode()), words + len(text.split())
        images.append(output.image_features)
        texts.append(output.text_features)
    assert values["caption_loss"] == pytest.approx(nll / targets, rel=1e-5)
    assert values["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-5)
    assert values["ppl_word"] == pytest.approx(math.exp(nll / words), rel=1e-4)
    pairs = [
        contrastive_loss(
            Pairs.alone(torch.cat(images[i : i + 2]), torch.cat(texts[i : i + 2])), model.logit_scale
        ).item()
        for i in (0, 2, 4)
    ]
    assert values["contrastive_loss"] == pytest.approx(sum(pairs) / 3, rel=1e-5)


def test_the_table_is_on_stdout(tiny_run: Path, phantom_studies: Path) -> None:
    code, out, err = run("eval", "--checkpoint", tiny_run, "--data", phantom_studies)
    assert code == 0
    assert "perplexity (token)" in out
    assert "CIDEr-D" in out
    assert "evaluating" in err


def test_an_unreadable_picture_is_left_out_and_counted(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    shutil.copytree(phantom_studies, folder)
    file = sorted((folder / "test").glob("*.dcm"))[0]
    file.write_bytes(file.read_bytes()[:-5000])
    code, out, _ = run("eval", "--checkpoint", tiny_run, "--data", folder, "--json")
    assert code == 3
    assert json.loads(out)["samples"] == 5
    assert any("truncated" in note for note in json.loads(out)["notes"])


def test_anybodys_captions(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,caption\n1,a dog runs\n2,two red cars\n")
    (tmp_path / "r.json").write_text(json.dumps({"1": ["a dog runs fast"], "2": ["three red cars", "red cars"]}))
    code, out, _ = run("eval", "--predictions", tmp_path / "p.csv", "--references", tmp_path / "r.json", "--json")
    assert code == 0
    assert json.loads(out)["metrics"]["bleu1"]["value"] == pytest.approx(5 / 6 * math.exp(min(0, 1 - 6 / 6)), abs=0.2)
    (tmp_path / "p.csv").write_text("id,caption\n1,a dog runs\n")
    code, _, err = run("eval", "--predictions", tmp_path / "p.csv", "--references", tmp_path / "r.json")
    assert code == 2
    assert "2" in err
    words = ["eval", "--predictions", tmp_path / "p.csv", "--references", tmp_path / "r.json", "--missing", "zero"]
    assert run(*words)[0] == 0


def test_the_official_example(shared_data: Path) -> None:
    folder = shared_data / "caption-eval" / "coco_fakecap"
    predictions, references = folder / "captions_val2014_fakecap_results.json", folder / "captions_val2014_1000.json"
    code, out, _ = run("eval", "--predictions", predictions, "--references", references, "--json")
    metrics = json.loads(out)["metrics"]
    assert code == 0
    assert metrics["bleu4"]["value"] == pytest.approx(0.1908, abs=0.0005)
    assert metrics["cider_d"]["value"] == pytest.approx(0.5998, abs=0.0005)


def test_finetune_on_dicom_files(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    words = ["--dataset", "folder", "--data", phantom_studies, "--checkpoint", tiny_run, "--out", out]
    code, _, err = finetune(*words)
    assert code == 0, err
    assert "16 training and 8 validation" in err
    code, stdout, _ = run("info", out, "--json")
    assert json.loads(stdout)["steps"] == 3
    assert json.loads(stdout)["config"]["image"]["size"] == 32


def test_finetune_takes_the_model_from_the_checkpoint(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    words = ["--dataset", "folder", "--data", phantom_studies, "--checkpoint", tiny_run, "--out", tmp_path / "x"]
    code, _, err = finetune(*words, settings=("model.image_width=64",))
    assert code == 2
    assert "comes from the checkpoint" in err
    assert finetune(*words, settings=(*QUICK, "model.gradient_checkpointing=true"))[0] == 0


@pytest.mark.parametrize("layout", ["roco_v1", "rocov2"])
def test_each_roco_layout_trains(tiny_run: Path, shared_data: Path, tmp_path: Path, layout: str) -> None:
    data = shared_data / "roco-images-mini" / layout
    settings = (*QUICK[:1], "training.batch_size=2", "data.workers=0", "eval.batch_size=2", "training.warmup_steps=1")
    if layout == "roco_v1":  # two pictures: all of them to train on
        settings = (*settings, "data.validation_fraction=0")
    words = ["--dataset", "roco", "--data", data, "--checkpoint", tiny_run]
    code, _, err = finetune(*words, "--out", tmp_path / "tuned", settings=settings)
    assert code == 0, err
    code, out, _ = finetune(*words, "--out", tmp_path / "dry", "--dry-run", "--json", settings=settings)
    assert code == 0
    assert json.loads(out)["train"] >= 2
    assert not (tmp_path / "dry").exists()


def test_dry_run_counts_overlaps(phantom_shards: Path, tmp_path: Path) -> None:
    words = ["--recipe", "demo", "--data", phantom_shards, "--out", tmp_path / "x", "--dry-run", "--json"]
    code, out, err = run("pretrain", *words, "--set", "data.validation_fraction=0.3")
    assert code == 0
    assert json.loads(out)["train"] + json.loads(out)["validation"] == 48
    assert "also in training" in err
    assert not (tmp_path / "x").exists()
    words = [
        "--recipe",
        "demo",
        "--out",
        tmp_path / "x",
        "--dry-run",
        "--json",
        "--set",
        "data.phantoms=20",
        "--set",
        "training.batch_size=8",
    ]
    code, out, _ = run("pretrain", *words)
    assert (code, json.loads(out)["train"]) == (0, 20)
    assert not (tmp_path / "x").exists()


def test_finetuning_goes_on_from_no_other_weights(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    words = ["--dataset", "folder", "--data", phantom_studies, "--out", tmp_path / "a"]
    assert finetune(*words, "--checkpoint", tiny_run)[0] == 0
    code, _, err = finetune(*words, "--checkpoint", tmp_path / "a")
    assert code == 2
    assert "training.start" in err


def test_real_pictures_learn(shared_data: Path, tmp_path: Path) -> None:
    """Pretrained on web pictures, a few steps on radiology pictures lower the validation loss well under its start."""
    small = ("model.image_size=32", "training.batch_size=16", "training.warmup_steps=5", "eval.batch_size=16")
    shards = shared_data / "generic-cc12m-like" / "cc12m"
    flags = [part for s in (*small, "training.steps=20", "training.eval_every=0") for part in ("--set", s)]
    words = ["--recipe", "demo", "--data", f"{shards}/{{00000..00002}}.tar", "--out", tmp_path / "web"]
    assert run("pretrain", *words, *flags)[0] == 0
    words = ["--dataset", "folder", "--data", shared_data / "vqa-rad-cc0", "--checkpoint", tmp_path / "web"]
    settings = (*small[1:], "training.steps=60", "training.learning_rate=1e-3", "data.augment=none", "data.workers=0")
    code, _, err = finetune(*words, "--out", tmp_path / "tuned", settings=settings)
    assert code == 0
    assert "153 training and 19 validation" in err
    rows = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_caption_loss"] for row in rows if "val_caption_loss" in row]
    assert losses[-1] < 0.7 * losses[0]
