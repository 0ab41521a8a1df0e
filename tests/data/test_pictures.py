"""PNG and TIFF files, held against Pillow and tifffile on the same pixels."""

import struct
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile

from jaxseg import data
from jaxseg.data import digests
from jaxseg.data.formats import image_files
from jaxseg.data.formats.files import reading, table, writing
from jaxseg.data.volumes.volume import BadCaseError
from jaxseg.types import UserError

GREY = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
"""A picture of 5 rows and 6 columns, all pixels different."""
COLOUR = np.stack([GREY, GREY + 1, 255 - GREY], -1)
STACK = np.arange(5 * 6 * 4, dtype=np.uint16).reshape(4, 5, 6)


@pytest.fixture
def read(make_task):
    def read_image(path, ndim=2):
        return data.read_image(path, task=make_task("unused", normalization="none"), ndim=ndim)

    return read_image


def png(path, array=GREY, **more):
    PIL.Image.fromarray(array).save(path, **more)
    return path


def tiff(path, array=GREY, **more):
    tifffile.imwrite(path, array, **{"photometric": "minisblack", **more})
    return path


# ---------------------------------------------------------------------------------------------------------------- PNG


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_levels_are_read_as_columns_and_rows_and_labels_come_back(read, tmp_path, kind):
    stored = GREY.astype(kind) * (1 if kind is np.uint8 else 250)
    voxels, geometry = read(png(tmp_path / "a.png", stored))
    np.testing.assert_array_equal(voxels[..., 0], stored.T)
    assert (geometry.own_spacing_mm, geometry.ending) == ((1.0, 1.0), ".png")
    assert "the file gives no voxel size" in geometry.warnings[0]
    data.write_prediction(voxels[..., 0].astype(int), geometry, tmp_path / "out.png")
    with PIL.Image.open(tmp_path / "out.png") as back:
        assert back.mode == ("L" if kind is np.uint8 else "I;16")
        np.testing.assert_array_equal(np.asarray(back), stored)
    np.testing.assert_array_equal(reading.read_label(str(tmp_path / "out.png"))[0][..., 0], stored.T)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_labels_of_few_bits_and_of_indexed_colours_are_their_values(tmp_path, bits, palette):
    values = (np.arange(30).reshape(5, 6) % 2**bits).astype(np.uint8)
    # Written by hand, because Pillow writes grey levels of 1 and 8 bits alone.
    rows = b"".join(b"\0" + _packed(row, bits) for row in values)
    write_png(
        tmp_path / "a.png", 6, 5, bits, 3 if palette else 0, rows, bytes(range(255, 255 - 3 * 2 ** min(bits, 6), -1))
    )
    np.testing.assert_array_equal(reading.read_label(str(tmp_path / "a.png"))[0][..., 0], values.T)


def _packed(row, bits):
    return np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()


def write_png(path, width, height, bits, colour, rows, palette=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))]
    parts += [chunk(b"PLTE", palette)] if colour == 3 else []
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])
    )


def test_colours_are_three_channels_and_the_label_map_is_one(read, tmp_path):
    alpha = np.dstack([COLOUR, np.full_like(GREY, 255)])
    for name, array in (("rgb", COLOUR), ("rgba", alpha)):
        voxels, geometry = read(png(tmp_path / f"{name}.png", array))
        np.testing.assert_array_equal(voxels, COLOUR.transpose(1, 0, 2))
    data.write_prediction((voxels[..., 0] > 100).astype(int), geometry, tmp_path / "out.png")
    with PIL.Image.open(tmp_path / "out.png") as back:
        np.testing.assert_array_equal(np.asarray(back), GREY > 100)


