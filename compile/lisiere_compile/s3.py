"""S3: what a job reads from there and what it puts there, through boto3 and with its configuration.

Errors name the bucket, the key and the code that AWS gives, and never a credential.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from lisiere.errors import ConfigError, Permanent, Rejected, Retryable
from lisiere_compile.source import ARCHIVE_MAX_BYTES

ATTEMPTS = 5  # of one call, by boto3, with backoff
_CHUNK = 1 << 20


def in_s3(uri: str) -> bool:
    """Whether a URI of a job lies in S3."""
    return uri.startswith("s3://")


def client(service: str) -> Any:
    """Return boto3's client of a service, with the user's own configuration.

    Raises:
        Permanent: boto3 is not installed.
        ConfigError: it has no region, or a configuration that it cannot read.
    """
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError as error:
        raise Permanent(
            f"S3 and SageMaker need {error.name}, which is not installed: `pip install lisiere[cloud]`."
        ) from error
    with errors(f"A client of {service}"):
        # A session of its own: the default one would keep the first credentials that it finds.
        session: Any = boto3.Session()
        return session.client(service, config=Config(retries={"mode": "standard", "max_attempts": ATTEMPTS}))


@contextmanager
def errors(what: str) -> Iterator[None]:
    """Turn what boto3 raises in the body into errors that begin with `what`.

    Raises:
        ConfigError: it has no credentials or region, or the request is not one.
        Retryable: AWS cannot be reached.
        Rejected: AWS refuses, with its code.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        HTTPClientError,
        NoCredentialsError,
        NoRegionError,
        ParamValidationError,
        PartialCredentialsError,
    )
    from botocore.exceptions import ConnectionError as EndpointError

    try:
        yield
    except ClientError as error:
        raise Rejected(f"{what}: {_answer(error)}.") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise ConfigError(
            f"{what}: boto3 found no complete credentials. Run `aws configure`, or set AWS_PROFILE."
        ) from error
    except NoRegionError as error:
        raise ConfigError(f"{what}: boto3 knows no region. Set AWS_DEFAULT_REGION.") from error
    except ParamValidationError as error:
        raise ConfigError(f"{what}: {error}") from error
    except (HTTPClientError, EndpointError) as error:
        raise Retryable(f"{what}: AWS was not reached: {type(error).__name__}.") from error
    except (BotoCoreError, Boto3Error) as error:
        # The upload wraps AWS's answer in an error whose text is that answer.
        cause = error.__context__
        told = _answer(cause) if isinstance(cause, ClientError) else f"{type(error).__name__} in boto3"
        raise Rejected(f"{what}: {told}.") from error


def _answer(error: Any) -> str:
    """Return what AWS says in a ClientError: its code, such as NoSuchBucket, and its words."""
    told = error.response.get("Error", {})
    code, words = str(told.get("Code", "an error")), str(told.get("Message", "")).strip()
    return f"AWS answered {code}: {words.rstrip('.')}" if words and words != code else f"AWS answered {code}"


def split(uri: str, where: str) -> tuple[str, str]:
    """Return the bucket and the key of an `s3://` URI.

    Raises:
        ConfigError: it has no bucket.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigError(f"{uri} names no bucket.", where)
    return bucket, key


def download(uri: str, folder: Path, where: str, most: int = ARCHIVE_MAX_BYTES) -> Path:
    """Copy an object into a folder under its own name, and return the file.

    Raises:
        ConfigError: the URI names no object.
        Rejected: there is none, or more than `most` bytes come; nothing is kept then.
    """
    bucket, key = split(uri, where)
    name = PurePosixPath(key).name
    if not name or key.endswith("/"):
        raise ConfigError(f"{uri} names no object but a folder: give the model itself.", where)
    file = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    s3 = client("s3")
    with errors(f"{uri} could not be read"):
        body = s3.get_object(Bucket=bucket, Key=key)["Body"]
        written = 0
        with file.open("xb") as to:
            for chunk in body.iter_chunks(_CHUNK):
                written += len(chunk)
                if written > most:
                    break
                to.write(chunk)
    if written > most:
        file.unlink()
        raise Rejected(f"{uri} is larger than {most} bytes.")
    return file


def upload(file: Path, location: str, where: str) -> str:
    """Copy a file below a location, and return its URI. S3 shows it whole or not at all.

    Raises:
        Rejected: AWS refuses it.
    """
    bucket, prefix = split(location, where)
    key = "/".join(part for part in (prefix.rstrip("/"), file.name) if part)
    uri = f"s3://{bucket}/{key}"
    s3 = client("s3")
    with errors(f"{uri} could not be written"):
        s3.upload_file(str(file), bucket, key)
    return uri
