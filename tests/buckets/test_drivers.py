"""A mirror with the real drivers, against services on this machine whose connection is cut in the middle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxseg.buckets import address, lease, states
from jaxseg.buckets.mirror import mirrored
from jaxseg.buckets.objects import BucketError, insist, open_objects
from jaxseg.buckets.reading import local_copy
from jaxseg.types import UserError
from tests.buckets.emulators import BUCKET, Service, emulated
from tests.buckets.faults import QUICK, put, tree
from tests.buckets.test_bucket_mirror import until
from tests.buckets.test_states import STATES, latest

TIMING = dataclasses.replace(QUICK, renew=1.0, begin=60.0, patience=120.0, give_up=20.0)


@pytest.fixture(params=["s3", "gs"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Service]]:
    with emulated(request.param) as found:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield request.param, found


def test_every_content_arrives_as_it_was_sent(service, tmp_path: Path):
    objects = open_objects(address.parse(f"{service[0]}://{BUCKET}/contents"))
    contents = [b"", b"\r", b"\n", b"\r\n", b"\n\r", b"\r\r", b"\r\nabc", b"a,b\r\n1,2\r\n", bytes(range(256))]
    contents += [b"content" + bytes([last]) for last in range(32)]
    contents.append(b"\n" * 300_000 + b"\r")  # more than one block of a driver
    (tmp_path / "read").mkdir()
    for number, content in enumerate(contents):
        path = tmp_path / str(number)
        path.write_bytes(content)
        objects.upload(path, path.name)
        assert objects.download(path.name, tmp_path / "read" / path.name)
        assert (tmp_path / "read" / path.name).read_bytes() == content, content[-10:]
    assert objects.sizes() == {str(number): len(content) for number, content in enumerate(contents)}


def test_content_that_a_service_changes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the driver's one-part message, which the test above shows to be avoided."""
    with emulated("gs") as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        objects = open_objects(address.parse(f"gs://{BUCKET}/contents"))
        (tmp_path / "a").write_bytes(b"content\n--==0==--")  # what the driver itself puts between parts
        with pytest.raises(BucketError, match="MD5"):
            objects.upload(tmp_path / "a", "a")


def test_a_connection_that_drops_loses_nothing_and_a_missing_bucket_is_named(service, tmp_path: Path):
    scheme, emulator = service
    place, said = f"{scheme}://{BUCKET}/runs/größe 1%", []
    objects = open_objects(address.parse(place))
    with mirrored(objects, tmp_path / "work", tmp_path, tell=said.append, timing=TIMING) as held:
        put(tmp_path / "work", STATES[0])
        held.flush()
        with pytest.raises(UserError, match=r"in use by process \d+"):
            lease.take(open_objects(address.parse(place)), "another", tell=said.append)
        emulator.connection.cut()
        put(tmp_path / "work", STATES[1])
        until(lambda: any("the study goes on, trying again" in line for line in said), seconds=120)
        emulator.connection.mend()
        put(tmp_path / "work", STATES[2])
        held.flush()
        assert any("answers again" in line for line in said)
        assert tree(local_copy(place, scratch=tmp_path / "reader")) == STATES[2]
    shown = {"report.html", "figures/a.svg"}
    assert objects.names() == states.read(objects).objects | shown | {latest(objects)}
    assert objects.read("report.html") == STATES[2]["report.html"]

    elsewhere = open_objects(address.parse(f"{scheme}://no-such-bucket/x"))
    with pytest.raises(UserError, match=r"check the name of the bucket, and the credentials"):
        insist(lambda: elsewhere.write("a", b""), seconds=0, tell=said.append)