def test_a_label_map_of_colours_is_refused_and_one_that_is_grey_is_read(tmp_path):
    with pytest.raises(BadCaseError, match=r"a\.png is a colour picture; a label map has one number"):
        reading.read_label(str(png(tmp_path / "a.png", COLOUR)))
    label, _, _ = reading.read_label(str(png(tmp_path / "b.png", np.dstack([GREY] * 3))))
    np.testing.assert_array_equal(label[..., 0], GREY.T)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-24] ^= 0x41
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cut, "is truncated or damaged"),
        (flip, "is truncated or damaged"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"nothing"), "is not a readable PNG file"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)), "is not a readable PNG file"),
        (lambda path: tiff(path), r"holds TIFF; give it the ending \.tif"),
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: png(path, np.dstack([COLOUR, GREY])), "is transparent in parts"),
        (lambda path: png(path, save_all=True, append_images=[PIL.Image.fromarray(GREY + 1)]), "is an animation"),
        (lambda path: write_png(path, 1, 1, 16, 2, bytes(7)), "colours or transparency of 16 bits"),
    ],
    ids=["cut", "a byte", "empty", "text", "header", "TIFF", "missing", "alpha", "animation", "48 bits"],
)
def test_damaged_pictures_are_refused_by_name(tmp_path, change, reason):
    path = png(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (20, 20)).astype(np.uint8))
    change(path)
    with pytest.raises(BadCaseError, match=rf"a\.png.*{reason}"):
        reading.read_channels([str(path)], 2)


