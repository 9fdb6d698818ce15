"""A secret in every setting that takes a URL: nothing that is written, printed or sent holds it, and runs still connect."""

import base64
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tunalab.cli import main
from tunalab.records.record import read_record
from tunalab.settings.loading import config_hash, from_plain, load_config, to_plain
from tunalab.settings.schema import SETTINGS, RunConfig

SECRET = "s3cr3tS3cr3t"
FORMS = (
    *(f"https://me:{SECRET}@host/x", f"https://{SECRET}@host/x.tar", f"mysql+pymysql://me:{SECRET}@host/x", f"me:{SECRET}@host:1"),
    *(f"https://host/x?token={SECRET}", f"https://host/x?X-Amz-Signature={SECRET}&X-Amz-Date=1"),
    f"s3://key:{SECRET}/{SECRET}@bucket/x",
)
PLAIN_URLS = ("https://host/x.tar?sp=1", "hf://datasets/a/b@main/*.parquet", "/data/me@work/{00..11}.tar")
CHOSEN = {"experiment", "variant"}  # names of files


# Every setting that is a text or a list of texts; users' names are ``mine``.
KEYS = [
    (key.replace(".NAME.", ".mine."), one.default)
    for key, one in SETTINGS.items()
    if one.type in (str, list[str]) and key not in CHOSEN
]


def planted(form: str) -> dict[str, Any]:
    """The plain form of a configuration with the URL in every text. Choices and sizes are not checked here."""
    plain = to_plain(RunConfig())
    for key, value in KEYS:
        node = plain
        *path, last = key.split(".")
        for name in path:
            node = node.setdefault(name, {})
        node[last] = [form, form] if isinstance(value, list) else form
    return plain


def assert_clean(*texts: str | bytes) -> None:
    for text in texts:
        text = text if isinstance(text, str) else text.decode("utf-8", errors="replace")
        for shape in {SECRET, quote(SECRET), base64.b64encode(f"me:{SECRET}".encode()).decode()}:
            assert shape not in text, text[max(0, text.index(shape) - 200) :][:400]


def everything_below(folder: Path) -> Iterator[bytes]:
    """Names and contents of all files, PNG's compressed texts included."""
    for path in folder.rglob("*"):
        yield str(path).encode()
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            yield data
            for at in (index for index in range(len(data)) if data.startswith((b"zTXt", b"iTXt"), index)):
                yield zlib.decompressobj().decompress(data[data.find(b"\x78", at) :]) if b"\x78" in data[at:] else b""


@pytest.mark.parametrize("form", FORMS)
def test_a_configuration_is_kept_without_them(form: str) -> None:
    assert {"tracking.uri", "start.checkpoint", "data.webdataset.mine.urls", "decoder.pretrained"} <= {key for key, _ in KEYS}
    from tunalab.redaction import redacted_settings
    from tunalab.tracking.client import parameters

    kept = redacted_settings(planted(form))
    assert_clean(json.dumps(kept), json.dumps(parameters(kept)))
    assert len([key for key, _ in KEYS]) > 25 and "host" in json.dumps(kept) or "bucket" in json.dumps(kept)


def test_a_new_password_is_no_other_run_and_old_hashes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(url: str) -> str:
        config = RunConfig()
        plain = to_plain(config)
        plain["stages"] = {"a": {"mix": {"scenes/vqa": 1.0}}}
        plain["data"]["webdataset"] = {"mine": {"urls": [url]}}
        return config_hash(from_plain(plain))

    assert of("https://a:one@host/x.tar?sig=1&se=2") == of("https://b:two@host/x.tar?sig=3&se=4")
    assert of("https://host/x.tar?sp=1") != of("https://host/x.tar?sp=2")
    plain = [of(url) for url in PLAIN_URLS]
    monkeypatch.setattr("tunalab.settings.loading.redacted_settings", lambda node: node)
    assert plain == [
        of(url) for url in ("https://host/x.tar?sp=1", "hf://datasets/a/b@main/*.parquet", "/data/me@work/{00..11}.tar")
    ]


