"""Jobs whose model lies in S3 or whose artifact goes there, against moto's HTTP server."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from lisiere.cli import main
from lisiere.errors import ConfigError, Permanent, Rejected, Retryable
from lisiere.models import open_package
from lisiere_compile import s3
from lisiere_compile.artifact import archive_of
from lisiere_compile.source import unpack
from lisiere_compile.target import host_name

from .conftest import Aws, dense, make_job, write_package


def test_a_job_reads_from_s3_and_writes_there(aws: Aws, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    package = write_package(tmp_path / "package", dense())
    (package / "model.yaml").unlink()
    aws.s3.upload_file(str(package / "m.onnx"), aws.bucket, "in/m.onnx")
    job = make_job(f"s3://{aws.bucket}/in/m.onnx", S3OutputLocation=f"s3://{aws.bucket}/out/")
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert main(["compile", str(tmp_path / "job.json"), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["artifact"] is None
    assert report["archive"] == f"s3://{aws.bucket}/out/m-{host_name()}.tar.gz"
    stages = list(report["stages"])
    assert (stages[0], stages[-1]) == ("download", "upload")
    got = s3.download(report["archive"], tmp_path / "got", "$")
    unpack(got, tmp_path / "unpacked")
    assert open_package(tmp_path / "unpacked").manifest.name == "m"
    # In place of the job's location, a folder; and the same bytes.
    assert main(["compile", str(tmp_path / "job.json"), "--output", str(tmp_path / "o"), "--json"]) == 0
    folder = Path(json.loads(capfd.readouterr().out)["artifact"])
    assert archive_of(folder).read_bytes() == got.read_bytes()


def test_what_is_not_there_is_named_with_the_code(aws: Aws, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=rf"s3://{aws.bucket}/no could not be read: AWS answered NoSuchKey"):
        s3.download(f"s3://{aws.bucket}/no", tmp_path, "$")
    with pytest.raises(Rejected, match=r"s3://nowhere/no could not be read: AWS answered NoSuchBucket"):
        s3.download("s3://nowhere/no", tmp_path, "$")
    (tmp_path / "f").write_bytes(b"f")
    with pytest.raises(Rejected, match=r"s3://nowhere/a/f could not be written: AWS answered NoSuchBucket"):
        s3.upload(tmp_path / "f", "s3://nowhere/a", "$")


def test_more_than_the_bound_is_not_kept(aws: Aws, tmp_path: Path) -> None:
    aws.s3.put_object(Bucket=aws.bucket, Key="big", Body=bytes(3000))
    assert s3.download(f"s3://{aws.bucket}/big", tmp_path / "a", "$", most=3000).stat().st_size == 3000
    with pytest.raises(Rejected, match="larger than 2999 bytes"):
        s3.download(f"s3://{aws.bucket}/big", tmp_path / "b", "$", most=2999)
    assert not list((tmp_path / "b").iterdir())


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://bucket", "s3://bucket/folder/"])
def test_a_uri_without_bucket_or_object_is_a_configuration_error(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        s3.download(uri, tmp_path, "$.InputConfig.S3Uri")
    assert caught.value.path == "$.InputConfig.S3Uri"


def test_an_endpoint_that_is_away(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    with pytest.raises(Retryable, match=r"s3://b/k could not be read: AWS was not reached"):
        s3.download("s3://b/k", tmp_path, "$")


def test_no_credentials_are_a_configuration_error(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="no complete credentials"):
        s3.download("s3://b/k", tmp_path, "$")


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "boto3":
            raise ModuleNotFoundError(name, name=name)
        return whole(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Permanent, match=r"lisiere\[cloud\]"):
        s3.client("s3")