def test_png_holds_one_slice_of_whole_numbers(read, tmp_path):
    voxels, geometry = read(png(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="whole numbers"):
        data.write_map(voxels[..., 0], geometry, tmp_path / "m.png")
    assert not list(tmp_path.glob(".partial*"))
    data.write_map(voxels[..., 0], geometry, tmp_path / "m.nii.gz")
    back = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(back.get_fdata(), GREY.T)
    assert (type(back), back.header.get_xyzt_units()[0]) == (nib.Nifti1Image, "unknown")
    assert writing.is_own(tmp_path / "m.nii.gz")
    nib.save(nib.Nifti1Image(GREY.T[..., None], np.eye(4)), tmp_path / "slice.nii")
    data.write_prediction(GREY.T.astype(int), read(tmp_path / "slice.nii")[1], tmp_path / "slice.png")
    with PIL.Image.open(tmp_path / "slice.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), GREY)
    assert writing.is_own(tmp_path / "slice.png")


# --------------------------------------------------------------------------------------------------------------- TIFF

IN_MM = {"imagej": True, "resolution": (2.0, 4.0), "metadata": {"unit": "mm", "spacing": 3.5, "axes": "ZYX"}}


def test_a_stack_keeps_the_spacing_that_imagej_gives(read, tmp_path):
    voxels, geometry = read(tiff(tmp_path / "a.tif", STACK, **IN_MM), 3)
    np.testing.assert_array_equal(voxels[..., 0], STACK.transpose())
    assert geometry.own_spacing_mm == (0.5, 0.25, 3.5)
    assert any("left and right are a guess" in text for text in geometry.warnings)
    data.write_prediction(voxels[..., 0].astype(int) + 256, geometry, tmp_path / "out.tif")
    data.write_map(voxels[..., 0] / 7, geometry, tmp_path / "map.tif")
    for name, expected in (("out", STACK + 256), ("map", (STACK / 7).astype(np.float32))):
        with tifffile.TiffFile(tmp_path / f"{name}.tif") as file:
            np.testing.assert_array_equal(file.asarray(), expected)
            assert file.asarray().dtype == expected.dtype
            assert (file.imagej_metadata["unit"], file.imagej_metadata["spacing"]) == ("mm", 3.5)
            assert [file.pages.first.tags[f"{axis}Resolution"].value for axis in "XY"] == [(2, 1), (4, 1)]


MICRO = {"imagej": True, "resolution": (3.0, 3.0), "metadata": {"unit": "micron"}}
OME = {"ome": True, "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 2.0, "axes": "YX"}}


@pytest.mark.parametrize(
    ("more", "spacing"),
    [
        ({}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (96 / 2.54, 96 / 2.54), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (1, 1), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (254, 508), "resolutionunit": "INCH"}, (0.1, 0.05)),
        ({"resolution": (10, 20), "resolutionunit": "CENTIMETER"}, (1.0, 0.5)),
        (MICRO, (1 / 3000, 1 / 3000)),
        ({"imagej": True, "resolution": (3.0, 3.0), "metadata": {"unit": "pixel"}}, None),
        (OME, (0.0005, 0.002)),
    ],
    ids=["none", "72 dpi", "96 dpi", "1 a cm", "inch", "cm", "micron", "pixel", "OME"],
)
def test_the_pixel_size_is_what_was_measured_or_unknown(read, tmp_path, more, spacing):
    _, geometry = read(tiff(tmp_path / "a.tif", **more))
    np.testing.assert_allclose(geometry.own_spacing_mm, spacing or (1.0, 1.0), rtol=1e-5)
    assert any("no voxel size" in text for text in geometry.warnings) == (spacing is None)
    data.write_prediction(GREY.T.astype(int), geometry, tmp_path / "out.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), GREY)
    np.testing.assert_allclose(read(tmp_path / "out.tif")[1].own_spacing_mm, geometry.own_spacing_mm, rtol=1e-6)


def test_the_json_file_beside_a_stack_gives_its_voxel_size_as_nnunet_has_it(read, tmp_path):
    for name in ("a_0000.tif", "a_0001.tif", "b.tif"):
        tiff(tmp_path / name, STACK, **IN_MM)
    (tmp_path / "a.json").write_text('{"spacing": [4, 0.3, 0.2]}')
    (tmp_path / "b.json").write_text('{"origin": 3}')
    _, geometry = read([tmp_path / "a_0000.tif", tmp_path / "a_0001.tif"], 3)
    assert geometry.own_spacing_mm == (0.2, 0.3, 4.0)
    assert read(tmp_path / "b.tif", 3)[1].own_spacing_mm == (0.5, 0.25, 3.5)
    paths = [str(tmp_path / name) for name in ("a_0000.tif", "b.tif")]
    assert table.with_parts(paths) == [paths[0], str(tmp_path / "a.json"), paths[1], str(tmp_path / "b.json")]
    assert [path.name for path in image_files.passed_over(tmp_path, map(Path, paths))] == ["a_0001.tif"]
    (tmp_path / "a.json").write_text('{"spacing": [4, 0.3]}')
    with pytest.raises(UserError, match=r"a\.json gives the spacing \[4, 0\.3\]; three numbers, for z, y and x"):
        read(tmp_path / "a_0000.tif", 3)


def test_colours_and_channels_of_a_tiff_are_channels(read, tmp_path):
    expected = COLOUR.transpose(1, 0, 2)
    alpha = np.dstack([COLOUR, np.full_like(GREY, 255)])
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    for name, array, more in (
        ("rgb", COLOUR, {"photometric": "rgb"}),
        ("rgba", alpha, {"photometric": "rgb"}),
        ("planes", COLOUR.transpose(2, 0, 1), planes),
        ("imagej", COLOUR.transpose(2, 0, 1), {"imagej": True, "metadata": {"axes": "CYX"}}),
    ):
        voxels, geometry = read(tiff(tmp_path / f"{name}.tif", array, **more))
        np.testing.assert_array_equal(voxels, expected, err_msg=name)
        data.write_prediction((voxels[..., 0] > 100).astype(int), geometry, tmp_path / f"out_{name}.tif")
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"out_{name}.tif"), GREY > 100)
    both = np.stack([STACK, STACK + 1], 1)
    voxels, _ = read(tiff(tmp_path / "both.tif", both, imagej=True, metadata={"axes": "ZCYX"}), 3)
    np.testing.assert_array_equal(voxels, both.transpose(3, 2, 0, 1))


def test_tiff_labels_of_indexed_colours_are_their_values(tmp_path):
    values = (GREY // 8) % 3
    palette = np.zeros((3, 256), np.uint16)
    palette[:, 1] = 60000
    path = tiff(tmp_path / "a.tif", values, photometric="palette", colormap=palette)
    np.testing.assert_array_equal(reading.read_label(str(path))[0][..., 0], values.T)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_common_compressions_are_read_by_pillow(tmp_path, compression):
    pages = [PIL.Image.fromarray(plane) for plane in STACK]
    pages[0].save(tmp_path / "stack.tif", compression=compression, save_all=True, append_images=pages[1:])
    PIL.Image.fromarray(COLOUR).save(tmp_path / "rgb.tif", compression=compression)
    voxels, _, _ = reading.read_channels([str(tmp_path / "stack.tif")], 3)
    np.testing.assert_array_equal(voxels[..., 0], STACK.transpose())
    voxels, _, _ = reading.read_channels([str(tmp_path / "rgb.tif")], 2)
    np.testing.assert_array_equal(voxels, COLOUR.transpose(1, 0, 2))
    content = (tmp_path / "rgb.tif").read_bytes()
    (tmp_path / "rgb.tif").write_bytes(content[: len(content) // 3])
    with pytest.raises(BadCaseError, match=r"rgb\.tif"):
        reading.read_channels([str(tmp_path / "rgb.tif")], 2)


def jpeg(path):
    PIL.Image.fromarray(GREY).save(path, compression="jpeg")


def pages(path):
    with tifffile.TiffWriter(path) as file:
        file.write(GREY, photometric="minisblack")
        file.write(STACK[0], photometric="minisblack")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is truncated or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:6]), "not a readable TIFF|truncated"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"nothing"), "is not a readable TIFF file"),
        (lambda path: png(path, format="PNG"), r"holds PNG; give it the ending \.png"),
        (jpeg, "is compressed in a way that needs another package.*imagecodecs"),
        (lambda path: tiff(path, photometric="miniswhite"), "stores white as 0"),
        (lambda path: tiff(path, STACK, imagej=True, metadata={"axes": "TYX"}), "has the axes T 4 x Y 5 x X 6"),
        (pages, "holds 2 images of different kinds"),
        (lambda path: tiff(path, GREY.astype(np.complex64)), "holds complex64 voxels"),
    ],
    ids=["cut", "6 bytes", "empty", "text", "PNG", "JPEG", "white", "time", "pages", "complex"],
)
def test_damaged_tiffs_are_refused_by_name(tmp_path, change, reason):
    path = tiff(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8), compression=8)
    change(path)
    with pytest.raises(BadCaseError, match=rf"a\.tif.*({reason})"):
        reading.read_channels([str(path)], 2)


