"""The guard: whatever a file does to its worker, it is one failure of one file, and nothing is left behind."""

import functools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import pydicom
import pytest
from PIL import Image

from grrcoca_cli.errors import NotAnImage, OutOfResources, UnreadableImage, UsageError
from medical.guard import GuardedReader, Limits, guarded_map, read_images
from medical.guard_channel import load_allowed
from medical.guard_process import Process
from medical.image import RadiologyImage, read_image, read_pixels

REAL = Path(pydicom.__file__).parent / "data" / "test_files"
QUICK = Limits(seconds=1, memory_mb=400)
PID = "__import__('os').getpid()"

# Items are programs of one line, run by `exec` or `eval`: functions that every new interpreter can import.


def is_alive(pid: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return found.returncode == 0 and not found.stdout.startswith("Z")


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def failures(answers: list[object]) -> list[str]:
    return [str(answer) if isinstance(answer, UnreadableImage) else "" for answer in answers]


def test_each_way_to_die_is_one_named_failure() -> None:
    deaths = {
        "import os; os.abort()": "crashed the decoder: SIGABRT",
        "import os; os._exit(3)": "crashed the decoder: exit 3",
        "import ctypes; ctypes.string_at(0)": "crashed the decoder: SIGSEGV",
        "import time; time.sleep(60)": "too slow: more than 1 s",
        "bytearray(2**30)": "too large: more than 400 MB of memory",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "too large: ended by the system",
        "raise ValueError('Marked^Value')": "damaged: ValueError",
    }
    programs, expected = [], []
    for program, words in deaths.items():
        programs += ["pass", program]
        expected += ["", words]
    began = time.monotonic()
    found = failures(list(guarded_map(exec, programs, limits=QUICK)))
    assert time.monotonic() - began < 30
    assert [words[: len(start)] for words, start in zip(found, expected, strict=True)] == expected
    assert [words for words, start in zip(found, expected, strict=True) if not start] == [""] * len(deaths)


def test_time_is_the_items_own_and_not_that_in_line() -> None:
    answers = list(guarded_map(exec, ["import time; time.sleep(0.4)"] * 4, workers=1, limits=QUICK))
    assert failures(answers) == [""] * 4


def test_native_code_that_holds_the_interpreter_is_stopped_too() -> None:
    sleep = "import ctypes; ctypes.PyDLL(None).sleep(60)"  # a PyDLL keeps the interpreter's lock
    (answer,) = guarded_map(exec, [sleep], limits=QUICK)
    assert failures([answer]) == ["too slow: more than 1 s"]


def test_a_file_is_not_blamed_for_what_another_left_behind() -> None:
    poison = "import builtins; builtins.poisoned = True"
    victim = "import builtins, os; getattr(builtins, 'poisoned', False) and os.abort()"
    assert list(guarded_map(exec, [poison, victim, victim], workers=1)) == [None] * 3


def test_order_is_kept() -> None:
    programs = [f"__import__('time').sleep({0.03 * (i * 7 % 3)}) or {i}" for i in range(20)]
    assert list(guarded_map(eval, programs, workers=3)) == list(range(20))


def test_items_are_taken_as_they_are_needed() -> None:
    taken = 0

    def programs() -> Iterator[str]:
        nonlocal taken
        for taken in range(1, 1000):  # noqa: B007
            yield "1"

    answers = guarded_map(eval, programs())
    assert taken == 0
    next(answers)
    time.sleep(0.2)
    assert taken <= 8
    next(answers)
    assert taken <= 9
    answers.close()  # type: ignore[attr-defined]


def test_nothing_is_left_of_an_iterator_that_is_closed() -> None:
    threads = threading.active_count()
    answers = guarded_map(eval, [PID, PID, *["__import__('time').sleep(60)"] * 20])
    pids = {next(answers), next(answers)}
    began = time.monotonic()
    answers.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 5
    assert not any(is_alive(pid) for pid in pids)
    assert threading.active_count() == threads


def test_an_exception_of_the_consumers_ends_the_workers() -> None:
    pids = []

    def consume() -> None:
        for pid in guarded_map(eval, [PID] * 100):
            pids.append(pid)
            1 / (len(pids) - 2)

    with pytest.raises(ZeroDivisionError):
        consume()
    assert wait_for(lambda: not any(is_alive(pid) for pid in pids))


def test_errors_of_ours_come_through() -> None:
    raising = "from grrcoca_cli.errors import *; raise "
    programs = [raising + "NotAnImage('not an image', 'of any kind')", raising + "UnreadableImage('truncated')"]
    first, second = guarded_map(exec, programs)
    assert (type(first), str(first)) == (NotAnImage, "not an image: of any kind")
    assert isinstance(first, NotAnImage)
    assert first.kind == "not an image"
    assert (type(second), str(second)) == (UnreadableImage, "truncated")
    with pytest.raises(UsageError, match="no such window"):
        list(guarded_map(exec, [raising + "UsageError('no such window')"]))
    with pytest.raises(UsageError, match="'last' is not understood"):
        next(read_images([REAL / "CT_small.dcm"], frame="last"))


def test_values_come_back_as_they_are() -> None:
    numpy = "__import__('numpy')"
    programs = {
        f"{numpy}.arange(6, dtype='f4').reshape(2, 3)": np.arange(6, dtype=np.float32).reshape(2, 3),
        f"{numpy}.arange(6).reshape(2, 3).T": np.arange(6).reshape(2, 3).T,
        f"{numpy}.zeros((3, 0))": np.zeros((3, 0)),
        f"{numpy}.arange(9)[::2]": np.arange(0, 9, 2),
    }
    for answer, expected in zip(guarded_map(eval, programs), programs.values(), strict=True):
        assert isinstance(answer, np.ndarray)
        assert answer.dtype == expected.dtype
        assert answer.flags.writeable
        np.testing.assert_array_equal(answer, expected)
    plain = (1, 2.5, "a", b"b", None, True, [1], {"a": {1, 2}}, Path("x"), frozenset({1}))
    assert list(guarded_map(eval, [repr(plain).replace("PosixPath", "__import__('pathlib').Path")])) == [plain]


def test_a_large_picture_is_the_same_through_the_guard(make_dicom: Callable[..., bytes]) -> None:
    file = make_dicom(np.random.default_rng(0).integers(0, 4096, (1500, 1400), dtype=np.uint16))
    (answer,) = read_images([file], window="percentile")
    expected = read_image(file, window="percentile")
    assert isinstance(answer, RadiologyImage)
    assert answer.description == expected.description
    np.testing.assert_array_equal(answer.pixels, expected.pixels)


def test_an_answer_runs_nothing_here(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    call = f"lambda self: (__import__('os').system, ('touch {trace}',))"
    programs = [f"type('Trap', (), {{'__reduce__': {call}}})()", "print", "__import__('subprocess').Popen", "1"]
    *refused, sound = guarded_map(eval, programs)
    assert all(words.startswith("crashed the decoder: its answer") for words in failures(refused))
    assert sound == 1
    assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("medical.guard_worker", "os.system"),  # by way of a module that has it
        ("medical.guard_process", "subprocess.Popen"),
        ("medical.guard", "GuardedReader"),
        ("medical.guard", "read_images"),
        ("grrcoca_cli.data.batches", "os._exit"),
        ("medical.guard", "Process"),
        ("os", "system"),
        ("builtins", "eval"),
    ],
)
def test_only_records_of_ours_are_built(module: str, name: str) -> None:
    pickled = b"\x80\x04" + b"".join(b"\x8c%c%s" % (len(word), word.encode()) for word in (module, name)) + b"\x93."
    with pytest.raises(pickle.UnpicklingError):
        load_allowed([memoryview(pickled)])


