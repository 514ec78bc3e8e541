"""The page in a real browser: it fetches nothing, runs nothing, fits a phone, and the verdict is on top."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_inputs import inputs

from finetune.report import build_report, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PNG = b"\x89PNG\r\n\x1a\n"

# Reads the page in a frame of a given width; a window cannot be made as narrow as a phone.
MEASURE = """<!doctype html><title>frame</title>
<iframe id="f" width="{width}" height="900" srcdoc="{page}"></iframe>
<script>onload = () => {{
  const inside = document.getElementById("f").contentDocument, verdict = inside.getElementById("verdict");
  const box = verdict.getBoundingClientRect(), style = inside.defaultView.getComputedStyle(verdict);
  document.body.dataset.measured = JSON.stringify({{
    page: inside.documentElement.scrollWidth, top: box.top, height: box.height, width: box.width,
    visibility: style.visibility, size: parseFloat(style.fontSize), title: inside.title,
    charts: inside.querySelectorAll("svg").length,
  }});
}}</script>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a headless browser with a profile of its own."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-features=NetworkTimeServiceQuerying",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def requests(log: Path) -> set[str]:
    """Return the addresses asked for, without the browser's own questions to its maker."""
    asked = set(re.findall(r'"url":\s*"(https?://[^"]+)"', log.read_text()))
    return {url for url in asked if not re.match(r"https?://[\w.-]+\.(google|googleapis)\.com/", url)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(build_report(inputs()), folder)
    return folder / "report.html"


def test_the_page_asks_for_nothing_and_logs_nothing(page, tmp_path):
    log = tmp_path / "net.json"
    done = browse(page, tmp_path / "profile", "--dump-dom", f"--log-net-log={log}")
    assert not requests(log)
    report = build_report(inputs())
    assert html.escape(report.verdict.finding, quote=False) in done.stdout.replace("&nbsp;", " ")
    assert "CONSOLE" not in done.stderr


def test_a_request_would_have_been_seen(tmp_path):
    page, log = tmp_path / "asks.html", tmp_path / "net.json"
    page.write_text('<img src="http://asked.invalid/picture.png">')
    browse(page, tmp_path / "profile", "--dump-dom", f"--log-net-log={log}")
    assert requests(log) == {"http://asked.invalid/picture.png"}


def test_the_page_refuses_scripts_even_if_one_got_in(page, tmp_path):
    attacked = tmp_path / "attacked.html"
    script = '<script>document.title = "ran"</script><img src="x" onerror="document.title = \'ran\'">'
    attacked.write_text(page.read_text().replace("<main>", f"<main>{script}"))
    done = browse(attacked, tmp_path / "profile", "--dump-dom")
    assert "<title>ran</title>" not in done.stdout
    assert "Content Security Policy" in done.stderr


@pytest.mark.parametrize("width", [360, 400, 768, 1200])
def test_the_verdict_is_on_top_and_nothing_is_wider_than_the_screen(page, tmp_path, width):
    opened = page.read_text().replace("<details>", "<details open>")
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(width=width, page=html.escape(opened)))
    done = browse(frame, tmp_path / "profile", "--dump-dom")
    found = re.search(r'data-measured="([^"]+)"', done.stdout)
    assert found is not None
    measured = json.loads(html.unescape(found[1]))
    assert measured["page"] <= width
    assert measured["visibility"] == "visible"
    assert 0 < measured["top"] < 250
    assert measured["height"] > measured["size"] >= 20
    assert measured["charts"] == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_pictured_in_both_schemes(page, tmp_path, scheme):
    picture = tmp_path / "page.png"
    setting = f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}"
    browse(page, tmp_path / "profile", setting, "--window-size=1200,1600", f"--screenshot={picture}")
    assert picture.read_bytes().startswith(PNG)
    assert picture.stat().st_size > 20_000
