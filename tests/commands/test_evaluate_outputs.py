"""`grrcoca eval` beside the plain table: comparisons, groups, clusters, rows, the report, Java by choice."""

import csv
import hashlib
import json
import os
import random
import re
import shutil
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grrcoca_cli import __version__
from grrcoca_cli.cli import app


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["eval", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    """130 captions with references that have a modality and a patient; the flags that score them."""
    draw = random.Random(0)
    words = "left right lung mass node cyst small large CT MRI of the in a with".split()  # noqa: SIM905
    with (tmp_path / "r.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "caption", "kind", "patient"])
        captions = {}
        for number in range(130):
            reference = " ".join(draw.choices(words, k=9))
            captions[f"i{number}"] = " ".join(reference.split()[: draw.randint(3, 9)])
            writer.writerow([f"i{number}", reference, "xy"[number % 10 == 0], number // 5])
    (tmp_path / "p.json").write_text(json.dumps(captions))
    worse = {image: (text if number % 4 else "a cyst") for number, (image, text) in enumerate(captions.items())}
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    return ["--predictions", tmp_path / "p.json", "--references", tmp_path / "r.csv"]


def metrics_of(out: str) -> dict[str, dict]:
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["metrics"]


def test_a_comparison(files: list[object], tmp_path: Path) -> None:
    code, out, _ = run(*files, "--compare", tmp_path / "worse.json", "--json")
    change = metrics_of(out)["rouge_l"]["difference"]
    assert code == 0
    assert change["interval"][0] > 0
    assert change["p"] < 0.001
    assert any("not adjusted" in note for note in json.loads(out)["notes"])
    code, out, _ = run(*files, "--compare", tmp_path / "p.json", "--json")
    for found in metrics_of(out).values():
        if "difference" in found:
            assert found["difference"] == {"value": 0, "interval": [0, 0], "p": 1}
    code, out, _ = run(*files, "--compare", tmp_path / "worse.json")
    assert code == 0
    assert "difference" in out


def test_a_comparison_needs_the_same_images(files: list[object], tmp_path: Path) -> None:
    (tmp_path / "few.json").write_text(json.dumps({"i0": "a cyst"}))
    code, _, err = run(*files, "--compare", tmp_path / "few.json")
    assert code == 2
    assert "129 of 130 images" in err


def test_groups_and_clusters(files: list[object]) -> None:
    code, out, _ = run(*files, "--set", "eval.group_by=kind", "--json")
    groups = json.loads(out)["groups"]
    assert code == 0
    assert [(group["name"], group["images"], group["ranked"]) for group in groups] == [
        ("x", 117, True),
        ("y", 13, False),
    ]
    whole = metrics_of(out)["rouge_l"]["value"]
    assert sum(group["images"] * group["values"]["rouge_l"] for group in groups) / 130 == pytest.approx(whole)
    _, out, _ = run(*files, "--set", "eval.group_by=modality")
    assert "CT" in out
    assert "too few to rank" in out
    loose = metrics_of(run(*files, "--json")[1])["rouge_l"]["interval"]
    clustered = metrics_of(run(*files, "--set", "eval.cluster_by=patient", "--json")[1])["rouge_l"]["interval"]
    assert clustered != loose
    code, _, err = run(*files, "--set", "eval.cluster_by=pateint")
    assert code == 2
    assert "patient" in err


def test_rows_report_and_no_resampling(files: list[object], tmp_path: Path) -> None:
    report, rows = tmp_path / "r.html", tmp_path / "rows.csv"
    code, out, err = run(*files, "--report", report, "--out", rows, "--set", "eval.resamples=0", "--json")
    assert code == 0
    assert metrics_of(out)["bleu4"]["interval"] is None
    assert "Clinical proxies" in report.read_text(encoding="utf-8")
    assert str(report) in err
    table = list(csv.DictReader(rows.read_text(encoding="utf-8").splitlines()))
    assert len(table) == 130
    mean = sum(float(row["rouge_l"]) for row in table) / 130
    assert mean == pytest.approx(metrics_of(out)["rouge_l"]["value"])
    code, _, err = run(*files, "--out", tmp_path / "rows.xlsx")
    assert code == 2
    assert ".csv or .jsonl" in err


def test_saved_document_frequencies(files: list[object], tmp_path: Path) -> None:
    idf = tmp_path / "idf.json"
    whole = metrics_of(run(*files, "--set", f"eval.save_idf={idf}", "--json")[1])
    again = run(*files, "--idf", idf, "--json")[1]
    assert metrics_of(again)["cider_d"]["value"] == pytest.approx(whole["cider_d"]["value"])
    assert "idf:file-" in json.loads(again)["signature"]
    code, _, err = run(*files, "--idf", idf, "--set", "eval.tokenizer=whitespace")
    assert code == 2
    assert "tokenizer" in err


def test_plain_text_of_another_tool(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_data / "caption-eval" / "nlgeval_example"
    words = [
        "--predictions",
        folder / "hyp.txt",
        "--references",
        folder / "ref1.txt",
        "--references",
        folder / "ref2.txt",
    ]
    monkeypatch.setenv("PATH", "/nowhere")  # no Java
    code, out, _ = run(*words, "--json")
    golden = json.loads((shared_data / "caption-eval" / "golden" / "nlgeval.json").read_text(encoding="utf-8"))
    assert code == 0
    assert metrics_of(out)["bleu4"]["value"] == pytest.approx(golden["scores"]["Bleu_4"], abs=1e-12)
    code, _, err = run(*words, "--set", "eval.meteor=true")
    assert code == 2
    assert "no java is on the PATH" in err


@pytest.mark.java
def test_java_by_choice(files: list[object]) -> None:
    if shutil.which("java") is None:
        pytest.skip("java is not here")
    code, out, _ = run(*files, "--set", "eval.meteor=true", "--set", "eval.verify_java=true", "--json")
    found = metrics_of(out)
    assert code == 0
    assert 0 < found["meteor"]["value"] < 1
    assert found["cider_d_java"]["value"] == pytest.approx(found["cider_d"]["value"], abs=1e-12)
    assert any("splits 0 of 260" in note for note in json.loads(out)["notes"])


def test_one_percent_of_other_captions_is_found(shared_data: Path, tmp_path: Path) -> None:
    """On ROCO's test captions, radiology."""
    lines = (shared_data / "roco-v1-text/data/test/radiology/captions.txt").read_text(encoding="utf-8").split("\n")
    captions = {line.split("\t", 1)[0]: line.split("\t", 1)[1].strip() for line in lines if "\t" in line}
    captions = {image: text for image, text in captions.items() if any(map(str.isalnum, text))}
    draw, ids = random.Random(0), sorted(captions)
    ours = {image: " ".join(word for word in captions[image].split() if draw.random() > 0.3) for image in ids}
    other = ours | {image: captions[draw.choice(ids)] for image in draw.sample(ids, round(len(ids) / 100))}
    for name, content in (("r", {image: [text] for image, text in captions.items()}), ("a", ours), ("b", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    words = ["--predictions", tmp_path / "a.json", "--references", tmp_path / "r.json", "--json"]
    found = metrics_of(run(*words, "--compare", tmp_path / "b.json")[1])
    for name in ("bleu4", "rouge_l", "cider_d", "imageclef_rouge1", "chrf"):
        assert found[name]["difference"]["interval"][0] > 0
        assert found[name]["difference"]["p"] < 0.01


def test_a_wrong_flag_is_found_before_pictures_are_read(
    tiny_run: Path, phantom_studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grrcoca_cli.captioner.Captioner.load", lambda *_: pytest.fail("the work began"))
    words = ["--checkpoint", tiny_run, "--data", phantom_studies]
    (tmp_path / "file").touch()
    for wrong, said in (
        (["--compare", tmp_path / "absent.json"], "no such file"),
        (["--idf", tmp_path / "absent.json"], "cannot be read"),
        (["--out", tmp_path / "x.txt"], ".csv or .jsonl"),
        (["--report", tmp_path / "file" / "r.html"], "is a file, not a folder"),
        (["--set", "eval.group_by=nope"], "no image has a column 'nope'"),
        (["--set", "eval.verify_java=true", "--set", "eval.tokenizer=whitespace"], "eval.tokenizer"),
        (["--set", "eval.limit=5"], "whole split"),
        (["--missing", "bogus"], "error or zero"),
    ):
        code, _, err = run(*words, *wrong)
        assert (code, said in err) == (2, True), (wrong, err)


def test_one_picture_has_no_contrastive_loss(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    source = sorted((phantom_studies / "test").glob("*.dcm"))[0]
    shutil.copy(source, tmp_path / "a.dcm")
    (tmp_path / "test_captions.csv").write_text("file,caption\na.dcm,a mass\n")
    code, out, _ = run("--checkpoint", tiny_run, "--data", tmp_path, "--json")
    found = metrics_of(out)
    assert code == 0
    assert found["contrastive_loss"]["value"] is None
    assert found["coca_loss"]["value"] is None
    assert found["caption_loss"]["value"] > 0
    assert "image_to_text_r1" not in found
    assert any("fewer than two distinct captions" in note for note in json.loads(out)["notes"])


def test_samples_without_a_word_are_left_out(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    rows = ["file,caption"]
    for number, source in enumerate(sorted((phantom_studies / "test").glob("*.dcm"))[:4]):
        shutil.copy(source, tmp_path / f"{number}.dcm")
        rows.append(f"{number}.dcm,{'...' if number == 2 else f'a mass {number}'}")
    (tmp_path / "test_captions.csv").write_text("\n".join(rows) + "\n")
    code, out, _ = run("--checkpoint", tiny_run, "--data", tmp_path, "--json")
    assert (code, json.loads(out)["samples"]) == (0, 3)
    assert any("no word, not scored: 1" in note for note in json.loads(out)["notes"])


def test_the_signature_knows_what_changes_the_numbers(tiny_run: Path, phantom_studies: Path) -> None:
    words = ["--checkpoint", tiny_run, "--data", phantom_studies, "--json", "--set"]
    signatures = {
        json.loads(run(*words, setting)[1])["signature"]
        for setting in ("eval.batch_size=4", "eval.batch_size=2", "generation.beams=2", "eval.seed=1")
    }
    assert len(signatures) == 4
    one = signatures.pop()
    assert all(part in one for part in ("batch:", "gen:", "precision:", "boot:", "lexicon:"))


def test_odd_texts_do_no_harm(files: list[object], tmp_path: Path) -> None:
    """Markup of a terminal in a group's name, half a surrogate pair, a very long caption, a NaN column."""
    rows = [
        {"id": "1", "caption": "a \ud83d mass", "kind": "[/b] x", "score": float("nan")},
        {"id": "2", "caption": "left " * 60_000, "kind": "[bold]CT", "score": 1.0},
    ]
    references, predictions = tmp_path / "odd.jsonl", tmp_path / "odd.csv"
    references.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions.write_text("id,caption\n1,a mass\n2," + "left " * 40_000 + "\n")
    words = ["--predictions", predictions, "--references", references, "--set", "eval.group_by=kind"]
    code, out, _ = run(*words, "--report", tmp_path / "r.html", "--out", tmp_path / "rows.jsonl")
    assert code == 0
    assert "[/b] x" in out
    assert "[bold]CT" in out
    predictions.write_text("id,caption,caption\n1,a,b\n2,a,b\n")
    code, _, err = run(*words)
    assert code == 2
    assert "'caption' is there twice" in err


def test_coco_references_and_predictions_by_file(tmp_path: Path) -> None:
    listed = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in (7, 8)]
    annotations = [{"id": 1, "image_id": 7, "caption": "a left lung"}, {"id": 2, "image_id": 8, "caption": "a hand"}]
    (tmp_path / "r.json").write_text(json.dumps({"images": listed, "annotations": annotations}))
    (tmp_path / "p.txt").write_text("".join(f"val2014/{image['file_name']}\ta left lung\n" for image in listed))
    words = ["--predictions", tmp_path / "p.txt", "--references", tmp_path / "r.json"]
    code, out, _ = run(*words, "--json")
    notes = json.loads(out)["notes"]
    assert code == 0
    assert json.loads(out)["samples"] == 2
    assert "2 of 2 predictions are matched by the references' file_name" in notes
    assert "p.txt is read as a file, a tab and its caption in each line" in notes
    (tmp_path / "p.txt").write_text("other.jpg\ta left lung\n")
    code, _, err = run(*words)
    assert code == 2
    assert "other.jpg; ids of the references: 7, 8" in err


def test_plain_text_of_unequal_length(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a lung\n" * 12)
    (tmp_path / "r.txt").write_text("a lung\n" * 10)
    code, _, err = run("--predictions", tmp_path / "p.txt", "--references", tmp_path / "r.txt")
    assert code == 2
    assert "12 lines in " in err
    assert " against 10 lines in " in err
    code, _, err = run("--predictions", tmp_path / "r.txt", "--references", tmp_path / "p.txt", "--missing", "zero")
    assert code == 0


def test_every_output_says_what_it_was_made_with(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    rows, report = tmp_path / "rows.csv", tmp_path / "r.html"
    words = ["--checkpoint", tiny_run, "--data", phantom_studies, "--device", "cpu", "--set", "eval.seed=3"]
    code, out, _ = run(*words, "--json", "--out", rows, "--report", report)
    made_with = json.loads(out)["provenance"]
    folder = Path(made_with["checkpoint"]["path"])
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert code == 0
    assert made_with["checkpoint"]["weights_sha256"] == weights
    assert made_with["data"] == {"dataset": "folder", "path": str(phantom_studies), "split": "test"}
    assert (made_with["tool"], made_with["version"]) == ("grrcoca", __version__)
    assert (made_with["device"], made_with["precision"]) == ("cpu", "float32")
    assert made_with["settings"]["eval.seed"] == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made_with["time"])
    assert "precision:float32" in json.loads(out)["signature"]
    assert json.loads((tmp_path / "rows.csv.provenance.json").read_text()) == made_with
    page = report.read_text(encoding="utf-8")
    code, table, _ = run(*words)
    for part in (weights, str(folder), __version__, str(phantom_studies), "float32"):
        assert part in page
        assert part in table
    assert "eval.seed=3" in table
    assert "precision: float32" in table
    bf16 = json.loads(run(*words, "--json", "--set", "training.precision=bf16")[1])["provenance"]
    assert (bf16["precision"], bf16["caption_precision"]) == ("bf16", "float32")


def test_provenance_of_caption_files(files: list[object], tmp_path: Path) -> None:
    found = json.loads(run(*files, "--compare", tmp_path / "worse.json", "--json")[1])["provenance"]
    digest = hashlib.sha256((tmp_path / "p.json").read_bytes()).hexdigest()
    assert found["predictions"] == {"path": str(tmp_path / "p.json"), "sha256": digest}
    assert [file["path"] for file in found["references"]] == [str(tmp_path / "r.csv")]
    assert found["compare"]["path"] == str(tmp_path / "worse.json")


@pytest.mark.parametrize("name", ["p.txt", "p.json"])
def test_predictions_may_come_out_of_a_pipe(tmp_path: Path, name: str) -> None:
    (tmp_path / "r.json").write_text('{"1": "a lung", "2": "a hand"}')
    pipe = tmp_path / name
    os.mkfifo(pipe)
    text = "a lung\na hand\n" if name == "p.txt" else '{"1": "a lung", "2": "a hand"}'
    writer = threading.Thread(target=pipe.write_text, args=(text,), daemon=True)
    writer.start()
    code, out, _ = run("--predictions", pipe, "--references", tmp_path / "r.json", "--json")
    writer.join(10)
    assert code == 0
    assert json.loads(out)["provenance"]["predictions"] == {"path": str(pipe)}
