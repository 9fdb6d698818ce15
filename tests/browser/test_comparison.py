"""`tunalab dashboard` in a real browser: the committed runs of Figure 6, brought to a fresh store, on the comparison it opens."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "dashboard.png"
PATIENCE = 280_000  # milliseconds; seconds on an idle machine
PLOTS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => ({
    lines: plot.data.filter(trace => trace.mode === 'lines+markers').map(trace => trace.x.length),
    tokens: Math.max(...plot.data.flatMap(trace => [...trace.x])),
}))"""

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Of the first comparison that the dashboard prints."""
    store = f"sqlite:///{tmp_path}/mlflow.db"
    call = [sys.executable, "-m", "tunalab"]
    subprocess.run([*call, "mlflow-sync", "--records", str(ROOT / "results" / "figure6"), "--uri", store], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = [*call, "dashboard", "--uri", store, "--port", str(port)]
    server = subprocess.Popen(served, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        assert server.stdout is not None
        printed = "figure6: accuracy against tokens, by variant: "
        line = next(line for line in server.stdout if line.startswith(printed))  # MLflow says something before
        yield line.removeprefix(printed).strip()
    finally:
        server.terminate()
        server.wait(timeout=60)


def test_the_curves_of_the_variants_are_on_the_page_that_opens(url: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "tests/browser/start installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1120})
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        area = page.get_by_test_id("experiment-view-compare-runs-chart-area")
        for benchmark in ("charts", "count", "easy_vqa", "ocr", "pairs", "pattern"):  # as many as the window shows
            expect(area.get_by_text(f"accuracy/{benchmark}", exact=True).first).to_be_visible(timeout=PATIENCE)
        for beside in ("mlflow.assistant.chat_panel.close", "mlflow.experiment_page.shared_view.dismiss"):
            page.locator(f"[data-component-id='{beside}']").click()
        for variant in ("tuna", "tuna_r", "tuna2", "tuna_r_frozen"):
            expect(page.get_by_title(variant, exact=True).first).to_have_text(f"Group: {variant}", timeout=PATIENCE)
            expect(area.get_by_text(f"{variant} (accuracy/ocr)", exact=True).first).to_be_visible(timeout=PATIENCE)
        page.wait_for_function(f"({PLOTS})().filter(plot => plot.lines.length === 4).length >= 6", timeout=PATIENCE)
        for plot in page.evaluate(PLOTS):  # a line a variant, a point an evaluation, seeds joined at the planned counts
            assert plot == {"lines": [8, 8, 8, 8], "tokens": 9_000_000}
        expect(page.get_by_text("Unassigned")).to_have_count(0)  # runs that are in no group
        page.wait_for_timeout(1000)
        page.screenshot(path=os.environ.get("TUNALAB_PICTURE", PICTURE))
        browser.close()
