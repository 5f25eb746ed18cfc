"""Rows 8 and 17: pictures and files that were made to do harm."""

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from grrcoca_cli.data.pictures import read_picture
from grrcoca_cli.errors import UnreadableImage
from grrcoca_cli.training.checkpoint import find_checkpoint
from tests.survival.harness import Bench, Figure, Tier, copy_run, pairs, seal

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def bad_pictures(bench: Bench, tier: Tier) -> Figure:
    """Row 8: pictures that were changed at random places or cut, and bombs; not DICOM."""
    folder = bench.fresh("mutants").parent
    count = 200 if tier == "fast" else 2000
    (folder / "pictures").mkdir()
    for number, content in enumerate([*_bombs(), *_mutants(count)]):
        (folder / "pictures" / f"{number:05d}").write_bytes(content)
    report = folder / "report.json"
    trial = bench.zygote.start("hostile:read_all", folder=str(folder / "pictures"), report=str(report)).wait(600)
    assert trial.code == 0, trial.err
    found = json.loads(report.read_text())
    failures = found["tracebacks"]
    if found["megabytes"] > 500:
        failures.append(f"{found['megabytes']} MB")
    figure = (
        f"{found['read']} read, {found['refused']} refused, {len(failures)} tracebacks, {found['megabytes']} MB more"
    )
    return Figure(8, f"{count} bad pictures and bombs", figure, "0 tracebacks, under 500 MB", not failures, failures)


