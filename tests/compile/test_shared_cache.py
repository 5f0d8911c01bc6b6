# SPDX-License-Identifier: Apache-2.0
"""Builds with a shared cache: an S3-compatible server on this machine, and the faults that it may have."""

from __future__ import annotations

import http.client
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_catalog as toys
from typer.testing import CliRunner

from warpsmith.cli.app import app

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")
fsspec = pytest.importorskip("fsspec")
sys.path.append(str(Path(__file__).parents[1] / "unit"))
faults = pytest.importorskip("faulty_cache")
NUMBER = 3  # cubins in the toy catalog for 12x


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with the bucket ``bucket``; the standard variables of AWS point to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    made = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    connection = http.client.HTTPConnection(host, port)
    connection.request("POST", "/moto-api/reset")  # servers of one process share their buckets
    assert connection.getresponse().status == 200
    bucket().mkdir("bucket")
    yield made
    made.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def faulty() -> Iterator[str]:
    with faults.faulty() as url:
        yield url


def bucket() -> Any:
    return fsspec.filesystem("s3", use_listings_cache=False)


def build(machine: Path, *options: str) -> tuple[dict[str, Any], str, dict[str, bytes]]:
    """Build the toys on a machine, that is with a local cache of its own: the JSON, what was said, and the bundle."""
    out = machine / "out"
    with pytest.MonkeyPatch.context() as patch, toys.installed(), warnings.catch_warnings():
        patch.setenv("WARPSMITH_CACHE_DIR", str(machine / "cache"))
        patch.setattr("warpsmith.cli.build.CATALOG", toys.CATALOG)
        result = CliRunner().invoke(app, ["build", "--arch", "12x", "--out", str(out), "--json", *options])
    assert result.exit_code == 0, result.output
    tree = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    return json.loads(result.stdout)["build"], result.stderr, tree


def warned(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("warning")]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a build without any shared cache writes."""
    return build(tmp_path_factory.mktemp("alone"))[2]


def test_what_one_machine_compiled_another_takes_from_s3(
    tmp_path: Path, server: Any, expected: dict[str, bytes]
) -> None:
    first, said, tree = build(tmp_path / "one", "--cache", "s3://bucket/kernels")
    assert (first["compiled"], warned(said), tree) == (NUMBER, [], expected)
    assert len(bucket().ls("bucket/kernels")) == NUMBER
    second, said, tree = build(tmp_path / "two", "--cache", "s3://bucket/kernels")
    assert (second["cached"], warned(said), tree) == (NUMBER, [], expected)
    server.stop()
    third, said, tree = build(tmp_path / "two", "--cache", "s3://bucket/kernels")
    assert (third["cached"], warned(said), tree) == (NUMBER, [], expected)  # its copies: nobody is asked


@pytest.mark.usefixtures("server")
def test_what_a_machine_compiled_before_it_knew_the_cache_is_shared(tmp_path: Path, expected: dict[str, bytes]) -> None:
    build(tmp_path / "one")
    known, said, tree = build(tmp_path / "one", "--cache", "s3://bucket/kernels")
    assert (known["cached"], warned(said), tree) == (NUMBER, [], expected)
    other, said, tree = build(tmp_path / "two", "--cache", "s3://bucket/kernels")
    assert (other["cached"], warned(said), tree) == (NUMBER, [], expected)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("harm", ["truncated", "emptied", "flipped", "another"])
def test_damaged_objects_are_reported_compiled_again_and_mended(
    tmp_path: Path, expected: dict[str, bytes], harm: str
) -> None:
    build(tmp_path / "one", "--cache", "s3://bucket")
    files = bucket()
    one, two, _ = files.ls("bucket")
    good = files.cat_file(one)
    flipped = good[:-9] + bytes([good[-9] ^ 4]) + good[-8:]
    bad = {"truncated": good[:999], "emptied": b"", "flipped": flipped, "another": files.cat_file(two)}[harm]
    files.pipe_file(one, bad)
    made, said, tree = build(tmp_path / "two", "--cache", "s3://bucket")
    assert (made["compiled"], tree) == (1, expected)
    assert len(warned(said)) == 1
    assert f"shared compile cache entry {one.split('/')[1].removesuffix('.entry')}" in said
    assert build(tmp_path / "three", "--cache", "s3://bucket")[0]["cached"] == NUMBER


@pytest.mark.usefixtures("server")
def test_a_release_reads_nothing_that_others_compiled(tmp_path: Path, expected: dict[str, bytes]) -> None:
    build(tmp_path / "one", "--cache", "s3://bucket")
    assert build(tmp_path / "two", "--cache", "s3://bucket")[0]["cached"] == NUMBER  # now it has copies
    made, said, tree = build(tmp_path / "two", "--cache", "s3://bucket", "--release")
    assert (made["compiled"], warned(said), tree) == (NUMBER, [], expected)
    assert build(tmp_path / "two", "--cache", "s3://bucket", "--release")[0]["cached"] == NUMBER  # its own


def test_a_server_that_is_not_there_costs_one_warning(tmp_path: Path, server: Any, expected: dict[str, bytes]) -> None:
    server.stop()
    start = time.monotonic()
    made, said, tree = build(tmp_path, "--cache", "s3://bucket")
    assert (made["compiled"], tree) == (NUMBER, expected)
    assert len(warned(said)) == 1
    assert "the shared compile cache is not used for the rest of this build" in said
    assert time.monotonic() - start < 25


@pytest.mark.usefixtures("server")
def test_a_bucket_that_is_not_there_costs_one_warning(tmp_path: Path, expected: dict[str, bytes]) -> None:
    made, said, tree = build(tmp_path, "--cache", "s3://no-such-bucket/kernels")
    assert (made["compiled"], tree) == (NUMBER, expected)
    assert len(warned(said)) == 1
    assert "cannot be written" in said
    assert "bucket does not exist" in said


@pytest.mark.parametrize("fault", ["down", "nonsense", "read_only", "full"])
def test_no_fault_of_the_cache_changes_a_build(
    tmp_path: Path, faulty: str, expected: dict[str, bytes], fault: str
) -> None:
    faults.faults.append(getattr(faults, fault))
    made, said, tree = build(tmp_path, "--cache", faulty)
    assert (made["compiled"], tree) == (NUMBER, expected)
    assert len(warned(said)) == 1


@pytest.mark.parametrize("fault", ["truncates", "empties", "flips", "exchanges"])
def test_no_damage_by_the_cache_changes_a_build(
    tmp_path: Path, faulty: str, expected: dict[str, bytes], fault: str
) -> None:
    build(tmp_path / "one", "--cache", faulty)
    faults.faults.append(getattr(faults, fault))
    made, said, tree = build(tmp_path / "two", "--cache", faulty)
    assert tree == expected
    assert made["compiled"] == len(warned(said)) >= NUMBER - 1  # exchanged entries: the first is itself


@pytest.mark.parametrize("url", ["nothing://x", "relative", ""])
def test_what_is_no_url_is_bad_usage(tmp_path: Path, url: str) -> None:
    result = CliRunner().invoke(app, ["build", "--arch", "12x", "--out", str(tmp_path), "--cache", url or "://"])
    assert result.exit_code == 2
    assert "cache" in result.stderr or "absolute" in result.stderr
