"""A real nginx before some servers: own configuration, own prefix, a free port of loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
REQUIRED = os.environ.get("OLLAMA_PERF_REAL_SERVER") == "required"

CONFIG = """\
daemon off;
worker_processes 1;
pid {prefix}/nginx.pid;
error_log {prefix}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    upstream ollama {{ {upstreams} keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://ollama;
            proxy_set_header Host localhost;
            {way}
            {named}
        }}
    }}
}}
"""


# As nginx comes, but for larger buffers: HTTP/1.0 to what is behind it, and so no end is known but the last byte.
HOLDING = "proxy_buffering on; proxy_buffers 8 64k; proxy_buffer_size 64k;"
PASSING = 'proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection "";'


@contextmanager
def nginx(folder: Path, urls: Sequence[str], *, buffering: bool = False, named: bool = True) -> Iterator[str]:
    """Serve ``urls`` behind one address, which is yielded; it names the upstream in a header where ``named``."""
    if NGINX is None:
        assert not REQUIRED, "nginx is required where the real server is; install nginx-light"
        pytest.skip("no nginx: install nginx-light")
    port = _free_port()
    (folder / "nginx.conf").write_text(
        CONFIG.format(
            prefix=folder,
            port=port,
            upstreams=" ".join(f"server {urlsplit(url).netloc};" for url in urls),
            way=HOLDING if buffering else PASSING,
            named="add_header X-Upstream $upstream_addr;" if named else "",
        )
    )
    command = [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _await(child, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(10)
        child.stderr.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _await(child: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(500):
        assert child.poll() is None, child.stderr.read().decode()
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise AssertionError("nginx does not listen")
