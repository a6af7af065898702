"""The page as a browser shows it, on a desktop and on a phone."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from distmeta.report import write_report
from tests.report_data import Elements, make_run, make_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweeps") / "rates")


def browse(page: Path, *options: str) -> str:
    """The document of a page after its scripts have run."""
    profile = page.parent / "profile"
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files --hide-scrollbars"
    )
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def with_script(file: Path, script: str) -> Path:
    """A copy of a page in which a script runs at the end."""
    copy = file.with_name("scripted.html")
    page = file.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    copy.write_text(page, encoding="utf-8")
    return copy


@in_browser
def test_the_trials_are_sorted_by_any_column(sweep: Path, tmp_path: Path) -> None:
    script = """
      const table = [...document.querySelectorAll("table.sortable")].find((each) => each.textContent.includes("0013"));
      const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].dataset.sort).join(" ");
      const seen = [];
      [...table.tHead.rows[0].cells].forEach((header, column) => {
        for (const time of [1, 2]) {
          header.querySelector("button").click();
          seen.push([header.textContent, header.getAttribute("aria-sort"), order()]);
        }
      });
      document.body.dataset.seen = JSON.stringify(seen);
    """
    page = browse(with_script(write_report([sweep], tmp_path / "page.html"), script), "--dump-dom")
    body = next(attributes for tag, attributes in Elements(page).found if tag == "body")
    seen = {(title, direction): order.split() for title, direction, order in json.loads(body["data-seen"] or "")}
    rows = [json.loads(line) for line in (sweep / "trials.jsonl").read_text().splitlines()]
    scored = sorted((row for row in rows if "accuracy" in row), key=lambda row: -row["accuracy"])
    for direction, order in (("descending", scored), ("ascending", scored[::-1])):
        by_accuracy = seen["meta-valid accuracy", direction]
        assert by_accuracy[:-2] == [row["trial_id"] for row in order]
        assert set(by_accuracy[-2:]) == {"0006", "0008"}, "those without an accuracy come last"
    by_rate = sorted(rows, key=lambda row: row["config"]["meta.inner_lr"])
    assert seen["meta.inner_lr", "ascending"] == [row["trial_id"] for row in by_rate]
    assert seen["status", "ascending"][0] == "0006"
    assert len(seen) == 2 * len({title for title, _ in seen})


@in_browser
@pytest.mark.parametrize("kind", ["run", "sweep", "runs"])
def test_nothing_sticks_out_on_a_phone(kind: str, run: Path, sweep: Path, tmp_path: Path) -> None:
    """At 390 pixels the page doesn't scroll sideways, drawings are inside it and their text inside them, and wide
    tables scroll by themselves; nothing is loaded."""
    directories = {"run": [run], "sweep": [sweep], "runs": [run, tmp_path / "a-run-of-a-long-name-without-a-space"]}
    if kind == "runs":
        make_run(directories[kind][1], steps=100)
    write_report(directories[kind], tmp_path / "page.html")
    wrapper = tmp_path / "phone.html"
    wrapper.write_text(
        """<body><iframe src="page.html" style="width: 390px; height: 800px; border: 0"></iframe><script>
        addEventListener("load", () => {
          const page = document.querySelector("iframe").contentDocument;
          const all = (selector) => [...page.querySelectorAll(selector)];
          const box = (each) => each.getBoundingClientRect();
          const sticksOut = (text) => {
            const [inner, outer] = [box(text), box(text.ownerSVGElement)];
            return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
          };
          document.body.dataset.seen = JSON.stringify({
            width: page.documentElement.scrollWidth,
            right: all("svg, .scroll, p, dl").map((each) => box(each).right),
            clipped: all("svg text").filter(sticksOut).map((text) => text.textContent),
            scrolling: all(".scroll").filter((each) => each.scrollWidth > each.clientWidth).length,
            loaded: page.defaultView.performance.getEntriesByType("resource").map((entry) => entry.name),
          });
        });
        </script></body>"""
    )
    page = browse(wrapper, "--dump-dom")
    body = next(attributes for tag, attributes in Elements(page).found if tag == "body" and "data-seen" in attributes)
    seen = json.loads(body["data-seen"] or "")
    assert seen["width"] == 390
    assert len(seen["right"]) > 5
    assert max(seen["right"]) <= 390
    assert seen["clipped"] == []
    assert seen["scrolling"] > 0
    assert seen["loaded"] == []


@in_browser
def test_the_page_is_drawn_on_a_desktop(run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    browse(write_report([run], tmp_path / "page.html"), "--window-size=1280,2000", f"--screenshot={picture}")
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (2000, 1280)
    inked = (pixels[:, :, :3].min(axis=2) < 0.9).mean(axis=1)
    assert (inked > 0).mean() > 0.5, "most rows of pixels have something on them"
