"""NRRD and MetaImage files as other programs write them: how many voxels there are, and what headers leave unsaid."""

import gzip
import tracemalloc
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from jaxseg import data
from jaxseg.data.formats.files import reading, table
from jaxseg.data.volumes.volume import BadCaseError

STORED = np.arange(100, 220, dtype=np.int16).reshape(6, 5, 4)
RAW = STORED.tobytes()


def write(path, lines, voxels, *, size="4 5 6", kind=None):
    """A file with these lines in its header and these bytes behind it, or beside it where its ending says so."""
    beside = path.suffix in (".mhd", ".nhdr")
    if path.suffix in (".nrrd", ".nhdr"):
        head = ["NRRD0005", f"type: {kind or 'short'}", f"dimension: {len(size.split())}", f"sizes: {size}"]
        named = [f"data file: {path.stem}.bin"] if beside else []
        text = "\n".join([*head, "endian: little", *lines, *named, "", ""])
    else:
        head = ["ObjectType = Image", f"NDims = {len(size.split())}", "BinaryData = True", f"DimSize = {size}"]
        named = f"{path.stem}.bin" if beside else "LOCAL"
        text = "\n".join([*head, f"ElementType = {kind or 'MET_SHORT'}", *lines, f"ElementDataFile = {named}", ""])
    path.write_bytes(text.encode() + (b"" if beside else voxels))
    if beside:
        path.with_suffix(".bin").write_bytes(voxels)
    return path


def stored_in(path):
    return np.asanyarray(reading.open_image(str(path)).dataobj)


# -------------------------------------------------------------------------------------------- how many voxels there are

PACKED = zlib.compress(RAW)
LENGTH = f"CompressedDataSize = {len(PACKED)}"
WRONG_LENGTHS = [
    ("4 5 8", [LENGTH], "claims 320 bytes of voxels in .* and 240 are there; mend its "),
    ("4 5 8", [], "claims 320 bytes of voxels in .* and 240 are there; mend its "),
    ("4 5 3", [LENGTH], "claims 120 bytes of voxels in .* and more are there; mend its "),
    ("4 5 3", [], "claims 120 bytes of voxels in .* and more are there; mend its "),
    ("4 5 6", [f"CompressedDataSize = {len(PACKED) // 2}"], f"voxels have {len(PACKED)} bytes"),
    ("4 5 6", [f"CompressedDataSize = {len(PACKED) - 1}"], "leave the line out"),
    ("4 5 6", ["CompressedDataSize = 1000000"], "leave the line out"),
]


def refused(path, reason):
    for read in (lambda: reading.read_channels([str(path)], 3), lambda: reading.read_label(str(path))):
        with pytest.raises(BadCaseError, match=rf"{path.name} is .*{reason}"):
            read()


@pytest.mark.parametrize("said", ["True", "1", "T"])
@pytest.mark.parametrize(("size", "lines", "reason"), WRONG_LENGTHS)
@pytest.mark.parametrize("ending", [".mha", ".mhd"])
def test_compressed_voxels_are_as_many_as_a_metaimage_claims(tmp_path, ending, size, lines, reason, said):
    refused(write(tmp_path / f"a{ending}", [f"CompressedData = {said}", *lines], PACKED, size=size), reason)


@pytest.mark.parametrize(("size", "there"), [("4 5 8", "240"), ("4 5 3", "more")])
@pytest.mark.parametrize("ending", [".nrrd", ".nhdr"])
def test_compressed_voxels_are_as_many_as_an_nrrd_file_claims(tmp_path, ending, size, there):
    path = write(tmp_path / f"a{ending}", ["encoding: gzip"], gzip.compress(RAW), size=size)
    refused(path, f"claims .* bytes of voxels in .* and {there} are there; mend its sizes")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ending", [".mha", ".mhd"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    {
        **{"MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_INT": "i4", "MET_LONG": "i4"},
        **{"MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
    }.items(),
)
def test_a_metaimage_without_the_length_of_its_stream_is_read_as_with_it(
    tmp_path, kind, dtype, order, ending, channels
):
    voxels = np.random.default_rng(0).integers(0, 100, (6, 5, 4, channels)).astype(order + dtype)
    stream = zlib.compress(voxels.tobytes())
    lines = [f"BinaryDataByteOrderMSB = {order == '>'}", "CompressedData = True"]
    lines += [f"ElementNumberOfChannels = {channels}"]
    with_it = write(tmp_path / f"b{ending}", [*lines, f"CompressedDataSize = {len(stream)}"], stream, kind=kind)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(with_it))).reshape(voxels.shape)
    np.testing.assert_array_equal(expected, voxels)
    for more in ([], ["CompressedDataSize = 0"], [f"CompressedDataSize = {len(stream)}"]):
        path = write(tmp_path / f"a{ending}", [*lines, *more], stream, kind=kind)
        read = stored_in(path)
        assert read.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(read.reshape(4, 5, 6, channels), voxels.transpose(2, 1, 0, 3))


