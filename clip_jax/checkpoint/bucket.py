"""Whether a workdir in Google's store can be used, asked before a run does any work."""

from clip_jax.errors import UserError


def check(workdir: str) -> None:
    """Looks at the bucket of a gs:// workdir; nothing for others.

    Orbax reads the bucket's own properties, but only where there are checkpoints already: without
    the right to do so a run starts, and cannot go on.

    Raises:
        UserError: a package, credentials, the bucket or the right to look at it is missing.
    """
    if not workdir.startswith("gs://"):
        return
    name = workdir.removeprefix("gs://").partition("/")[0]
    try:
        from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.cloud import storage
    except ImportError as e:
        raise UserError(
            f"--workdir: {workdir}: needs the package gcsfs; pip install 'clip-jax-pretrain[gcs]'"
        ) from e
    try:
        # No project is needed to look at a bucket, and an account may have none.
        storage.Client(project="none").get_bucket(name)
    except DefaultCredentialsError as e:
        raise UserError(
            f"--workdir: {workdir}: there are no credentials for Google Cloud; give the VM a "
            "service account, or call gcloud auth application-default login"
        ) from e
    except NotFound as e:
        raise UserError(f"--workdir: {workdir}: there is no bucket '{name}'; create it") from e
    except Forbidden as e:
        raise UserError(
            f"--workdir: {workdir}: the account may not look at the bucket, which a restart needs "
            "(storage.buckets.get); give it roles/storage.legacyBucketReader too"
        ) from e
    except GoogleAuthError as e:
        raise UserError(
            f"--workdir: {workdir}: the credentials for Google Cloud do not hold ({_line(e)}); "
            "call gcloud auth application-default login again"
        ) from e
    except (GoogleAPIError, OSError) as e:
        raise UserError(
            f"--workdir: {workdir}: the bucket cannot be looked at ({_line(e)}); try again"
        ) from e


def _line(e: Exception) -> str:
    text = " ".join(str(e).split())
    return text if len(text) <= 150 else f"{text[:147]}..."
