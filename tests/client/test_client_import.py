from __future__ import annotations

import subprocess
import sys
from typing import get_type_hints

from lhopt import client

CODE = """
import sys
before = set(sys.modules)
import lhopt.client, lhopt.client.remote, lhopt.client.asynchronous
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
for heavy in ("torch", "gymnasium", "fastapi", "stable_baselines3", "pydantic", "sklearn"):
    assert heavy not in sys.modules, heavy
print(*sorted(roots - set(sys.stdlib_module_names)))
"""
#: What httpx itself brings.
OF_HTTPX = {
    "anyio", "certifi", "click", "h11", "h2", "hpack", "httpcore", "httpx", "hyperframe", "idna",
    "pygments", "rich", "markdown_it", "mdurl", "sniffio", "socksio", "typing_extensions",
    "zstandard", "brotli", "brotlicffi",
}  # fmt: skip


def test_the_package_hands_on_what_decide_takes_and_gives() -> None:
    for name in client.__all__:
        assert getattr(client, name) is not None
    hints = get_type_hints(client.Session.decide)
    assert hints["statistics"] is client.Statistics
    assert hints["situation"] is client.Situation
    assert hints["return"] is client.Decision


def test_the_client_needs_numpy_and_httpx_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    third_party = {name for name in done.stdout.split() if not name.startswith("_")}
    assert third_party - OF_HTTPX == {"lhopt", "numpy"}
