"""A server is asked as MLflow's own client asks: its certificates, passwords, tokens, proxies. And no message quotes a password."""

import base64
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.tracking import client as mlflow_client
from tunalab.tracking.client import connect, full_uri, survive

VARIABLES = ("TRACKING_URI", "TRACKING_USERNAME", "TRACKING_PASSWORD", "TRACKING_TOKEN", "TRACKING_INSECURE_TLS")
SECRET = "s3cret@S3/cret"
ENCODED = "s3cret%40S3%2Fcret"
BASIC = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()


class Handler(BaseHTTPRequestHandler):
    """Answers as a server without experiments, to whoever brings what it asks for."""

    wanted: str | None = None

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        expected = self.wanted in (None, self.headers.get("Authorization"))
        body = b"{}" if expected else b"You are not authenticated"
        self.send_response(200 if expected else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_client, "_warned", set())
    for name in VARIABLES:
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "MLFLOW_TRACKING_SERVER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for the loopback that nobody but itself has signed, and its key."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(1), now + timedelta(9))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder, form = tmp_path_factory.mktemp("certificate"), serialization.PrivateFormat.PKCS8
    (folder / "lab.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return str(folder / "lab.pem"), str(folder / "key.pem")


@pytest.fixture
def start() -> Iterator[Callable[..., str]]:
    """``start(wanted, certificate)``: a server, its address without the scheme."""
    servers = []

    def begin(wanted: str | None = None, certificate: tuple[str, str] | None = None) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (Handler,), {"wanted": wanted}))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def asked(uri: str) -> list[object]:
    return list(connect(uri).search_experiments(max_results=1))


def test_a_password_in_the_uri_or_the_environment_and_a_token(start, monkeypatch):
    address = start(BASIC)
    assert asked(f"http://user:{ENCODED}@{address}") == []
    with pytest.raises(Exception, match="not authenticated"):
        asked(f"http://{address}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    assert asked(f"http://{address}/") == []
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    assert asked(f"http://{start('Bearer t0ken')}") == []


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS", "REQUESTS_CA_BUNDLE"])
def test_a_certificate_that_nobody_has_signed(start, certificate, monkeypatch, variable):
    uri = f"https://{start(certificate=certificate)}"
    with pytest.raises(OSError, match="self-signed certificate.*MLFLOW_TRACKING_SERVER_CERT_PATH names a certificate to trust"):
        connect(uri)
    monkeypatch.setenv(variable, "true" if "INSECURE" in variable else certificate[0])
    assert asked(uri) == []


def test_a_proxy_of_the_environment_is_asked(start, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{start()}")
    monkeypatch.setenv("no_proxy", "")
    assert asked("http://tracking.invalid:5000") == []


def test_no_message_quotes_the_password(start, monkeypatch, capsys):
    address = start("nobody")
    for uri in (
        f"http://user:{ENCODED}@{address}",
        f"http://user:{ENCODED}@127.0.0.1:9",
        f"http://127.0.0.1:9/?token={ENCODED}",
        f"postgresql://user:{SECRET}@127.0.0.1:9/x",
        f"mysql+pymysql://user:{ENCODED}@127.0.0.1:9/x",
        f"nothing://user:{ENCODED}@lab",
        f"user:{ENCODED}@lab:5000",
    ):
        assert not survive(uri, lambda uri=uri: asked(uri))[0]
        assert main(["mlflow-sync", "--uri", uri, "--records", str(Path(__file__).parents[2] / "results" / "mask_ratio")]) == 2
        assert main(["dashboard", "--uri", uri]) in (1, 2)
    messages = "".join(capsys.readouterr())
    assert messages.count("MLflow at ") >= 14 and "s3cret" not in messages and "S3/cret" not in messages


def test_what_was_saved_without_its_password_gets_it_from_the_environment(start, monkeypatch):
    address = start(BASIC)
    saved, whole = f"http://***@{address}", f"http://user:{ENCODED}@{address}"
    assert full_uri(saved) == saved and full_uri("") == "sqlite:///mlflow.db" and full_uri(whole) == whole
    with pytest.raises(UserError, match=r"was saved without its credentials: set MLFLOW_TRACKING_URI to all of it, or MLFLOW_"):
        connect(saved)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:other@elsewhere")
    assert full_uri(saved) == saved
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    assert full_uri(saved) == whole and asked(full_uri(saved)) == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    assert full_uri(saved) == f"http://{address}" and asked(full_uri(saved)) == []
    assert full_uri("http://lab/?token=***") == "http://lab/?token=***"


def test_a_command_line_shows_no_password(monkeypatch, capsys, tmp_path, port):
    """That of the server behind `tunalab dashboard`: everybody on the machine sees it."""
    from tunalab.tracking import dashboard

    observed = {}

    class Ended:
        pid, returncode = 2**22 + 1, 3

        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            observed.update(command=command, env=env)

        def poll(self) -> int:
            return 3

        def wait(self, timeout: float = 0) -> int:
            return 3

    monkeypatch.setattr(subprocess, "Popen", Ended)
    monkeypatch.setattr(dashboard, "check_answer", lambda uri: None)
    uri = f"postgresql://user:{ENCODED}@db/x"
    with pytest.raises(UserError, match="exit code 3"):
        dashboard.serve(uri, port)
    assert "s3cret" not in " ".join(observed["command"]) and observed["env"]["MLFLOW_BACKEND_STORE_URI"] == uri
    assert observed["command"][observed["command"].index("--host") + 1] == "127.0.0.1"
    with pytest.raises(UserError, match="exit code 3"):
        dashboard.serve(uri, port, "0.0.0.0")
    assert observed["command"][observed["command"].index("--host") + 1] == "0.0.0.0"
    with pytest.raises(UserError, match="--host nowhere.invalid is no address of this machine"):
        dashboard.serve(uri, port, "nowhere.invalid")