def test_compressed_slices_in_files_of_their_own_are_each_of_their_length(tmp_path):
    lines = ["CompressedData = True", "ElementDataFile = LIST", *(f"{index}.z" for index in range(6))]
    for index, plane in enumerate(STORED):
        (tmp_path / f"{index}.z").write_bytes(zlib.compress(plane.tobytes()))
    path = write(tmp_path / "a.mha", lines, b"")
    path.write_bytes(path.read_bytes().replace(b"ElementDataFile = LOCAL\n", b""))
    none = tmp_path / "none.mha"
    none.write_bytes(path.read_bytes().partition(b"0.z")[0])
    with pytest.raises(BadCaseError, match=r"none\.mha is truncated: .* a list, which is empty"):
        reading.open_image(str(none))
    np.testing.assert_array_equal(stored_in(path), STORED.transpose())
    for index, part in enumerate((STORED[2, :2], np.concatenate([STORED[2, 2:], STORED[3]])), start=2):
        (tmp_path / f"{index}.z").write_bytes(zlib.compress(part.tobytes()))
    with pytest.raises(BadCaseError, match=r"claims 40 bytes of voxels in 2\.z and 16 are there"):
        stored_in(path)


@pytest.mark.parametrize(
    ("lines", "voxels"),
    [
        (["byte skip: 4"], gzip.compress(b"abcd" + RAW)),
        (["byte skip: -1"], gzip.compress(b"abcd" + RAW)),
        (["byte skip: -3"], gzip.compress(b"abcd" + RAW + b"zz")),
        (["line skip: 2", "byteskip: 4"], b"x\ny\n" + gzip.compress(b"abcd" + RAW)),
        ([], gzip.compress(RAW[:100]) + gzip.compress(RAW[100:])),
        ([], gzip.compress(RAW) + b"\0" * 700),
    ],
)
@pytest.mark.parametrize("ending", [".nrrd", ".nhdr"])
def test_what_nrrd_skips_and_streams_that_follow_each_other_are_counted_rightly(tmp_path, ending, lines, voxels):
    path = write(tmp_path / f"a{ending}", ["encoding: gzip", *lines], voxels)
    np.testing.assert_array_equal(stored_in(path), STORED.transpose())
    path = write(tmp_path / f"a{ending}", ["encoding: gzip", *lines], voxels, size="4 5 7")
    with pytest.raises(BadCaseError, match=r"claims 28\d bytes of voxels .* and 24\d are there"):
        stored_in(path)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_stream_that_never_ends_is_read_no_further_than_the_header_goes(tmp_path, ending):
    lines = ["encoding: gzip"] if ending == ".nrrd" else ["CompressedData = True"]
    path = write(tmp_path / f"a{ending}", lines, gzip.compress(bytes(1 << 27), 1))
    tracemalloc.start()
    with pytest.raises(BadCaseError, match="and more are there"):
        stored_in(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26


def test_voxels_of_a_metaimage_begin_where_its_header_says_and_not_within_it(tmp_path):
    path = write(tmp_path / "a.mhd", ["HeaderSize = 5", "CompressedData = True"], b"12345" + PACKED)
    np.testing.assert_array_equal(stored_in(path), STORED.transpose())
    with pytest.raises(BadCaseError, match=r"b\.mhd says HeaderSize = -1"):
        stored_in(write(tmp_path / "b.mhd", ["HeaderSize = -1", "CompressedData = True"], b"12345" + PACKED))
    for lines, voxels in ((["CompressedData = True"], PACKED), ([], RAW)):
        with pytest.raises(BadCaseError, match=r"c\.mha says HeaderSize = 5, and its voxels begin at byte .* or later"):
            stored_in(write(tmp_path / "c.mha", ["HeaderSize = 5", *lines], voxels))


# ------------------------------------------------------------------------------------------ what headers leave unsaid

DIAGONAL = "space directions: (2,0,0) (0,3,0) (0,0,4)"
UNSIZED, GUESS = "the file gives no voxel size; 1 mm is assumed", "left and right are a guess"
UNSAID = [
    (".nrrd", [], (UNSIZED, GUESS)),
    (".nrrd", ["spacings: 2 3 4"], (GUESS,)),
    (".nrrd", ["spacings: nan NaN nan"], (UNSIZED, GUESS)),
    (".nrrd", ["spacings:=2 3 4"], (UNSIZED, GUESS)),
    (".nrrd", ["space: LPS"], (UNSIZED, GUESS)),
    (".nrrd", ["space: LPS", "space directions: none none none"], (UNSIZED, GUESS)),
    (".nrrd", ["space dimension: 3", DIAGONAL], (GUESS,)),
    (".nrrd", ["space: scanner-xyz", DIAGONAL], (GUESS,)),
    (".nrrd", ["space: 3D-right-handed", DIAGONAL], (GUESS,)),
    (".nrrd", ["space: LPS", DIAGONAL], ()),
    (".nrrd", ["space: Right-Anterior-Superior", DIAGONAL], ()),
    (".nrrd", ["space: left anterior superior", DIAGONAL], ()),
    (".mha", [], (UNSIZED, GUESS)),
    (".mha", ["ElementSpacing = 2 3 4"], (GUESS,)),
    (".mha", ["ElementSize = 2 3 4"], (GUESS,)),
    (".mha", ["elementspacing = 2 3 4"], (UNSIZED, GUESS)),
    *(
        (".mha", [f"{name} = 0 1 0 1 0 0 0 0 1", *size], () if size else (UNSIZED,))
        for name in ("TransformMatrix", "Rotation", "Orientation")
        for size in ([], ["ElementSpacing = 2 3 4"])
    ),
]


@pytest.mark.parametrize(("ending", "lines", "told"), UNSAID)
def test_sizes_and_directions_that_a_header_leaves_out_are_told(tmp_path, ending, lines, told):
    path = write(tmp_path / f"a{ending}", [*lines, *(["encoding: raw"] if ending == ".nrrd" else [])], RAW)
    voxels, geometry, warnings = reading.read_channels([str(path)], 3)
    assert len(warnings) == len(told)
    assert all(any(text in warning for warning in warnings) for text in told)
    image = sitk.ReadImage(str(path))  # what is known of the grid is kept
    assert sorted(geometry.own_spacing_mm) == sorted(image.GetSpacing())
    for index in ((0, 0, 0), (3, 1, 5)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        place = np.rint(np.linalg.solve(geometry.canonical_affine(), [-x, -y, z, 1.0])[:3]).astype(int)
        assert voxels[(*place, 0)] == image.GetPixel(index)


UNITS = [
    (".nrrd", ["space: LPS", DIAGONAL, 'space units: "um" "um" "um"'], 1e-3),
    (".nrrd", ["space: LPS", DIAGONAL, 'space units: "mm" "" "mm"'], 1),
    (".nrrd", ["spacings: 2 3 4", 'units: "cm" "cm" "cm"'], 10),
    (".nrrd", ["spacings: 2 3 4", 'units: "" "???" ""'], 1),
    (".mha", ["ElementSpacing = 2 3 4", "DistanceUnits = um"], 1e-3),
    (".mha", ["ElementSpacing = 2 3 4", "DistanceUnits = cm"], 10),
    (".mha", ["ElementSpacing = 2 3 4", "DistanceUnits = ?"], 1),
]


@pytest.mark.parametrize(("ending", "lines", "unit"), UNITS)
def test_lengths_in_another_unit_are_converted_to_mm(tmp_path, ending, lines, unit):
    """ITK takes lengths in any unit for mm, and a distance would be wrong a thousandfold."""
    path = write(tmp_path / f"a{ending}", [*lines, *(["encoding: raw"] if ending == ".nrrd" else [])], RAW)
    _, geometry, _ = reading.read_channels([str(path)], 3)
    np.testing.assert_allclose(sorted(geometry.own_spacing_mm), [2 * unit, 3 * unit, 4 * unit])


@pytest.mark.parametrize(
    ("ending", "line", "named"),
    [
        (".nrrd", 'units: "mm" "um" "mm"', "mm, um"),
        (".nrrd", 'units: "mm" "mm" "parsec"', "mm, parsec"),
        (".mha", "DistanceUnits = ell", "ell"),
    ],
)
def test_units_that_differ_or_are_unknown_are_refused(tmp_path, ending, line, named):
    lines = ["spacings: 2 3 4", "encoding: raw"] if ending == ".nrrd" else ["ElementSpacing = 2 3 4"]
    path = write(tmp_path / f"a{ending}", [*lines, line], RAW)
    with pytest.raises(BadCaseError, match=rf"a\{ending} gives lengths in {named}; one unit is needed, of mm, "):
        reading.open_image(str(path))


def test_a_unit_of_channels_is_no_length(tmp_path):
    lines = ["kinds: vector domain domain domain", "spacings: nan 2 3 4", 'units: "s" "um" "um" "um"', "encoding: raw"]
    _, geometry, _ = reading.read_channels([str(write(tmp_path / "a.nrrd", lines, RAW, size="2 4 5 3"))], 3)
    np.testing.assert_allclose(sorted(geometry.own_spacing_mm), [2e-3, 3e-3, 4e-3])


def test_a_picture_without_a_pixel_size_has_no_directions_to_guess(tmp_path):
    for path in (
        write(tmp_path / "a.nrrd", ["encoding: raw"], RAW, size="12 10"),
        write(tmp_path / "a.mha", [], RAW, size="12 10"),
    ):
        voxels, _, (told,) = reading.read_channels([str(path)], 2)
        assert UNSIZED in told
        np.testing.assert_array_equal(voxels[..., 0], STORED.reshape(10, 12).T)


@pytest.mark.parametrize(
    ("lines", "size", "axes"),
    [
        (["spacings: nan 3 4"], "4 5 6", "along 0 "),
        (["space: LPS", "space directions: (2,0,0) none (nan,nan,nan)"], "4 5 6", "along 1, 2 "),
        (["kinds: domain domain domain list", "spacings: 2 3 nan nan"], "4 5 3 2", "along 2 "),
        (["kinds: vector domain domain domain", "spacings: nan 2 3 4"], "2 4 5 3", None),
        (["spacings: 2 3 nan"], "12 10 1", None),
    ],
)
def test_sizes_along_some_axes_alone_are_refused_unless_the_other_is_one_voxel(tmp_path, lines, size, axes):
    path = write(tmp_path / "a.nrrd", ["encoding: raw", *lines], RAW, size=size)
    if axes is None:
        assert not any(UNSIZED in text for text in reading.read_channels([str(path)], 3)[2])
        return
    with pytest.raises(BadCaseError, match=rf"a\.nrrd gives the distances .* and not {axes}"):
        reading.open_image(str(path))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_label_maps_without_a_grid_lie_on_images_and_references_with_and_without_one(make_task, tmp_path, ending):
    lines = ["encoding: raw"] if ending == ".nrrd" else []
    bare = write(tmp_path / f"bare{ending}", lines, RAW)
    image = sitk.GetImageFromArray(STORED)
    image.SetSpacing((0.5, 2.0, 3.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    for path in (bare, tmp_path / "image.nii.gz"):
        voxels, geometry, _ = reading.read_channels([str(path)], 3)
        label, affine, _ = reading.read_label(str(bare), like=geometry.canonical_affine(), image=str(path))
        np.testing.assert_array_equal(label, voxels[..., 0])
        np.testing.assert_allclose(affine, geometry.canonical_affine())
    reference, affine, _ = reading.read_label(str(bare))
    np.testing.assert_array_equal(reading.read_label(str(bare), like=affine)[0], reference)
    _, geometry = data.read_image(bare, task=make_task("unused", normalization="none"), ndim=3)
    data.write_prediction(reference, geometry, tmp_path / f"out{ending}")
    predicted, where, _ = reading.read_label(str(tmp_path / f"out{ending}"), like=affine)
    np.testing.assert_array_equal(predicted, reference)
    np.testing.assert_allclose(where, affine)


def test_a_file_in_the_folder_of_the_process_is_no_part_of_itself(tmp_path, monkeypatch):
    write(tmp_path / "a.mha", ["CompressedData = True"], PACKED)
    monkeypatch.chdir(tmp_path)
    assert table.with_parts(["./a.mha"]) == ["./a.mha"]
    np.testing.assert_array_equal(stored_in("./a.mha"), STORED.transpose())
