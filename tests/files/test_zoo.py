"""The authors' checkpoints: the table, and downloads from a real server that fails in many ways."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import REPO
from isonet import isonet18, load_cfg
from isonet.errors import CheckpointError, UserError, run_cli
from isonet.files.zoo import zoo_file, zoo_weights
from isonet.published import ZOO, published_as
from isonet.published import published as network_named

pytestmark = pytest.mark.usefixtures("no_pictures")

ENTRY = ZOO["IN1k-ISO18"]
ROW = (
    r"\| (\S+) \| (yes|no) \| (\S+) \| `(\S+)` "
    r"\| `python test.py --cfg configs/(\S+)\.yaml --ckpt (\S+)\.pt` \| `python train.py (.*)` \|"
)


def test_the_table_matches_the_model_zoo_and_its_configs_match_the_files():
    rows = re.findall(ROW, (REPO / "MODEL_ZOO.md").read_text())
    assert len(rows) == len(ZOO) == 16
    for (network, dropout, top1, file_id, config, ckpt, train), entry in zip(rows, ZOO.values(), strict=True):
        assert (network, f"{entry.top1:.2f}", file_id) == (entry.network, top1, entry.file_id)
        assert entry.dropout == (dropout == "yes") == (not ckpt.endswith("-nodropout"))
        assert entry.name == f"IN1k-{ckpt}" == config + "-nodropout" * (dropout == "no")
        names = f"folder/{ckpt}.pt", f"{network}{'' if entry.dropout else '-nodropout'}", f"{entry.name}.pth.tar"
        assert set(map(published_as, names)) == {entry.name}
        trained = load_cfg(REPO / f"configs/{config}.yaml", train.split(f"--output {ckpt}")[1].split())
        assert (entry.config().ISON, entry.config().DATASET) == (trained.ISON, trained.DATASET)
    assert len({entry.file_id for entry in ZOO.values()}) == len({zoo_file(entry) for entry in ZOO.values()}) == 16


def test_other_names_are_no_published_network():
    assert not any(map(published_as, ("ISO20.pt", "best.pt", "RISO18/best.pt", "", "IN1k-RISO18-mine.pt", "resnet50")))


def test_an_unknown_name_is_refused_with_a_hint():
    assert network_named("zoo:IN1k-RISO18") is network_named("IN1k-RISO18")
    with pytest.raises(UserError, match="zoo:IN1k-RISO18"):
        network_named("zoo:IN1k-RISO81")
    with pytest.raises(UserError, match=", ".join(ZOO)):
        network_named("zoo:")


class Server(ThreadingHTTPServer):
    """Serves ``content`` as the other attributes describe, and records the requests."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.status = 200
        self.cut: int | None = None  # a response to a request without a range breaks off after this many bytes
        self.hold: threading.Event | None = None  # at that point, wait for this event instead of breaking off
        self.honours_range = True
        self.says_length = True
        self.endless: int | None = None  # send zeros until the client closes; 0, or the bytes to announce
        self.ranges: list[str | None] = []  # the range of each request
        self.drive: dict[str, bytes] = {}  # pages by host, when this server is a proxy
        self.certificate = ""
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, *_):
        pass  # a client that closes the connection


