"""Palette pictures: an image is the colours of its pixels, a label map their indices."""

import json

import numpy as np
import PIL.Image
import pytest
import tifffile

from jaxseg import data
from jaxseg.data.formats import layouts
from jaxseg.data.formats.files import palette, reading
from jaxseg.data.volumes.volume import BadCaseError

GREY = (np.add.outer(np.arange(12), np.arange(9)) * 7).astype(np.uint8)
"""A picture of 12 rows and 9 columns."""
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], -1)
FORMATS = ("png", "tif", "lzw.tif", "packbits.tif", "deflate.tif")
COMPRESSIONS = {"lzw.tif": "tiff_lzw", "packbits.tif": "packbits", "deflate.tif": "tiff_adobe_deflate"}


def in_colours(path):
    image = palette.in_colours(reading.open_image(str(path)), str(path))
    return image, np.asanyarray(image.dataobj)


def written(folder, ending, picture, **more):
    path = folder / f"a.{ending}"
    picture.save(path, **({"compression": COMPRESSIONS[ending]} if ending in COMPRESSIONS else {}), **more)
    return path


def indexed(array):
    """A palette picture of these colours, exactly, whose indices are in no order of brightness."""
    colours, indices = np.unique(array.reshape(-1, array.shape[-1]), axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(colours))
    picture = PIL.Image.fromarray(np.argsort(order)[indices].reshape(array.shape[:2]).astype(np.uint8), "P")
    picture.putpalette(colours[order].tobytes())
    return picture


@pytest.mark.parametrize("ending", FORMATS)
def test_an_image_is_the_colours_of_its_palette_and_one_channel_if_all_are_grey(tmp_path, ending):
    grey = indexed(np.dstack([GREY] * 3))
    image, voxels = in_colours(written(tmp_path, ending, grey))
    assert (image.shape, voxels.dtype, image.ending) == ((9, 12), np.uint8, ".png" if ending == "png" else ".tif")
    np.testing.assert_array_equal(voxels, GREY.T)
    label, _, _ = reading.read_label(str(tmp_path / f"a.{ending}"))
    np.testing.assert_array_equal(label[..., 0], np.asarray(grey).T)
    assert (label[..., 0] != GREY.T).any()

    few = np.unique(COLOUR[:4].reshape(-1, 3), axis=0)[:200]
    array = few[np.arange(108).reshape(12, 9) % len(few)]
    colours = indexed(array)
    image, voxels = in_colours(written(tmp_path, ending, colours))
    assert image.shape == (9, 12, 1, 3)
    np.testing.assert_array_equal(voxels[:, :, 0], array.transpose(1, 0, 2))
    label, _, _ = reading.read_label(str(tmp_path / f"a.{ending}"))
    np.testing.assert_array_equal(label[..., 0], np.asarray(colours).T)


@pytest.mark.parametrize("ending", FORMATS)
def test_colours_that_do_not_occur_do_not_count(tmp_path, ending):
    picture = PIL.Image.fromarray(GREY % 4, "P")
    picture.putpalette(bytes([9, 9, 9, 5, 5, 5, 70, 70, 70, 1, 1, 1, 255, 0, 0]))
    _, voxels = in_colours(written(tmp_path, ending, picture))
    np.testing.assert_array_equal(voxels, np.array([9, 5, 70, 1])[GREY % 4].T)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palettes_of_few_bits_are_looked_up_too(tmp_path, bits):
    picture = PIL.Image.fromarray(GREY % 2**bits, "P")
    colours = np.arange(200, 200 - 2**bits, -1, dtype=np.uint8)
    picture.putpalette(np.repeat(colours, 3).tobytes())
    _, voxels = in_colours(written(tmp_path, "png", picture, bits=bits))
    np.testing.assert_array_equal(voxels, colours[GREY % 2**bits].T)