def test_fractions_are_no_labels_and_a_missing_package_says_what_to_install(tmp_path, monkeypatch, read):
    path = tiff(tmp_path / "a.tif", GREY / np.float32(16))
    with pytest.raises(BadCaseError, match=r"a\.tif has label values that are not whole numbers, such as 0\.5"):
        reading.read_label(str(path))
    _, geometry = read(path)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    message = r"\.tif needs tifffile .*pip install 'jaxseg\[formats\]'"
    with pytest.raises(BadCaseError, match=message):
        reading.open_image(str(path))
    with pytest.raises(UserError, match=message):
        data.write_prediction(GREY.T.astype(int), geometry, tmp_path / "out.tif")
    assert not writing.is_own(path)


# --------------------------------------------------------------------------------------------------------- all formats


def test_the_same_picture_has_one_digest_in_every_format(tmp_path):
    nib.save(nib.Nifti1Image(GREY.T[..., None], np.eye(4)), tmp_path / "a.nii.gz")
    paths = [png(tmp_path / "a.png"), tiff(tmp_path / "a.tif"), tmp_path / "a.nii.gz"]
    assert len({digests.of_array(reading.read_channels([str(path)], 2)[0]) for path in paths}) == 1


def test_a_label_map_without_a_grid_lies_on_its_image_as_both_are_stored(read, tmp_path):
    affine = np.diag([-0.5, -2.0, 1.0, 1.0])  # as ITK writes pictures, whose axes change their direction when read
    nib.save(nib.Nifti1Image(GREY.T[..., None], affine), tmp_path / "a.nii.gz")
    voxels, geometry = read(tmp_path / "a.nii.gz")
    label, where, _ = reading.read_label(
        str(png(tmp_path / "l.png")), like=geometry.canonical_affine(), image=str(tmp_path / "a.nii.gz")
    )
    np.testing.assert_array_equal(label[..., 0], voxels[..., 0])
    np.testing.assert_array_equal(label[..., 0], GREY.T[::-1, ::-1])
    np.testing.assert_allclose(where, geometry.canonical_affine())


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_only_own_files_are_replaced(read, tmp_path, ending):
    path = (png if ending == ".png" else tiff)(tmp_path / f"a{ending}")
    _, geometry = read(path)
    for shift in (0, 1):
        data.write_prediction(GREY.T.astype(int) // 2 + shift, geometry, tmp_path / f"out{ending}")
    assert writing.is_own(tmp_path / f"out{ending}")
    with pytest.raises(UserError, match="was not written by jaxseg"):
        data.write_prediction(GREY.T.astype(int), geometry, path)