class Handler(BaseHTTPRequestHandler):
    server: Server
    host = ""

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        """Act as the requested host, over TLS."""
        self.host = self.path.split(":")[0]
        self.send_response_only(200)
        self.end_headers()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server.certificate)
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        if page := server.drive.get(self.host):
            return self.answer(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": len(page)}, page)
        server.ranges.append(asked)
        headers = {"Content-Type": "application/octet-stream", "ETag": '"1"'}
        if self.host:
            headers["Content-Disposition"] = f'attachment; filename="{self.path[-8:]}"'
        if server.endless is not None:
            announced = {"Content-Length": server.endless} if server.endless else {}
            self.answer(200, {**headers, **announced}, b"")
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 20))
        body = server.content
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.honours_range else 0
        if start:
            if start >= len(body):
                return self.answer(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": 0}, b"")
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if server.says_length:
            headers["Content-Length"] = len(body) - start
        stop = server.cut if server.cut is not None and not start else len(body)
        self.answer(206 if start else server.status, headers, body[start:stop])
        if server.hold and not start:
            self.wfile.flush()
            server.hold.wait(20)
            with contextlib.suppress(OSError):
                self.wfile.write(body[stop:])

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file in the authors' format, in 16 bits for speed, and its weights."""
    torch.manual_seed(1)
    weights = {f"module.{name}": (w + 0.01 * torch.randn_like(w)).half() for name, w in isonet18().state_dict().items()}
    path = tmp_path_factory.mktemp("published") / "ISO18.pt"
    torch.save({"net": weights}, path)
    return path, {name.removeprefix("module."): w.float() for name, w in weights.items()}


@pytest.fixture
def server(published, tmp_path, monkeypatch):
    """Serve the file in place of Google Drive, with an empty hub cache."""
    with Server(published[0].read_bytes()) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("ISONET_ZOO_URL", running.url)
        yield running
        running.shutdown()
        thread.join()


def file():
    return zoo_file(ENTRY)


def files():
    return sorted(path.name for path in file().parent.iterdir())


def assert_fetched(published, weights):
    assert list(weights) == list(published[1])
    assert all(torch.equal(weights[name], w) for name, w in published[1].items())
    assert file().read_bytes() == published[0].read_bytes()
    assert files() == ["isonet-IN1k-ISO18.pt"]  # and no other file


def refused(words, **arguments):
    with pytest.raises(UserError, match=words) as caught:
        zoo_weights(ENTRY, **{"retries": 0, **arguments})
    message = str(caught.value)
    assert "\n" not in message
    assert f"{os.environ['ISONET_ZOO_URL']}{ENTRY.file_id} in a browser and save it as {file()}" in message
    assert not file().exists()
    return message


def test_a_file_is_downloaded_once_and_needs_no_library_afterwards(published, server, monkeypatch):
    assert_fetched(published, zoo_weights(ENTRY))
    assert oct(file().stat().st_mode & 0o444) == oct(0o444 & ~current_umask())
    monkeypatch.setitem(sys.modules, "gdown", None)  # as if it were not installed
    server.shutdown()
    assert_fetched(published, zoo_weights(ENTRY))
    assert server.ranges == [None]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_dropped_connection_is_resumed_where_it_broke_off(published, server):
    """No response to a request without a range is complete, so the file can only be completed by resuming."""
    server.cut = len(server.content) // 2
    assert_fetched(published, zoo_weights(ENTRY, retries=1))
    assert [asked is None for asked in server.ranges] == [True, False]


def other_network(folder):
    torch.save({"net": torch.nn.Linear(3, 3).state_dict()}, folder / "other.pt")
    return (folder / "other.pt").read_bytes()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def hostile(folder):
    torch.save({"net": Harmful()}, folder / "hostile.pt")
    return (folder / "hostile.pt").read_bytes()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"content": lambda _: b"<!DOCTYPE html><html><body>Quota exceeded</body></html>"}, "web page"),
        ({"content": lambda _: b""}, "is empty"),
        ({"content": lambda _: os.urandom(5000)}, "not a checkpoint"),
        ({"content": other_network}, "no checkpoint of ISONet-18.* another network"),
        ({"content": hostile}, "refused.*mkdir"),
        ({"status": 404}, "404"),
        ({"cut": 1000, "honours_range": False}, "incomplete"),  # the announced length is longer
        ({"cut": 10_000_000, "says_length": False}, "its end is missing"),
    ],
    ids=["page", "empty", "garbage", "other network", "hostile", "404", "shorter than announced", "cut unnoticed"],
)
def test_an_invalid_response_is_not_stored_and_the_next_may_be_used(
    published, server, tmp_path, monkeypatch, answer, words
):
    monkeypatch.chdir(tmp_path)
    good = {name: getattr(server, name) for name in answer}
    for name, value in answer.items():
        setattr(server, name, value(tmp_path) if callable(value) else value)
    refused(words)
    assert not (tmp_path / "harm").exists()
    for name, value in good.items():
        setattr(server, name, value)
    assert_fetched(published, zoo_weights(ENTRY, retries=0))


@pytest.mark.parametrize("announced", [0, 10**12])
def test_a_response_without_an_end_is_cut_off_and_removed(server, announced):
    server.endless = announced
    weights = sum(weight.numel() * 4 for weight in isonet18().state_dict().values())
    refused(f"exceeds {4 * weights / 1e6:.0f} MB")
    assert [path.name for path in file().parent.iterdir() if path.name.endswith(".part")] == []


def test_errors_without_network_library_or_disk_space(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ISONET_ZOO_URL", "http://127.0.0.1:9/")  # a closed port
    refused("Connection refused")
    monkeypatch.setitem(sys.modules, "gdown", None)
    refused(re.escape("pip install 'gdown"))
    monkeypatch.delenv("ISONET_ZOO_URL")
    with pytest.raises(UserError, match=re.escape(f"https://drive.google.com/uc?export=download&id={ENTRY.file_id} ")):
        zoo_weights(ENTRY)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OSError, match="cache"):
        zoo_weights(ENTRY)


