"""Damaged and unusual TIFF files: what is missing is noticed, and pixels do not depend on the compression."""

import contextlib
import io
import json
import logging
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile

from jaxseg import data
from jaxseg.data.formats import image_files
from jaxseg.data.formats.files import reading, table
from jaxseg.data.volumes.volume import BadCaseError
from jaxseg.types import UserError

PAGES = np.random.default_rng(0).integers(0, 255, (3, 12, 10), dtype=np.uint8)
"""A stack of three pages of 12 rows and 10 columns."""
COLOUR = np.random.default_rng(1).integers(0, 255, (9, 14, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
COMPRESSIONS = (None, "tiff_adobe_deflate", "tiff_lzw", "packbits")
"""Compressions of Pillow that are read."""


def read(path, ndim=3):
    return reading.read_channels([str(path)], ndim)[0]


def by_pillow(pages, **more):
    def write(path):
        first, *others = [PIL.Image.fromarray(page) for page in pages]
        first.save(path, save_all=True, append_images=others, **more)

    return write


def by_tifffile(array, **more):
    return lambda path: tifffile.imwrite(path, array, **{"photometric": "minisblack", **more})


# --------------------------------------------------------------------------------------------------------- truncation

ZYX = {"metadata": {"axes": "ZYX"}}
WRITERS = {
    **{f"pillow {name}": by_pillow(PAGES, compression=name) for name in COMPRESSIONS},
    "tifffile": by_tifffile(PAGES),
    "tifffile deflate": by_tifffile(PAGES, compression="zlib"),
    "tifffile one page": by_tifffile(PAGES, truncate=True),
    "plain": by_tifffile(PAGES, metadata=None),
    "tiles": by_tifffile(PAGES, tile=(16, 16)),
    "strips": by_tifffile(PAGES, rowsperstrip=5, compression="zlib", byteorder=">"),
    "BigTIFF": by_tifffile(PAGES, bigtiff=True),
    "ImageJ": by_tifffile(PAGES, imagej=True, **ZYX),
    "ImageJ one page": by_tifffile(PAGES, imagej=True, truncate=True, **ZYX),
    "OME": by_tifffile(PAGES, ome=True, **ZYX),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("logged", [True, False], ids=["logged", "log disabled"])
def test_a_stack_that_was_cut_is_refused_and_never_a_shorter_one(tmp_path, write, logged):
    path = tmp_path / "a.tif"
    write(path)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read(path)[..., 0], PAGES.transpose())
    logging.disable(logging.NOTSET if logged else logging.CRITICAL)
    try:
        for size in range(9, len(whole), 17):
            path.write_bytes(whole[:size])
            with contextlib.suppress(BadCaseError):  # unless it lacks no pixel, but the end of a description
                np.testing.assert_array_equal(read(path)[..., 0], PAGES.transpose(), err_msg=f"{size} bytes")
    finally:
        logging.disable(logging.NOTSET)


def test_a_cut_stack_says_so_and_its_log_is_left_as_it_was(tmp_path):
    path = tmp_path / "a.tif"
    by_pillow(PAGES, compression="tiff_adobe_deflate")(path)
    with tifffile.TiffFile(path) as file:
        second = file.pages[1].offset
    path.write_bytes(path.read_bytes()[: second - 8])
    before = list(logging.getLogger("tifffile").handlers)
    with pytest.raises(BadCaseError, match=rf"a\.tif is truncated .*invalid page offset {second}; copy it once more"):
        read(path)
    assert logging.getLogger("tifffile").handlers == before


def unlinked(content):
    """A stack whose first page says that it is the last."""
    start = struct.unpack("<I", content[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", content[start : start + 2])[0]
    return content[:end] + bytes(4) + content[end + 4 :]


def emptied(content):
    """A stack whose second page lies where a download left zeros."""
    start = struct.unpack("<I", content[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", content[start : start + 2])[0]
    return content[:end] + struct.pack("<I", len(content)) + content[end + 4 :] + bytes(100)


@pytest.mark.parametrize(
    ("write", "change", "reason"),
    [
        (by_tifffile(PAGES, compression="zlib"), unlinked, "truncated"),
        (
            by_tifffile(PAGES, imagej=True, compression="zlib", **ZYX),
            unlinked,
            "truncated",
        ),
        (by_tifffile(PAGES, ome=True, compression="zlib", **ZYX), unlinked, "lacks 2 of its 3 pages"),
        (by_pillow(PAGES), emptied, "it has more pages than the 2 found"),
        (
            by_tifffile(PAGES, imagej=True, **ZYX),
            lambda content: content.replace(b"images=3\nslices=3", b"images=2\nslices=2"),
            r"speaks of 2 page\(s\), and 3 are there",
        ),
        (
            by_tifffile(PAGES[0], tile=(16, 16)),
            lambda content: content.replace(struct.pack("<HHII", 325, 4, 1, 256), struct.pack("<HHII", 325, 4, 1, 0)),
            "it lacks pixels of page 1 of 1",
        ),
    ],
    ids=["shape", "images", "OME", "zeros", "surplus", "tile"],
)
def test_a_stack_has_the_pages_that_its_description_says(tmp_path, write, change, reason):
    path = tmp_path / "a.tif"
    write(path)
    read(path)
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(BadCaseError, match=rf"a\.tif.*{reason}"):
        read(path)


def test_an_image_in_several_files_is_refused(tmp_path):
    """The other files would be read without being noticed when they change."""
    by_tifffile(PAGES[:2], ome=True, compression="zlib", **ZYX)(tmp_path / "b.ome.tif")
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as file:
        described = file.ome_metadata
    uuid = described[described.index('UUID="') + 6 :].partition('"')[0]
    there = f'<TiffData IFD="0" PlaneCount="2"><UUID FileName="b.ome.tif">{uuid}</UUID></TiffData>'
    begin, end = described.index("<TiffData"), described.index("</Pixels>")
    other = described.replace(uuid, "urn:uuid:00000000-0000-0000-0000-000000000000")
    other = other[: other.index("<TiffData")] + there + described[end:]
    assert begin < end
    tifffile.imwrite(
        tmp_path / "a.ome.tif", PAGES[0], photometric="minisblack", description=other.encode(), metadata=None
    )
    with pytest.raises(BadCaseError, match=r"a\.ome\.tif is one of several files that hold an image"):
        read(tmp_path / "a.ome.tif")


# -------------------------------------------------------------------------------------------- pixels, however packed


def packbits(row):
    parts = [row[start : start + 128] for start in range(0, len(row), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def lzw(row):
    """LZW codes as Pillow's libtiff writes them for bytes, without a predictor."""
    stream = io.BytesIO()
    PIL.Image.frombytes("L", (len(row), 1), row).save(stream, "TIFF", compression="tiff_lzw")
    with tifffile.TiffFile(io.BytesIO(stream.getvalue())) as file:
        page = file.pages.first
        return stream.getvalue()[page.dataoffsets[0] : page.dataoffsets[0] + page.databytecounts[0]]


PACKED = {1: bytes, 5: lzw, 8: zlib.compress, 32773: packbits}
"""Encoders by the number of the compression."""


def write_tiff(path, strips, size, *, compression, bits=8, photometric=1, planes=1, more=()):
    """Write a file by hand, with one strip for each plane."""
    width, height = size
    packed = [PACKED[compression](strip) for strip in strips]
    tags = {256: width, 257: height, 259: compression, 262: photometric, 277: planes, 278: height, **dict(more)}
    tags |= {284: 2 if planes > 1 else 1}
    lists = {258: [bits] * planes, 279: [len(strip) for strip in packed]}
    at = 8 + 2 + 12 * (len(tags) + 3) + 4
    places, bodies = {}, b""
    for tag, values in lists.items():
        places[tag] = at + len(bodies)
        bodies += struct.pack(f"<{planes}I", *values)
    starts = at + len(bodies) + 4 * planes + np.cumsum([0, *lists[279][:-1]])
    lists[273], places[273] = starts.tolist(), at + len(bodies)
    bodies += struct.pack(f"<{planes}I", *lists[273])
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    for tag, values in lists.items():
        entries[tag] = struct.pack("<HHII", tag, 4, planes, places[tag] if planes > 1 else values[0])
    listed = b"".join(entries[tag] for tag in sorted(entries))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + listed + bytes(4) + bodies + b"".join(packed))


@pytest.mark.parametrize("compression", PACKED)
def test_planes_of_colours_are_channels_whatever_the_compression(tmp_path, compression):
    square = COLOUR[:, :9]
    for name, array in (("oblong", COLOUR), ("square", square)):
        strips = [np.ascontiguousarray(array[..., colour]).tobytes() for colour in range(3)]
        path = tmp_path / f"{name}.tif"
        write_tiff(path, strips, array.shape[1::-1], compression=compression, photometric=2, planes=3)
        np.testing.assert_array_equal(read(path, 2), array.transpose(1, 0, 2))


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_levels_of_few_bits_are_their_values_where_they_are_read(tmp_path, bits):
    values = (np.arange(48).reshape(6, 8) % 2**bits).astype(np.uint8)
    rows = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(6, -1), axis=-1)
    write_tiff(tmp_path / "a.tif", [rows.tobytes()], (8, 6), compression=5, bits=bits)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", 2)[..., 0], values.T)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
def test_a_turned_picture_is_refused_whatever_the_compression(tmp_path, compression, orientation):
    path = tmp_path / "a.tif"
    tags = {} if orientation is None else {274: orientation}
    PIL.Image.fromarray(GREY).save(path, compression=compression, tiffinfo=tags)
    if orientation in (None, 1):
        np.testing.assert_array_equal(read(path, 2)[..., 0], GREY.T)
        return
    for reader in (lambda: read(path, 2), lambda: reading.read_label(str(path))):
        with pytest.raises(BadCaseError, match=rf"a\.tif is stored turned.*has the orientation {orientation}.*save"):
            reader()


def test_a_turned_page_behind_others_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for orientation in (1, 1, 6):
            tag = (274, "H", 1, orientation, True)
            file.write(GREY, photometric="minisblack", metadata=None, contiguous=False, extratags=[tag])
    with pytest.raises(BadCaseError, match="its page 3 has the orientation 6"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_pictures_are_the_same_whatever_the_compression(tmp_path, compression):
    stack = np.stack([COLOUR, 255 - COLOUR])
    for name, pages, expected in (
        ("stack", PAGES, PAGES.transpose()[..., None]),
        ("wide", PAGES.astype(np.uint16) * 200, PAGES.transpose()[..., None] * 200.0),
        ("fractions", PAGES / np.float32(8), PAGES.transpose()[..., None] / np.float32(8)),
        ("bits", PAGES > 100, PAGES.transpose()[..., None] > 100),
        ("colours", stack, stack.transpose(2, 1, 0, 3)),
    ):
        by_pillow(pages, compression=compression)(tmp_path / f"{name}.tif")
        np.testing.assert_array_equal(read(tmp_path / f"{name}.tif"), expected, err_msg=name)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "SEPARATED"), ("YCbCr", "YCBCR"), ("LAB", "CIELAB")])
def test_numbers_that_are_no_intensities_are_refused(tmp_path, compression, mode, kind):
    channels = 4 if mode == "CMYK" else 3
    picture = PIL.Image.frombytes(mode, (6, 5), bytes(range(30 * channels)))
    picture.save(tmp_path / "a.tif", compression=compression)
    with pytest.raises(BadCaseError, match=f"colours of the kind {kind}.*; save it as grey levels or as RGB"):
        read(tmp_path / "a.tif", 2)


# ----------------------------------------------------------------------------------------------- the file of spacings


def test_a_spacing_with_a_byte_order_mark_counts(tmp_path, make_task):
    by_tifffile(PAGES)(tmp_path / "a_0000.tif")
    (tmp_path / "a.json").write_text('{"spacing": [4, 0.3, 0.2]}', encoding="utf-8-sig")
    _, geometry = data.read_image(tmp_path / "a_0000.tif", task=make_task("unused", normalization="none"), ndim=3)
    assert geometry.own_spacing_mm == (0.2, 0.3, 4.0)


@pytest.mark.parametrize(
    "content",
    [b'{"spacing": [4, 0.3, 0.2],}', b"", b"spacing: 4", '{"spacing": [4, 0.3, 0.2]}'.encode("utf-16"), b"[" * 200_000],
    ids=["comma", "empty", "text", "UTF-16", "deep"],
)
@pytest.mark.parametrize("name", ["a.json", "a_0000.json"])
def test_a_file_of_spacings_that_cannot_be_parsed_is_named(tmp_path, make_task, content, name):
    by_tifffile(PAGES[0], resolution=(300, 300), resolutionunit="INCH")(tmp_path / "a_0000.tif")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadCaseError, match=rf"{name} is no valid JSON: .*so mend it"):
        read(tmp_path / "a_0000.tif", 2)
    with pytest.raises(UserError, match=rf"{name} is no valid JSON"):
        data.read_image(tmp_path / "a_0000.tif", task=make_task("unused"), ndim=2)


def test_a_file_of_spacings_that_cannot_be_read_is_no_file_without_a_spacing(tmp_path, monkeypatch):
    by_tifffile(PAGES)(tmp_path / "a.tif")
    (tmp_path / "a.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(BadCaseError, match=r"a\.json is a link to a file that does not exist"):
        read(tmp_path / "a.tif")
    (tmp_path / "gone.json").write_text('{"spacing": [4, 0.3, 0.2]}')
    assert reading.open_image(str(tmp_path / "a.tif")).header.get_zooms() == pytest.approx((0.2, 0.3, 4.0))

    def refuse(path, *args, **more):
        if str(path).endswith(".json"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *args, **more)

    monkeypatch.setattr("jaxseg.data.formats.files.tiff.open", refuse, raising=False)
    with pytest.raises(PermissionError, match=r"a\.json"):
        read(tmp_path / "a.tif")


def test_every_file_that_may_give_the_spacing_belongs_to_its_image(tmp_path):
    """Otherwise a spacing that is added to such a file, or mended in it, would not be noticed."""
    path = tmp_path / "a_0000.tif"
    by_tifffile(PAGES)(path)
    assert table.with_parts([str(path)]) == [str(path)]
    (tmp_path / "a_0000.json").write_text(json.dumps({"origin": 3}))
    (tmp_path / "a.json").write_text("{")
    own, shared = str(tmp_path / "a_0000.json"), str(tmp_path / "a.json")
    assert table.with_parts([str(path)]) == [str(path), own, shared]
    assert not image_files.passed_over(tmp_path, [path])
    (tmp_path / "a_0000.json").write_text(json.dumps({"spacing": [4, 0.3, 0.2]}))
    assert reading.open_image(str(path)).header.get_zooms() == pytest.approx((0.2, 0.3, 4.0))
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.json").mkdir()
    assert table.with_parts([str(path)]) == [str(path), own]
