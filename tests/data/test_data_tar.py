import io
import tarfile

import pytest

from grrcoca_cli.data.tar import DamagedTarError, iterate_members

NAMES = ["a.jpg", "folder/" * 20 + "b.txt", "é" * 60 + ".json", "n" * 150 + ".png", "empty.txt"]


def make_tar(tar_format: int, names: list[str] = NAMES) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        archive.addfile(_special("folder", tarfile.DIRTYPE))
        archive.addfile(_special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"))
        for position, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 700 * position if name != "empty.txt" else 0
            archive.addfile(info, io.BytesIO(bytes([position]) * info.size))
    return buffer.getvalue()


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tar_format: int) -> None:
    data = make_tar(tar_format)
    file = io.BytesIO(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(info.name, info.size, info.offset_data) for info in archive if info.isfile()]
    members = list(iterate_members(file, len(data)))
    assert [(member.name, member.size, member.offset) for member in members] == expected
    for position, member in enumerate(members):
        assert data[member.offset : member.offset + member.size] == bytes([position]) * member.size


def test_ustar_prefix_and_base_256_size() -> None:
    data = make_tar(tarfile.USTAR_FORMAT, ["folder/" * 20 + "b.txt"])
    assert next(iterate_members(io.BytesIO(data), len(data))).name == "folder/" * 20 + "b.txt"
    info = tarfile.TarInfo("big.jpg")
    info.size = 9 * 2**30
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(DamagedTarError, match="truncated") as cut:  # nothing is allocated for the 9 GiB it states
        list(iterate_members(io.BytesIO(header), len(header)))
    assert cut.value.name == "big.jpg"


def test_a_pax_size_counts_and_not_the_header_s() -> None:
    record = b"12 size=300\n"
    assert len(record) == 12
    extended = tarfile.TarInfo("pax")
    extended.type, extended.size = tarfile.XHDTYPE, len(record)
    member = tarfile.TarInfo("a.txt").tobuf(tarfile.USTAR_FORMAT)
    data = extended.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + member + b"x" * 300
    data = data.ljust(2048, b"\0") + bytes(1024)
    file = io.BytesIO(data)
    (found,) = iterate_members(file, len(data))
    assert data[found.offset : found.offset + found.size] == b"x" * 300


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_cut_at_any_place_is_noticed(tar_format: int) -> None:
    data = make_tar(tar_format, ["a.jpg", "b.txt", "c.json"])
    whole = list(iterate_members(io.BytesIO(data), len(data)))
    end = -(-(whole[-1].offset + whole[-1].size) // 512) * 512 + 1024  # two blocks of zeros
    for length in [*range(0, end, 128), end - 1]:
        found = []
        with pytest.raises(DamagedTarError, match="truncated"):
            found.extend(iterate_members(io.BytesIO(data[:length]), length))
        assert found == [member for member in whole if member.offset + member.size <= length]
    assert list(iterate_members(io.BytesIO(data[:end]), end)) == whole


def test_a_header_that_is_none_is_noticed() -> None:
    data = make_tar(tarfile.PAX_FORMAT)
    members = list(iterate_members(io.BytesIO(data), len(data)))
    start = members[2].offset + -(-members[2].size // 512) * 512  # of the headers of the fourth
    for place in (0, 120, 150, 156, 300):
        broken = bytearray(data)
        broken[start + place] ^= 0x55
        found = []
        with pytest.raises(DamagedTarError, match="damaged"):
            found.extend(iterate_members(io.BytesIO(bytes(broken)), len(data)))
        assert found == members[:3]
    for foreign in (b"\x1f\x8b" + bytes(600), b"PK\x03\x04" + bytes(600)):
        with pytest.raises(DamagedTarError, match="damaged"):
            list(iterate_members(io.BytesIO(foreign), len(foreign)))
