"""From a decoded picture to a model's input, beside MONAI's stock chain; and what the decoded cache is worth."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from grrcoca_cli.data.cache import CachedReader
from grrcoca_cli.data.images import fit_image, normalize
from medical import radiology_augmentation, read_pixels

SIZE = 384
ROUNDS = 15
RADIOGRAPHS = ("RG1_J2KR.dcm", "RG2_J2KR.dcm", "RG3_J2KR.dcm")
Row = dict[str, str | float]


def median_seconds(work: Callable[[int], object]) -> float:
    """Median wall time of ``work``, given the number of the round, after one that is not counted."""
    work(0)
    times = []
    for number in range(1, ROUNDS + 1):
        began = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def row(name: str, ours: float, peer: float, goal: float) -> Row:
    return {"name": name, "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(peer / ours, 3), "goal": goal}


def monai_chain() -> Callable[[np.ndarray], object]:
    """What a MONAI user writes: percentiles, an antialiased resize, and the random part."""
    from monai.transforms import (
        Compose,
        EnsureType,
        RandAdjustContrast,
        RandAffine,
        RandGaussianNoise,
        Resize,
        ScaleIntensityRangePercentiles,
    )

    return Compose(
        [
            EnsureType(),
            ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True),
            Resize((SIZE, SIZE), anti_aliasing=True),
            RandAffine(prob=1.0, rotate_range=math.radians(5), translate_range=(11, 11), scale_range=(0.05, 0.05)),
            RandAdjustContrast(prob=1.0, gamma=(0.8, 1.25)),
            RandGaussianNoise(prob=1.0, std=0.01),
        ]
    )


def uncompressed_radiograph() -> bytes:
    """A 16-bit DICOM file of 900 x 1100 without a window."""
    import io

    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

    dataset, meta = Dataset(), FileMetaDataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = ComputedRadiographyImageStorage, "2.25.1", "CR"
    dataset.Rows, dataset.Columns = 900, 1100
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = np.random.default_rng(0).integers(0, 4096, (900, 1100), dtype=np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def chain_rows() -> list[Row]:
    """One grey picture of 900 x 1100 to 384, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        picture = np.random.default_rng(0).random((1, 900, 1100), dtype=np.float32)
        mean = std = (0.5, 0.5, 0.5)

        def evaluate(number: int) -> torch.Tensor:
            return normalize(fit_image(picture, SIZE), mean, std)

        radiograph = uncompressed_radiograph()

        def whole(number: int) -> torch.Tensor:
            return normalize(fit_image(read_pixels(radiograph), SIZE), mean, std)

        def train(number: int) -> torch.Tensor:
            image = fit_image(picture, SIZE).clone(memory_format=torch.contiguous_format)
            return normalize(radiology_augmentation(image, number), mean, std)

        stock = monai_chain()
        evaluation, training, from_bytes = median_seconds(evaluate), median_seconds(train), median_seconds(whole)
        monai = median_seconds(lambda number: stock(picture))
        return [
            row("evaluation chain, 900 x 1100 to 384, one core, against 12 ms", evaluation, 0.012, 1.0),
            row(
                "the same from the bytes of a 16-bit DICOM without window (percentiles), against 12 ms",
                from_bytes,
                0.012,
                1,
            ),
            row("training chain with all augmentation, against 40 ms", training, 0.040, 1.0),
            row("training chain with all augmentation, against MONAI's stock chain", training, monai, 1.0),
        ]
    finally:
        torch.set_num_threads(threads)


def cache_rows() -> list[Row]:
    """First and second epoch over real 2k JPEG 2000 radiographs, without augmentation."""
    from pydicom.data import get_testdata_file

    found = [get_testdata_file(name, download=False) for name in RADIOGRAPHS]
    files = [Path(path) for path in found if path is not None]
    if not files:
        print("skipped, for want of pydicom-data's radiographs: the decoded cache")
        return []
    first, second = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            read = partial(read_pixels, window=None)
            cached = CachedReader(read, Path(folder), SIZE, "letterbox", "bench", 10**9)
            for epoch in (first, second):
                began = time.perf_counter()
                for file in files:
                    fit_image(cached(file), SIZE)
                epoch.append(time.perf_counter() - began)
    once, again = statistics.median(first) / len(files), statistics.median(second) / len(files)
    return [row("read a 2k JPEG 2000 radiograph in the second epoch, cached, against the first", again, once, 20.0)]


def rows() -> list[Row]:
    return [*chain_rows(), *cache_rows()]


if __name__ == "__main__":
    for each in rows():
        print(f"{each['ours']:>9}{each['peer']:>9}{each['ratio']:>8}{each['goal']:>6}  {each['name']}")