def test_workers_are_silent_and_heed_no_signal_to_the_job(capfd: pytest.CaptureFixture[str]) -> None:
    said = (
        "import os, sys; print('Marked^Value'); print('Marked', file=sys.stderr); os.write(1, b'a'); os.write(2, b'b')"
    )
    signalled = "import os, signal; os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM)"
    warned = "import warnings; warnings.warn('Marked^Value'); assert input.__name__; __import__('sys').stdin.read()"
    assert list(guarded_map(exec, [said, signalled, warned])) == [None] * 3
    assert capfd.readouterr() == ("", "")


def test_no_core_file_holds_what_a_decoder_held() -> None:
    (limits,) = guarded_map(eval, ["__import__('resource').getrlimit(__import__('resource').RLIMIT_CORE)"])
    assert isinstance(limits, tuple)
    assert max(limits) <= 1


def test_a_worker_imports_no_torch_and_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "pydicom", "medical"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    read = "__import__('medical').read_image(__import__('pathlib').Path({!r}))"
    programs = [read.format(str(REAL / "CT_small.dcm")), "'torch' in __import__('sys').modules"]
    picture, has_torch = guarded_map(eval, programs, workers=1)
    assert isinstance(picture, RadiologyImage)
    assert has_torch is False


def test_what_a_worker_cannot_import_is_the_callers_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(item: int) -> int:
        return item

    function.__module__, function.__qualname__ = "no_such_module", "function"
    module = ModuleType("no_such_module")
    module.function = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "no_such_module", module)
    with pytest.raises(TypeError, match="no_such_module"):
        list(guarded_map(function, [1]))