def test_transparency_is_refused_in_an_image_and_nothing_to_a_label_map(tmp_path):
    picture = indexed(np.dstack([GREY] * 3))
    index = int(np.asarray(picture)[0, 0])
    opaque = bytes([255] * 256)
    for name, opacity in (("one", index), ("some", bytes([200] * (index + 1)))):
        path = tmp_path / f"{name}.png"
        picture.save(path, transparency=opacity)
        with pytest.raises(BadCaseError, match=rf"{name}\.png is transparent in parts"):
            in_colours(path)
        np.testing.assert_array_equal(reading.read_label(str(path))[0][..., 0], np.asarray(picture).T)
    picture.save(tmp_path / "opaque.png", transparency=opaque[: index + 1])
    np.testing.assert_array_equal(in_colours(tmp_path / "opaque.png")[1], GREY.T)
    unused = indexed(np.dstack([GREY] * 3))
    unused.putpalette(bytes(unused.getpalette()[: 3 * 100]) + bytes(3 * 20))
    unused.save(tmp_path / "unused.png", transparency=bytes([255] * 100 + [0] * 20))
    np.testing.assert_array_equal(in_colours(tmp_path / "unused.png")[1], GREY.T)


def test_a_pixel_beyond_the_palette_and_a_missing_palette_are_damage(tmp_path):
    from tests.data.test_pictures import write_png

    rows = b"".join(b"\0" + bytes(row) for row in (GREY % 5).tolist())
    write_png(tmp_path / "short.png", 9, 12, 8, 3, rows, bytes(12))
    with pytest.raises(BadCaseError, match=r"short\.png is damaged: a pixel has the colour 4, .* 4 colours from 0"):
        in_colours(tmp_path / "short.png")
    write_png(tmp_path / "none.png", 9, 12, 8, 3, rows, b"")
    with pytest.raises(BadCaseError, match=r"none\.png is damaged: it holds indices of colours without a palette"):
        in_colours(tmp_path / "none.png")
    tifffile.imwrite(tmp_path / "none.tif", GREY, photometric="minisblack", metadata=None)
    content = (tmp_path / "none.tif").read_bytes()
    changed = content.replace(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01", b"\x06\x01\x03\x00\x01\x00\x00\x00\x03")
    assert changed != content
    (tmp_path / "none.tif").write_bytes(changed)
    with pytest.raises(BadCaseError, match=r"none\.tif is damaged: it holds indices of colours without a palette"):
        in_colours(tmp_path / "none.tif")


@pytest.mark.parametrize("factor", [1, 256, 257])
def test_palettes_of_tiff_have_8_or_16_bits(tmp_path, factor):
    """The standard stretches 0 ... 255 to 0 ... 65535; programs shift, multiply or forget it."""
    levels = (np.arange(256) * 3 % 256).astype(np.uint16)
    colours = np.stack([levels] * 3) * np.uint16(factor)
    for kind, stored in ((np.uint8, GREY), (np.uint16, GREY.astype(np.uint16) * 4)):
        table = colours if kind is np.uint8 else np.tile(colours, 256)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="palette", colormap=table)
        np.testing.assert_array_equal(in_colours(tmp_path / "a.tif")[1], (stored.astype(int) * 3 % 256).T)


