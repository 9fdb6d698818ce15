"""Credentials are taken out of every text, and what has none stays as it is."""

import json
import logging
import subprocess
import sys
from itertools import product

import pytest

from tunalab.redaction import hand_over, hide_credentials, is_incomplete, redacted, redacted_settings, restored

USER_INFO = (
    "https://user:{}@host/path",
    "http://user:{}@host:5000",
    "https://{}@host/path",
    "https://:{}@host",
    "https://user:{}@[::1]:5000/x",
    "HTTPS://User:{}@Host/",
    "git+https://{}@github.com/a/b",
    "s3://AKIA:{}@bucket/train/{{000..127}}.tar",
    "gs://{}@bucket/*.tar",
    "ftp://user:{}@host/file",
    "postgresql://user:{}@db:5432/mlflow",
    "postgresql+psycopg2://user:{}@db/mlflow?sslmode=require",
    "mysql+pymysql://user:{}@db/mlflow",
    "sqlite+pysqlcipher://:{}@/file.db",
    "databricks://profile:{}@host",
    "simplecache::https://user:{}@host/x",
    "user:{}@host:5000",
    "//user:{}@host/x",
    r"https:\/\/user:{}@host\/path",
    "https://host/login?next=https%3A%2F%2Fuser%3A{}%40other",
)
QUERY = (
    *("token", "access_token", "api-key", "apikey", "key", "sig", "signature", "password", "pwd", "client_secret", "auth"),
    *("X-Amz-Signature", "x-amz-credential", "X-Amz-Security-Token", "X-Goog-Signature", "AWSAccessKeyId", "hf_token"),
)
SECRETS = ("s3cretS3cret", "p%40ss%2Fw%3Ard", "with+plus=and~dots.", "ünïcode")
NOT_ENCODED = ("p@ssw0rd", "wJalr/K7MDENG+b", "two words", "quo'te\"d", "a?b#c")
PLAIN = (
    "",
    "no URL at all, max tokens=8, a@b",
    "https://host/path?page=2&step_tokens=4&tokens=1",
    "http://localhost:5000/runs@latest/x:y@z",
    "http://[::1]:5000/x@y",
    "https://[::1]/x@y",
    "hf://datasets/org/set@main/train-*.parquet",
    "sqlite:///mlflow.db",
    "sqlite:////home/me@work/mlflow.db",
    "s3://bucket/train/{000..127}.tar",
    "file:///data/a:b@c/x",
    "https://host/file?sp=3&se=4&policy=5",
    "C:/Users/me@work/x.jsonl",
    "git@github.com:a/b",
    "timm:vit_tiny_patch16_224@weights/model.safetensors",
    "frontend.encoder=hf-hub:timm/vit@main",
    "[https://a:80/x,https://b/y@z]",
    "stages.pretrain.mix={scenes/caption: 1}",
)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", USER_INFO)
def test_user_info_goes(form: str, secret: str) -> None:
    url = form.format(secret)
    for text in (url, f"{url} cannot be reached", f"error: '{url}': no", json.dumps([url]), f"[https://h:80/x,{url}]", f"a={url}"):
        shown = redacted(text)
        assert secret not in shown and "***" in shown and redacted(shown) == shown
    assert is_incomplete(redacted(url)) or "%3A" in url or not url[:1].isalpha() or "://" not in url


@pytest.mark.parametrize(
    ("form", "secret"),
    [
        *product(("https://user:{}@host/path", "mysql+pymysql://user:{}@db/mlflow", "s3://key:{}@bucket/a.tar"), NOT_ENCODED),
        ("postgresql://user:{}@db/mlflow", "p@ss/w0rd"),  # elsewhere the host would end at this slash
    ],
)
def test_a_password_that_is_not_encoded(form: str, secret: str) -> None:
    """As a setting, whatever its letters are; in a message of one who knows the URL."""
    url = form.format(secret)
    shown = redacted_settings({"urls": [url]})["urls"][0]
    assert secret not in shown and shown.endswith(url.rpartition("@")[2]) and is_incomplete(shown)
    for part in (secret, url, secret.rpartition("@")[2]):
        assert secret.rpartition("@")[2] not in redacted(f"could not translate host name {part} to address", url)


@pytest.mark.parametrize("key", QUERY)
def test_values_of_secret_keys_go(key: str) -> None:
    for text in ("https://host/a?{0}={1}", "https://host/a.tar?page=2&{0}={1}&x=3#top", "with url: /a?x=1&amp;{0}={1} (404)"):
        shown = redacted(text.format(key, "s3cretS3cret"))
        assert "s3cret" not in shown and shown == text.format(key, "***")


def test_what_changes_with_a_signature_goes_with_it() -> None:
    azure = "https://a.blob.core.windows.net/c/x.tar?sv=2024-01-01&se=2026-01-01&sr=b&sp=r&sig=abc%3D"
    assert redacted(azure) == "https://a.blob.core.windows.net/c/x.tar?sv=***&se=***&sr=***&sp=***&sig=***"


def test_other_places_of_a_password() -> None:
    for text in ("Authorization: Bearer s3cretS3", "{'Authorization': 'Basic s3cretS3=='}", "host=h password=s3cretS3 user=u"):
        assert "s3cretS3" not in redacted(text)
    url = "https://user:s3cret%21@host?token=t0ken%2Bx"
    for quoted in ("s3cret!", "s3cret%21", "t0ken+x", "dXNlcjpzM2NyZXQh"):
        assert redacted(f"not allowed: {quoted}.", url) == "not allowed: ***."
    assert redacted("the latest test", "https://u:test@host") == "the latest ***"  # a short one is no part of a word


@pytest.mark.parametrize("text", PLAIN)
def test_what_has_no_credentials_stays(text: str) -> None:
    assert redacted(text) == text and redacted_settings({"a": [text, 1, None]}) == {"a": [text, 1, None]}
    assert not is_incomplete({"a": [text]})


def test_a_command_gets_its_settings_whole_without_showing_them() -> None:
    words = [
        "train",
        "seed=1",
        "tracking.uri=https://u:s3cretS3@h",
        "data.text.a.urls=[https://h/a?token=s3cretS3,s3://k:s3cretS3@b]",
    ]
    environment: dict[str, str] = {}
    shown = hand_over(words, environment)
    assert hand_over(words, environment) == shown and len(json.loads(environment["TUNALAB_FULL_SETTINGS"])) == 2
    assert "s3cretS3" not in " ".join(shown) and shown[:2] == words[:2]
    assert restored(shown, environment) == words and restored(shown, {}) == shown
    assert hand_over(["seed=1"], clean := {}) == ["seed=1"] and not clean


def test_logs_and_tracebacks_show_none() -> None:
    hide_credentials()
    record = logging.getLogRecordFactory()("x", logging.INFO, "f", 1, "GET %s: %d", ("https://u:s3cretS3@h", 3), None)
    assert record.getMessage() == "GET https://***@h: 3"
    code = (
        "import logging; from tunalab.redaction import hide_credentials; hide_credentials()\n"
        "logging.warning('at %s', 'https://u:s3cretS3@h')\nraise OSError('https://u:s3cretS3@h/x?token=s3cretS3')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and "s3cretS3" not in ended.stderr.replace(code, "")
    assert "at https://***@h" in ended.stderr and "OSError: https://***@h/x?token=***" in ended.stderr