def test_a_worker_that_cannot_start_is_no_files_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(OutOfResources, match=r"does not start: exit 1"):
        list(guarded_map(eval, ["1"]))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(OutOfResources, match="does not start: No such file"):
        list(guarded_map(eval, ["1"]))


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"memory_mb": 0}, {"seconds": float("nan")}])
def test_no_limit_is_no_limit(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above zero"):
        Limits(**limits)  # type: ignore[arg-type]


def test_a_batch_of_good_and_bad_files(tmp_path: Path) -> None:
    good = REAL / "CT_small.dcm"
    named = {
        "good.dcm": good.read_bytes(),
        "truncated.dcm": good.read_bytes()[:20_000],
        "text.dcm": b"These are the notes of a study.\n" * 20,
        "empty.dcm": b"",
        "wrong_extension.txt": good.read_bytes(),
        "report.dcm": (REAL / "reportsi.dcm").read_bytes(),
    }
    for name, content in named.items():
        (tmp_path / name).write_bytes(content)
    Image.new("L", (8, 6)).save(tmp_path / "picture.dcm", "PNG")
    (tmp_path / "picture_cut.png").write_bytes((tmp_path / "picture.dcm").read_bytes()[:45])
    files = [*named, "picture.dcm", "picture_cut.png", "missing.dcm", "."]
    answers = read_images([tmp_path / name for name in files])
    kinds = {n: a.kind if isinstance(a, UnreadableImage) else "" for n, a in zip(files, answers, strict=True)}
    assert [name for name, kind in kinds.items() if not kind] == ["good.dcm", "wrong_extension.txt", "picture.dcm"]
    assert kinds["truncated.dcm"] == kinds["picture_cut.png"] == "truncated"
    assert kinds["text.dcm"] == kinds["report.dcm"] == "not an image"
    assert kinds["empty.dcm"] == "empty file"
    assert kinds["missing.dcm"] == kinds["."] == "cannot be opened"


# A file and a byte string in its frame header: SOF marker, length, bits a sample. With 95 of them GDCM dies.
JPEG_LS = (REAL / "MR_small_jpeg_ls_lossless.dcm", b"\xff\xf7\0\x0b\x10", b"\xff\xf7\0\x0b\x5f")
JPEG_LOSSLESS = (REAL / "SC_rgb_jpeg_gdcm.dcm", b"\xff\xc3\0\x11\x08", b"\xff\xc3\0\x11\x5f")


@pytest.mark.parametrize("recipe", [JPEG_LS, JPEG_LOSSLESS], ids=["JPEG-LS", "lossless JPEG"])
def test_a_file_that_aborts_its_codec(recipe: tuple[Path, bytes, bytes], tmp_path: Path) -> None:
    origin, sound, broken = recipe
    content = origin.read_bytes()
    assert content.count(sound) == 1
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(content.replace(sound, broken))
    files = [REAL / "CT_small.dcm", bad, origin, bad, REAL / "MR_small.dcm"]

    # GDCM on its own takes the interpreter with it
    found = failures(list(guarded_map(pydicom.pixels.pixel_array, files)))
    assert found[0] == found[2] == found[4] == ""
    assert found[1] == found[3]
    assert found[1].startswith("crashed the decoder")

    # `read_image` may know better, and refuse it by name before
    answers = list(read_images(files))
    found = failures(answers)
    assert found[0] == found[2] == found[4] == ""
    assert found[1] == found[3]
    assert re.match(r".*bad\.dcm: (crashed the decoder|damaged)", found[1])


def run_script(body: str, **variables: object) -> subprocess.Popen[str]:
    """A user's script without a main guard, in a session of its own."""
    head = "".join(f"{name} = {value!r}\n" for name, value in variables.items())
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


HELD = """
    import os
    from medical.guard import guarded_map
    note = "open({!r} + str(__import__('os').getpid()), 'w').close()"
    programs = [note.format(place) + "; " + work] * 2 + ["pass"] * 50
    for number, answer in enumerate(guarded_map(exec, programs)):
        if number >= 1 and idle:
            import time; time.sleep(60)
"""


@pytest.mark.parametrize(
    ("state", "number"),
    [
        ("idle", signal.SIGKILL),
        ("busy", signal.SIGKILL),
        ("in native code", signal.SIGKILL),
        ("idle", signal.SIGINT),
        ("busy", signal.SIGINT),
    ],
)
def test_workers_end_with_their_parent(state: str, number: signal.Signals, tmp_path: Path) -> None:
    if state != "idle" and number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a busy worker at once; elsewhere its time limit ends it")
    work = {"idle": "pass", "busy": "import time; time.sleep(60)"}.get(
        state, "import ctypes; ctypes.PyDLL(None).sleep(60)"
    )
    with run_script(HELD, place=f"{tmp_path}/", work=work, idle=state == "idle") as parent:
        assert wait_for(lambda: len(list(tmp_path.iterdir())) == 2, 20)
        pids = [int(path.name) for path in tmp_path.iterdir()]
        time.sleep(0.1)
        assert all(is_alive(pid) for pid in pids)
        os.killpg(parent.pid, number)
        parent.wait(10)
        assert parent.returncode in (-number, 130)
        assert wait_for(lambda: not any(is_alive(pid) for pid in pids), 5)


def test_a_request_to_stop_costs_no_file() -> None:
    body = """
        import os, signal
        from grrcoca_cli.signals import StopRequest
        from medical.guard import guarded_map
        with StopRequest() as stop:
            programs = [f"__import__('time').sleep(0.02) or {number}" for number in range(30)]
            for number, answer in enumerate(guarded_map(eval, programs)):
                assert answer == number, answer
                if number == 1:
                    os.killpg(0, signal.SIGINT)
            assert stop()
        print("done", number)
    """
    with run_script(body) as parent:
        out, err = parent.communicate(timeout=60)
    assert (out, err, parent.returncode) == ("done 29\n", "", 0)


def test_a_reader_is_an_image_reader(tmp_path: Path) -> None:
    read = GuardedReader(functools.partial(read_pixels, window="percentile"))
    good = REAL / "CT_small.dcm"
    expected = read_image(good, window="percentile").pixels
    np.testing.assert_array_equal(read(good), expected)
    np.testing.assert_array_equal(read(good.read_bytes()), expected)
    with pytest.raises(UnreadableImage) as caught:
        read(tmp_path / "missing.dcm")
    assert caught.value.kind == "cannot be opened"
    copy = pickle.loads(pickle.dumps(read))
    np.testing.assert_array_equal(copy(good), expected)
    copy.close()
    read.close()
    np.testing.assert_array_equal(read(good), expected)
    read.close()


def test_a_reader_has_one_process_and_starts_it_anew() -> None:
    read = cast("Callable[[bytes], object]", GuardedReader(eval))  # type: ignore[arg-type]
    pid = read(PID.encode())
    assert read(PID.encode()) == pid
    with pytest.raises(UnreadableImage, match="SIGABRT"):
        read(b"__import__('os').abort()")
    other = cast(int, read(PID.encode()))
    assert other != pid
    os.kill(other, signal.SIGKILL)  # while it waits
    third = read(PID.encode())
    assert third not in (pid, other)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(read, [PID.encode()] * 24)) == {third}


