"""A report in a browser, read and used the way its readers do."""

from __future__ import annotations

import time
from pathlib import Path

import amber_world
from browser import Browser

from vlmeval.run import evaluate

NASTY = "</script><script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\"><!-- &amp; \u2028"


def two_runs(world: Path, folder: Path) -> list[Path]:
    """Two evaluations of the small AMBER world that differ in a few answers."""
    truth = amber_world.truthful()
    one = {1: f"There is a person, and two dogs. {NASTY}", 5: NASTY, 6: "No", 29: "Yes"}
    other = {1: "There is a person and a tree.", 7: "No", 2: ""}
    for name, change in (("one", one), ("other", other)):
        path = amber_world.respond(folder / f"{name}.json", {**truth, **change})
        evaluate("amber", data=world, responses=path, out=folder / name, images=world / "images")
    return [folder / "one", folder / "other"]


def shown(browser: Browser) -> list[str]:
    """Ids of the rows that exist, in their order."""
    script = "[...document.querySelectorAll('#list .row')].sort((a, b) => a.dataset.at - b.dataset.at)"
    found = browser.run(f"{script}.map((row) => row.querySelector('.about').textContent.split(' · ')[0])")
    return list(found)


def count(browser: Browser) -> str:
    return str(browser.run("document.getElementById('count').textContent"))


def choose(browser: Browser, name: str, value: str) -> None:
    browser.run(f"""(() => {{
        const select = document.getElementById({name!r});
        select.value = {value!r};
        select.dispatchEvent(new Event("change"));
    }})()""")


def opened(browser: Browser) -> str:
    return str(browser.run("document.getElementById('large').open ? document.getElementById('large').innerText : ''"))


def settle(browser: Browser) -> None:
    """Wait for the frame in which a scroll is answered."""
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def link(browser: Browser, path: Path, address: str) -> None:
    browser.open(path)
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=f"{path.resolve().as_uri()}#{address}")
    limit = time.monotonic() + 30
    while browser.run("document.readyState") != "complete" or browser.run("location.href") == "about:blank":
        assert time.monotonic() < limit