def test_a_stack_keeps_its_grid_and_has_one_palette(tmp_path):
    stack = np.stack([GREY, GREY + 1, GREY + 2])
    colours = np.stack([np.arange(256, dtype=np.uint16) * 3 % 256 * 257] * 3)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stack,
        imagej=True,
        photometric="palette",
        colormap=colours,
        resolution=(2.0, 4.0),
        metadata={"unit": "mm", "spacing": 3.5, "axes": "ZYX"},
    )
    image, voxels = in_colours(tmp_path / "a.tif")
    np.testing.assert_array_equal(voxels, (stack.astype(int) * 3 % 256).transpose())
    plain = reading.open_image(str(tmp_path / "a.tif"))
    np.testing.assert_allclose(image.affine, np.diag([0.5, 0.25, 3.5, 1.0]))
    assert (image.spatial_axes, image.header["sform_code"]) == (plain.spatial_axes, plain.header["sform_code"])
    pages = [indexed(np.dstack([page] * 3)) for page in (GREY, GREY // 2)]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(BadCaseError, match=r"b\.tif has a palette for each page"):
        in_colours(tmp_path / "b.tif")
    label, _, _ = reading.read_label(str(tmp_path / "b.tif"))
    np.testing.assert_array_equal(label, np.stack([np.asarray(page) for page in pages]).transpose())


def test_a_palette_with_other_numbers_beside_its_indices_is_refused(tmp_path):
    picture = PIL.Image.merge("LA", [PIL.Image.fromarray(GREY)] * 2).convert("PA")
    picture.save(tmp_path / "a.tif")
    with pytest.raises(BadCaseError, match=r"a\.tif holds 2 numbers for each pixel, of which one is the index"):
        in_colours(tmp_path / "a.tif")


def test_other_pictures_are_left_as_they_are(tmp_path):
    for name in ("a.png", "a.tif"):
        PIL.Image.fromarray(COLOUR).save(tmp_path / name)
        image = reading.open_image(str(tmp_path / name))
        assert palette.in_colours(image, name) is image


@pytest.mark.parametrize("ending", FORMATS)
def test_every_reader_of_images_sees_colours_and_that_of_label_maps_indices(tmp_path, make_task, ending):
    grey = indexed(np.dstack([GREY] * 3))
    path = written(tmp_path, ending, grey)
    np.testing.assert_array_equal(reading.read_channels([str(path)], 2)[0][..., 0], GREY.T)
    voxels, geometry = data.read_image(path, task=make_task("unused", normalization="none"), ndim=2)
    np.testing.assert_array_equal(voxels[..., 0], GREY.T)
    label, _, _ = reading.read_label(str(path), image=str(path))
    np.testing.assert_array_equal(label[..., 0], np.asarray(grey).T)
    data.write_prediction(voxels[..., 0].astype(int), geometry, tmp_path / f"out.{ending}")
    np.testing.assert_array_equal(reading.read_label(str(tmp_path / f"out.{ending}"))[0][..., 0], GREY.T)
    colours = written(tmp_path, ending, indexed(np.tile(COLOUR[:2], (6, 1, 1))))
    voxels, _, _ = reading.read_channels([str(colours)], 2)
    np.testing.assert_array_equal(voxels, np.tile(COLOUR[:2], (6, 1, 1)).transpose(1, 0, 2))
    assert reading.open_image(str(colours)).shape == (9, 12, 1, 3)


def test_a_folder_of_palette_pictures_has_the_channels_of_their_colours(tmp_path, make_task):
    for name, array in (("a", COLOUR[:2]), ("b", 255 - COLOUR[:2])):
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
        indexed(np.tile(array, (6, 1, 1))).save(tmp_path / "set" / "imagesTr" / f"{name}_0000.png")
        label = PIL.Image.fromarray((GREY > 60).astype(np.uint8), "P")
        label.putpalette(bytes([0, 0, 0, 255, 0, 0]))
        label.save(tmp_path / "set" / "labelsTr" / f"{name}.png", transparency=0)
    described = {"channel_names": {str(index): name for index, name in enumerate("RGB")}, "file_ending": ".png"}
    (tmp_path / "set" / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "tissue": 1}, "numTraining": 2, **described})
    )
    assert [case.name for case in layouts.read_folder(tmp_path / "set").cases] == ["a", "b"]
    task = make_task(tmp_path / "set", normalization="none")
    prepared = data.prepare_task(task, ndim=2, store_dir=tmp_path / "store")
    case = data.load_case(prepared, "a")
    np.testing.assert_array_equal(case.image, np.tile(COLOUR[:2], (6, 1, 1)).transpose(1, 0, 2))
    np.testing.assert_array_equal(case.reference, (GREY > 60).T)


def test_intensities_that_imagej_shows_in_colours_are_not_taken_for_them(tmp_path):
    path = tmp_path / "a.tif"

    def write(table):
        more = {"photometric": "palette", "description": "ImageJ=1.54f\nimages=1\n", "metadata": None}
        tifffile.imwrite(path, GREY, colormap=table.astype(np.uint16) * 257, **more)

    ramp = np.arange(256)
    write(np.stack([ramp, ramp[::-1], ramp]))
    with pytest.raises(BadCaseError, match="Image > Lookup Tables > Grays"):
        reading.open_image(str(path))
    label, _, _ = reading.read_label(str(path))  # there, numbers are what they are
    np.testing.assert_array_equal(label[..., 0], GREY.T)
    write(np.stack([ramp] * 3))
    np.testing.assert_array_equal(np.asanyarray(reading.open_image(str(path)).dataobj), GREY.T)