def test_the_error_for_a_damaged_file_in_the_cache_says_what_to_do(published, server):
    file().parent.mkdir(parents=True)
    file().write_bytes(published[0].read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=f"{file()}: .*damaged.*remove the file"):
        zoo_weights(ENTRY)
    assert not server.ranges


FORM = b"""<html><body><form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="hidden" name="id" value="x"><input type="hidden" name="confirm" value="t"></form></body></html>"""
FULL = b'<html><body><p class="uc-error-subcaption">Too many users have viewed this file</p></body></html>'


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl to make a certificate")
def test_google_drives_pages_are_handled(published, server, tmp_path, monkeypatch):
    """A proxy acts as Google's hosts. It sends the page before large files, and the page of a file over its quota."""
    hosts = ("drive.google.com", "drive.usercontent.google.com")
    server.certificate = str(tmp_path / "certificate.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=test", "-addext", "subjectAltName=" + ",".join(f"DNS:{host}" for host in hosts),
         "-addext", "keyUsage=critical,digitalSignature,keyCertSign",
         "-keyout", server.certificate, "-out", tmp_path / "public.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    with open(server.certificate, "ab") as certificate:
        certificate.write((tmp_path / "public.pem").read_bytes())
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "public.pem"))
    monkeypatch.setenv("ISONET_ZOO_URL", "https://drive.google.com/uc?export=download&id=")
    server.drive = {hosts[0]: FULL}
    refused("Too many users have viewed this file")
    server.drive = {hosts[0]: FORM}
    assert_fetched(published, zoo_weights(ENTRY, retries=0))


_CLEAN = multiprocessing.get_context("forkserver")
_CLEAN.set_forkserver_preload(["isonet.builders", "gdown", "pytest", "PIL.Image"])


def fetch_in_child(environment, results=None):
    torch.set_num_threads(1)
    os.environ.update(environment)
    weights = zoo_weights(ENTRY, retries=0)
    if results:
        results.put({name: float(w.double().sum()) for name, w in weights.items()})


def child(*args):
    environment = {name: os.environ[name] for name in ("TORCH_HOME", "ISONET_ZOO_URL")}
    process = _CLEAN.Process(target=fetch_in_child, args=(environment, *args))
    process.start()
    return process


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_concurrent_processes_download_once_and_survive_a_killed_process(published, server):
    """The first process is killed halfway. One of the other three downloads the file."""
    server.cut, server.hold = len(server.content) // 2, threading.Event()
    first = child()
    wait_until(lambda: server.ranges)
    results = _CLEAN.Queue()
    others = [child(results) for _ in range(3)]
    first.kill()
    first.join()
    server.hold.set()
    sums = [results.get(timeout=60) for _ in others]
    for process in others:
        process.join()
    assert sums == [{name: float(w.double().sum()) for name, w in published[1].items()}] * 3
    assert server.ranges == [None] * 2  # one request of the killed process, one of another
    assert files() == ["isonet-IN1k-ISO18.pt"]


def test_evaluation_by_name_needs_no_config(published, server, tmp_path, monkeypatch, capsys):
    """The loss that test.py reports equals the loss of an explicit forward pass."""
    import test as test_script  # not at the top: the child processes of the test above do not need it

    losses, model = [], isonet18().eval()
    model.load_state_dict(published[1])
    for label, name in enumerate(("a", "b")):
        (tmp_path / "data/ILSVRC2012/val" / name).mkdir(parents=True)
        image = Image.effect_noise((256, 256), 50).convert("RGB")
        image.save(tmp_path / "data/ILSVRC2012/val" / name / "1.png")
        x = torch.from_numpy(np.array(image)[16:240, 16:240] / 255.0 - [0.485, 0.456, 0.406]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )
        with torch.no_grad():
            logits = model(x.float().permute(2, 0, 1)[None])
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([label])).item())

    args = ["--ckpt", "zoo:IN1k-ISO18", "--json", "actual.json", "DATASET.NUM_WORKERS", 0]
    monkeypatch.chdir(tmp_path)
    assert run_cli(test_script.main, test_script.parse_args(list(map(str, args)))) == 0
    output = capsys.readouterr()
    assert "ISONet-18, 68.10 %" in output.out
    assert "\r" not in output.out + output.err  # no progress bar without a terminal
    assert file().read_bytes() == published[0].read_bytes()
    actual = json.loads((tmp_path / "actual.json").read_text())
    assert actual["images"] == 2
    assert actual["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