def test_an_interrupted_reader_gives_no_old_answer() -> None:
    class AlarmError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise AlarmError

    read = cast("Callable[[bytes], object]", GuardedReader(eval))  # type: ignore[arg-type]
    assert read(b"1") == 1
    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(AlarmError):
            read(b"__import__('time').sleep(0.5) or 'old'")
        assert read(b"'new'") == "new"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_a_readers_process_ends_with_it() -> None:
    read = GuardedReader(eval)  # type: ignore[arg-type]
    pid = cast(int, read(PID.encode()))  # type: ignore[arg-type]
    assert is_alive(pid)
    del read
    assert not is_alive(pid)


def test_a_forked_copy_leaves_its_parents_worker_alone() -> None:
    body = """
        import os
        from medical.guard import GuardedReader
        read = GuardedReader(eval)
        pid = read(b"__import__('os').getpid()")
        if not (child := os.fork()):
            other = read(b"__import__('os').getpid()")
            del read
            os._exit(0 if other != pid else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert read(b"__import__('os').getpid()") == pid
    """
    with run_script(body) as parent:
        _, err = parent.communicate(timeout=60)
    assert (err, parent.returncode) == ("", 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reader_in_data_loading_processes(workers: int, phantom_studies: Path, tmp_path: Path) -> None:
    from grrcoca_cli.data.base import ListDataset, Sample
    from grrcoca_cli.data.batches import BatchReader, evaluation_batches
    from grrcoca_cli.data.tokenizer import CaptionTokenizer

    origin, sound, broken = JPEG_LS
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(origin.read_bytes().replace(sound, broken))
    files = sorted(phantom_studies.glob("test/*.dcm"))
    files.insert(3, bad)
    samples = [Sample(str(number), path, ("a caption",)) for number, path in enumerate(files)]
    guarded, plain = GuardedReader(read_pixels), ListDataset([s for s in samples if s.image != bad])
    tokenizer = CaptionTokenizer.train(["a caption"], 300)
    reader = BatchReader(ListDataset(samples), guarded, tokenizer, image_size=32, context_length=8)
    batches = list(evaluation_batches(reader, 2, workers))
    assert sum((batch.skipped for batch in batches), start=batches[0].skipped.__class__()).total() == 1
    assert [key for batch in batches for key in batch.keys] == [s.key for s in plain.samples]
    sound_reader = BatchReader(plain, read_pixels, tokenizer, image_size=32, context_length=8)
    expected = np.concatenate([batch.images for batch in evaluation_batches(sound_reader, 2)])
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), expected)


def test_a_stopped_process_starts_no_other() -> None:
    process = Process(eval, Limits())
    assert process("1") == 1
    process.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        process("1")
