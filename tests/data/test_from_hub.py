"""A name on the Hub where there is no Hub: one line within seconds, and what lies in the local cache serves."""

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from tunalab.data import pretrained
from tunalab.data.pretrained import from_hub
from tunalab.data.tokenizer import pretrained_tokenizer
from tunalab.errors import UserError
from tunalab.frontends.encoder import pretrained_encoder
from tunalab.frontends.vae import pretrained_vae
from tunalab.model.decoder import read_decoder
from tunalab.settings.schema import DecoderConfig

PARTS: dict[str, Callable[[], object]] = {
    "tokenizer": lambda: pretrained_tokenizer("someone/tokenizer", "decoder.tokenizer"),
    "decoder": lambda: read_decoder(DecoderConfig(pretrained="someone/decoder"), 100, "sdpa"),
    "timm": lambda: pretrained_encoder("vit_so400m_patch16_siglip_512.v2_webli", True),
    "timm on the Hub": lambda: pretrained_encoder("hf-hub:someone/vit", True),
    "transformers": lambda: pretrained_encoder("transformers:someone/siglip", True),
    "vae": lambda: pretrained_vae("someone/vae/inside"),
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(pretrained, "KEPT_SECONDS", 0.001)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("offline", [False, True])
def test_without_the_hub_a_name_is_one_line_within_seconds(part: str, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        PARTS[part]()
    assert time.monotonic() - began < 20, "imports of the libraries included"
    line = str(caught.value)
    assert "not in the local cache, and the Hub cannot be reached" in line and "\n" not in line
    assert offline is constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(("status", "reached"), [(200, True), (404, True), (503, False), (407, False)])
def test_a_server_is_the_hub_unless_a_proxy_says_no(status: int, reached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(pretrained, "ANSWER_SECONDS", 10.0)
    try:
        if reached:
            with from_hub("a.setting=x/y", "x/y"):
                assert not constants.HF_HUB_OFFLINE
            with pytest.raises(OSError if status == 200 else UserError, match="nothing"), from_hub("a=x/y", "x/y"):
                raise OSError("nothing")
        else:
            with (
                pytest.raises(UserError, match="a.setting=x/y is no folder here and not in the local cache"),
                from_hub("a.setting=x/y", "x/y"),
            ):
                pass
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_in_the_cache_serves_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "models--x--y" / "snapshots" / "0").mkdir(parents=True)
    with from_hub("a.setting=x/y", "x/y"):
        assert constants.HF_HUB_OFFLINE, "the client asks nobody"
    with pytest.raises(UserError, match="the Hub cannot be reached.*: half of it"), from_hub("a.setting=x/y", "x/y"):
        raise OSError("half of it")
    assert not constants.HF_HUB_OFFLINE