def read_all(folder: str, report: str) -> None:
    """In a child: read every file, and keep what it raised and the memory it took."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was the parent's
    before, tracebacks, read, refused = _peak(), [], 0, 0
    for path in sorted(Path(folder).iterdir()):
        try:
            read_picture(path.read_bytes())
            read += 1
        except UnreadableImage:
            refused += 1
        except BaseException as error:
            tracebacks.append(f"{path.name}: {error!r}")
    megabytes = round((_peak() - before) / 1024)
    found = {"tracebacks": tracebacks, "read": read, "refused": refused, "megabytes": megabytes}
    Path(report).write_text(json.dumps(found))


def _peak() -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)


def _mutants(count: int) -> Iterator[bytes]:
    dice = random.Random(1)
    noise = np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    sound = []
    for kind in FORMATS:
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, kind)
        sound.append(stream.getvalue())
    for number in range(count):
        content = bytearray(sound[number % len(sound)])
        for _ in range(dice.choice((1, 2, 8))):
            content[dice.randrange(min(len(content), dice.choice((32, 200, 10_000))))] = dice.randrange(256)
        yield bytes(content[: dice.randrange(len(content))] if dice.random() < 0.3 else content)


def _bombs() -> Iterator[bytes]:
    for width, height in ((65_000, 65_000), (2**31 - 1, 1), (1, 2**31 - 1), (30_000, 30_000)):
        body = zlib.compress(bytes(min(width * height // 8, 50_000_000)), 9)
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
        yield b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    yield b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + b";"


class Harmful:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def unsafe_files(bench: Bench, tier: Tier) -> Figure:
    """Row 17: pickles in many guises, and archives whose members leave their folder."""
    folder = bench.fresh("unsafe").parent
    mark, failures = folder / "harmed", []
    cases = list(_unsafe_cases(bench, folder / "given", pickle.dumps(Harmful(mark)), mark))
    if tier == "fast":
        cases = [case for case in cases if not case[0].startswith(("torch", "object")) and "finetune" not in case[0]]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for name, words, wanted in cases:
        trial = bench.zygote.command(words).wait()
        if mark.exists() or Path("/tmp/harmed-by-a-member").exists():
            failures.append(f"{name}: its code was run, or a member written outside")
            mark.unlink(missing_ok=True)
        if trial.code not in wanted or "Traceback" in trial.err:
            failures.append(f"{name}: exit {trial.code}: {trial.err[-300:]}")
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    written = {str(path.relative_to(folder)) for path in after if after[path] != before.get(path)}
    outside = sorted(name for name in written if not name.startswith(("out", "given/run")) and name != "given")
    if outside:
        failures.append(f"written outside: {outside[:5]}")
    figure = f"{len(cases)} files, {len(failures)} run, written outside or not refused"
    return Figure(17, "unsafe files", figure, "nothing run, nothing written outside", not failures, failures)


def _unsafe_cases(
    bench: Bench, given: Path, evil: bytes, mark: Path
) -> Iterator[tuple[str, list[object], tuple[int, ...]]]:
    """What each case is, the words of its command, and the exit codes that are right."""
    given.mkdir()
    good, out = find_checkpoint(bench.whole()), given.with_name("out")
    picture = bench.pictures / "00000.png"
    for ending in ("pt", "pth", "bin", "ckpt"):
        (given / f"model.{ending}").write_bytes(evil)
        yield f"model.{ending}", ["caption", picture, "--checkpoint", given / f"model.{ending}"], (7,)
    torch.save({"weights": Harmful(mark)}, given / "zipped.pt")
    numpy_stream = io.BytesIO()
    np.save(numpy_stream, np.array([Harmful(mark)], dtype=object), allow_pickle=True)
    guises = {"pickle": evil, "torch zip": (given / "zipped.pt").read_bytes(), "object array": numpy_stream.getvalue()}
    for name, content in guises.items():
        for part in ("model.safetensors", "tokenizer.json", "config.json", "MANIFEST.json"):
            target = copy_run(good, given / f"{name} as {part}".replace(" ", "-"))
            (target / part).write_bytes(content)
            if part != "MANIFEST.json":
                seal(target)
            for words in (["caption", picture, "--checkpoint", target], ["info", target]):
                # `info` reads neither weights nor tokenizer
                yield f"{name} as {part}, {words[0]}", words, (7,) if words[0] == "caption" else (0, 7)
            yield (
                f"{name} as {part}, finetune",
                ["finetune", "--checkpoint", target, "--dataset", "folder", "--data", bench.pictures, "--out", out],
                (2, 7),
            )
        (given / "x.npy").write_bytes(content)
        yield f"{name} to caption", ["caption", given / "x.npy", "--checkpoint", good], (3,)
        for part in ("optimizer.safetensors", "state.json"):
            run = copy_run(bench.whole(), given / f"run-{part}-{len(content)}")
            for checkpoint in (run / "checkpoints").iterdir():
                (checkpoint / "training" / part).write_bytes(content)
                seal(checkpoint)
            yield f"{name} as {part}", bench.pretrain(run), (7,)
        for flag in ("--predictions", "--references", "--idf"):
            (given / "captions.jsonl").write_text('{"file": "a", "caption": "b"}\n')
            files = {"--predictions": given / "captions.jsonl", "--references": given / "captions.jsonl"}
            files |= {flag: given / "x.npy"}
            yield f"{name} as {flag}", ["eval", *(part for pair in files.items() for part in pair)], (2, 3)
        yield f"{name} as recipe", ["pretrain", "--recipe", given / "x.npy", "--out", out], (2,)
        yield f"{name} as tokenizer", bench.pretrain(out / "a", f"data.tokenizer={given / 'x.npy'}"), (7,)
    yield from _archives(bench, given, evil, good)
    yield (
        "a pipe for data",
        ["pretrain", "--recipe", bench.recipe, "--data", f"pipe:touch {mark}", "--out", out / "b"],
        (2,),
    )


def _archives(
    bench: Bench, given: Path, evil: bytes, good: Path
) -> Iterator[tuple[str, list[object], tuple[int, ...]]]:
    outside = ("../../outside", "/tmp/harmed-by-a-member", "a/../../../outside")
    with tarfile.open(given / "shard.tar", "w") as archive:
        for number, (name, picture, caption) in enumerate(pairs(30)):
            stem = outside[number] if number < len(outside) else name
            members = {"png": picture, "txt": caption.encode(), "pyd": evil, "pkl": evil, "pth": evil, "json": evil}
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{stem}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (given / "shard_stats.json").write_bytes(evil)
    words = bench.pretrain(given.with_name("out") / "shard")
    yield "a shard", [given / "shard.tar" if word == str(bench.shards) else word for word in words], (0,)
    with zipfile.ZipFile(given / "pictures.zip", "w") as archive_:
        for name in outside:
            archive_.writestr(f"{name}.png", (bench.pictures / "00000.png").read_bytes())
        archive_.writestr("x.pkl", evil)
    yield "a zip", ["caption", given / "pictures.zip", "--checkpoint", good], (0, 3)