@pytest.fixture
def small(checkout: Path) -> list[str]:
    """Settings with a secret each, for commands that need not reach what they name."""
    import platform

    import mlflow  # noqa: F401 (both start processes when they are first used; later those are stand-ins)

    assert platform.uname().processor is not None
    (checkout / "sweeps" / "small.yaml").write_text(
        "experiment: smoke\nvariants: [tuna2]\nseeds: [0]\nfactors: {objective.masking.ratio: [0.0, 0.5]}\n"
        f"arms: {{a: {{data.text.arm.urls: ['https://host/arm?token={SECRET}']}}}}\n",
        encoding="utf-8",
    )
    return [
        f"tracking.uri=https://me:{SECRET}@127.0.0.1:9/x",
        f"data.webdataset.web.urls=[https://me:{SECRET}@host/x.tar,https://host/y.tar?token={SECRET}]",
        f"data.manifests.mine.path=https://host/m.jsonl?sig={SECRET}&se=1",
        f"data.manifests.mine.root=s3://key:{SECRET}@bucket/images",
    ]


@pytest.mark.slow
def test_runs_and_their_sweep_leave_none(
    checkout: Path,
    small: list[str],
    trained: list[Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two runs of a sweep, then whatever reads them; a server that is away takes part in every message."""
    monkeypatch.delenv("TUNALAB_FULL_SETTINGS", raising=False)
    monkeypatch.setenv("TUNALAB_FULL_SETTINGS", "[]")  # put back afterwards
    connected: list[str] = []
    from tunalab.tracking import client

    original = client.connect
    monkeypatch.setattr(client, "_warned", set())

    def connect(uri: str) -> Any:
        connected.append(uri)
        return original(uri)

    for module in ("tracker", "sync", "dashboard"):
        monkeypatch.setattr(f"tunalab.tracking.{module}.connect", connect)
    assert main(["sweep", "small", "--parallel", "1", *small]) == 0 and len(trained) == 2
    assert set(connected) == {f"https://me:{SECRET}@127.0.0.1:9/x"}
    folder = trained[0].parent
    config = read_record(trained[0] / "record.json").config
    assert config["data"]["webdataset"]["web"]["urls"] == ["https://***@host/x.tar", "https://host/y.tar?token=***"]
    for call in (
        ["sweep", "small", *small],  # finished: the same hashes
        ["sweep", "small", "--status", "--once", *small],
        ["sweep", "small", "--dry-run", *small],
        ["publish", "small", "--records", "published", *small],
        ["report", "--markdown", "--records", "published"],
        ["table", "--records", "published"],
        ["diff", str(trained[0]), str(trained[1])],
        ["diff", "--json", str(trained[0]), str(trained[1])],
        ["plan", "--sweep", "small", *small],
        ["train", "--experiment", "smoke", f"tracking.url=https://me:{SECRET}@host"],
        ["train", "--experiment", "smoke", f"data.image_size=https://me:{SECRET}@host"],
        ["train", "--experiment", "smoke", f"start.checkpoint=s3://key:{SECRET}@bucket/x"],
        ["train", "--experiment", "smoke", f"decoder.pretrained=https://me:{SECRET}@host/model"],
        ["train", "--experiment", "smoke", "--config", f"https://me:{SECRET}@host/config.yaml"],
        ["evaluate", f"https://me:{SECRET}@host/run"],
        ["dashboard", "--port", f"https://me:{SECRET}@host"],
        ["mlflow-sync", "--uri", f"https://me:{SECRET}@127.0.0.1:9"],
    ):
        with suppress(SystemExit):  # of the parser of arguments
            main(call)
    out, err = capfd.readouterr()
    assert_clean(out, err, *everything_below(checkout / "runs"), *everything_below(checkout / "published"))
    assert (
        (folder / "accuracy.md")
        .read_text(encoding="utf-8")
        .startswith("<!-- made by: tunalab sweep small tracking.uri=https://***@")
    )
    assert "MLflow at https://127.0.0.1:9/x failed" in err


def test_a_replay_gets_them_again(
    checkout: Path,
    trained: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A saved configuration lacks them: the setting is given once more, whole; what is another setting stays refused."""
    url = f"https://me:{SECRET}@host/x.tar"
    assert main(["train", "--experiment", "smoke", f"data.webdataset.web.urls=[{url}]", "tracking.enabled=false"]) == 0
    saved = str(trained[0] / "config.yaml")
    assert_clean(Path(saved).read_text(encoding="utf-8"))
    observed: list[RunConfig] = []
    monkeypatch.setattr("tunalab.training.preflight.open_data", observed.append)
    assert main(["train", "--config", saved, f"data.webdataset.web.urls=[{url}]"]) == 0
    assert (
        observed[0].data.webdataset["web"].urls == [url]
        and read_record(trained[1] / "record.json").run.config_hash in trained[1].name
    )
    for other in ("seed=1", "data.webdataset.web.urls=[https://host/y.tar]", "data.webdataset.web.urls=[https://***@host/x.tar]"):
        assert main(["train", "--config", saved, other]) == 2
        assert f"leave out '{other}'" in capsys.readouterr().err


def test_a_source_without_its_credentials_is_one_line() -> None:
    from tunalab.data.sources import open_sources
    from tunalab.errors import UserError

    config = load_config(Path(__file__).parents[2] / "experiments" / "smoke.yaml", None, [])
    plain = to_plain(config)
    plain["data"]["webdataset"] = {"web": {"urls": ["https://***@host/x.tar"]}}
    plain["stages"]["pretrain"]["mix"] = {"webdataset/web": 1.0}
    with pytest.raises(UserError, match=r"data.webdataset.web.urls: these settings were saved without credentials: give .* again"):
        open_sources(from_plain(plain))


def test_the_judge_keeps_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither of its URL nor its key, whatever the server says."""
    import threading

    from tests.interop.judging.test_judge_comparison import Server, images

    from tunalab.inference.images import save_image

    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("a", "b"):
            save_image(tmp_path / name / "0.png", images(0, 0)[0], {"prompt": "p"})
        environment = {"TUNALAB_JUDGE_URL": f"http://127.0.0.1:{server.server_port}/v1?token={SECRET}", "TUNALAB_JUDGE_MODEL": "m"}
        environment |= {"TUNALAB_JUDGE_KEY": f"sk-{SECRET}"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            call = ["judge", str(tmp_path / "a"), str(tmp_path / "b"), "--question", "quality", "--out", str(tmp_path / "out")]
            assert main(call) == 0
            server.judge = lambda text, pictures: (
                401,
                {"error": {"message": f"Incorrect key sk-{SECRET} of {server.url}?token={SECRET}"}},
            )
            assert main([*call[:-1], str(tmp_path / "other")]) == 2
        server.shutdown()
    out, err = capfd.readouterr()
    assert "Incorrect key" in err
    assert_clean(out, err, *everything_below(tmp_path))


def test_a_command_that_breaks_shows_none(tmp_path: Path) -> None:
    """An error that nobody foresaw has a traceback, whose texts are those of a library."""
    code = (
        "import sys, tunalab.cli.services as services\nfrom tunalab.cli import main\n"
        "def broken(*_):\n    raise RuntimeError('cannot parse ' + sys.argv[1])\n"
        "services.start_study = broken\nmain(['init', 'x'])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    url = f"postgresql://me:{SECRET}@host/x"
    ended = subprocess.run([sys.executable, "-c", code, url], capture_output=True, encoding="utf-8", env=environment, cwd=tmp_path)
    assert ended.returncode == 1 and "RuntimeError: cannot parse postgresql://***@host/x" in ended.stderr
    assert_clean(ended.stderr, ended.stdout)
