"""Downloads from a server in this process: consent, checksum, what it is, all or nothing, and no network at all."""

from __future__ import annotations

import hashlib
import http.server
import threading
from dataclasses import replace
from importlib import import_module

import pytest

from scidiff.errors import InputError
from scidiff.integration import download, read_network

module = import_module("scidiff.integration.download")  # the function has its name
NETWORK = "source,target,weight\n" + "".join(f"TF,G{i},1\n" for i in range(9))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder, and let "collectri" be net.csv of it; return the folder and the requests that came."""
    served, asked = tmp_path / "served", []
    served.mkdir()
    (served / "net.csv").write_text(NETWORK)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **options):
            super().__init__(*args, directory=served, **options)

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        checksum = hashlib.sha256(NETWORK.encode()).hexdigest()
        url = f"http://127.0.0.1:{running.server_port}/net.csv"
        _resource(monkeypatch, url=url, sha256=checksum)
        yield served, asked
        running.shutdown()


def _resource(monkeypatch, **changes):
    one = replace(module.RESOURCES["collectri"], file="net.csv", **changes)
    monkeypatch.setattr(module, "RESOURCES", {"collectri": one})


def fetch(folder, **options):
    return download("collectri", consent=True, folder=folder, progress=False, **options)


def test_a_file_is_fetched_once_and_only_with_consent(server, tmp_path):
    _, asked = server
    with pytest.raises(InputError, match=r"'collectri' is not here; it is CollecTRI.* about 4\.3 MB.*consent=True"):
        download("collectri", folder=tmp_path / "new")
    assert not asked
    assert not (tmp_path / "new").exists()
    path = fetch(tmp_path / "new")
    assert len(read_network(path)) == 9
    assert len(asked) == 1
    assert download("collectri", folder=tmp_path / "new") == path  # what is there needs neither consent nor network
    assert [one.name for one in path.parent.iterdir()] == ["net.csv"]
    assert len(asked) == 1


def test_another_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    (server[0] / "net.csv").write_text(NETWORK + "TF,EXTRA,1\n")
    with pytest.raises(InputError, match=r"cannot download 'collectri'.*checksum is not the one known"):
        fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_checksum_it_must_still_be_what_it_is_said_to_be(server, tmp_path, monkeypatch):
    _resource(monkeypatch, url=module.RESOURCES["collectri"].url, sha256=None)
    (server[0] / "net.csv").write_text("<html>moved</html>")
    with pytest.raises(InputError, match=r"net\.csv is not CollecTRI"):
        fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    (server[0] / "net.csv").write_text(NETWORK)
    assert fetch(tmp_path / "cache").name == "net.csv"


def test_without_network_there_is_one_line(tmp_path, monkeypatch):
    _resource(monkeypatch, url="http://127.0.0.1:9/net.csv", sha256=None)
    with pytest.raises(InputError, match=r"cannot download 'collectri' from http.*ConnectionError.*by hand") as error:
        fetch(tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_none():
    with pytest.raises(InputError, match="there is no resource 'colectri'; nearest: 'collectri'"):
        download("colectri", consent=True)
