"""What Google's library raises about a bucket, in one line; the whole run is tests/train."""

import pytest

from clip_jax.checkpoint import bucket
from clip_jax.errors import UserError

storage = pytest.importorskip("google.cloud.storage")
auth = pytest.importorskip("google.auth.exceptions")
api = pytest.importorskip("google.api_core.exceptions")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (auth.DefaultCredentialsError("none found"), "there are no credentials for Google Cloud"),
        (
            auth.RefreshError("invalid_grant:\n expired"),
            r"do not hold \(invalid_grant: expired\)",
        ),
        (api.NotFound("404"), "there is no bucket 'b'; create it"),
        (api.Forbidden("403"), "storage.legacyBucketReader"),
        (api.ServiceUnavailable("x" * 500), r"cannot be looked at \(503 x+\.\.\.\); try again"),
        (ConnectionError("refused"), r"cannot be looked at \(refused\); try again"),
    ],
)
def test_errors_are_one_line(monkeypatch, error, words):
    def get_bucket(self, name):
        raise error

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")  # asks for no credentials
    monkeypatch.setattr(storage.Client, "get_bucket", get_bucket)
    with pytest.raises(UserError, match=rf"^--workdir: gs://b/run: .*{words}") as e:
        bucket.check("gs://b/run")
    assert "\n" not in str(e.value)


def test_an_account_without_a_project(monkeypatch):
    """Google's client wants one, though no bucket is made or listed."""
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    user = pytest.importorskip("google.auth.credentials").AnonymousCredentials()
    monkeypatch.setattr("google.auth.default", lambda *_, **__: (user, None))
    monkeypatch.setattr(storage.Client, "get_bucket", lambda self, name: None)
    with pytest.raises(OSError, match="Project was not passed"):
        storage.Client()
    bucket.check("gs://b/run")
