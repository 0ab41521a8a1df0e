"""From folders of images, TFDS stores or synthetic volumes to arrays that compiled code samples from.

`formats` lists and reads the cases, `volumes` handles single images and their grids, `prepared` puts every case on the
training grid and keeps it in a store, `splits` assigns cases to training, validation and test, and `patches` is what
the compiled step draws.
"""

from jaxseg.data.formats.files.writing import to_nifti, write_map, write_prediction
from jaxseg.data.formats.image_files import find_images, list_images, unread
from jaxseg.data.formats.references import References, case_geometries, open_references
from jaxseg.data.formats.sources import resolved
from jaxseg.data.patches.cohort import build_cohort, load_cohort, room_of
from jaxseg.data.patches.sampling import make_sample
from jaxseg.data.prepared.contact import case_table, is_shown_by, write_contact_sheet
from jaxseg.data.prepared.images import ImageWarning, image_problem, read_image, to_own_grid
from jaxseg.data.prepared.listing import ListedCase, Listing, list_cases
from jaxseg.data.prepared.prepare import open_prepared, prepare_task
from jaxseg.data.prepared.task import PreparedTask, PrepareReport, fit_intensity, load_case, load_cases
from jaxseg.data.splits import Split, held_out_groups, nested_subset, split_cases, with_split_warnings
from jaxseg.data.volumes.volume import Geometry

__all__ = [
    "Geometry",
    "ImageWarning",
    "ListedCase",
    "Listing",
    "PrepareReport",
    "PreparedTask",
    "References",
    "Split",
    "build_cohort",
    "case_geometries",
    "case_table",
    "find_images",
    "fit_intensity",
    "held_out_groups",
    "image_problem",
    "is_shown_by",
    "list_cases",
    "list_images",
    "load_case",
    "load_cases",
    "load_cohort",
    "make_sample",
    "nested_subset",
    "open_prepared",
    "open_references",
    "prepare_task",
    "read_image",
    "resolved",
    "room_of",
    "split_cases",
    "to_nifti",
    "to_own_grid",
    "unread",
    "with_split_warnings",
    "write_contact_sheet",
    "write_map",
    "write_prediction",
]
