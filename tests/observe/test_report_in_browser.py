"""The report in a real browser: wide and phone-narrow, light and dark, by pointer and by keyboard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from areal_x.observe import build_report

pytestmark = pytest.mark.browser

_NO_OVERFLOW = "document.documentElement.scrollWidth <= window.innerWidth"
_USE_EVERYTHING = """(async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  for (const button of [...document.querySelectorAll('button')]) { button.click(); await frame(); }
  for (const details of document.querySelectorAll('details')) details.open = true;
  for (const svg of document.querySelectorAll('svg')) {
    const box = svg.getBoundingClientRect();
    const at = { bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
    svg.dispatchEvent(new PointerEvent('pointermove', at));
  }
  const token = document.querySelector('.tokens span:last-child');
  if (token) token.dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
  await frame();
  return [...document.querySelectorAll('.readout')].map((node) => node.textContent);
})()"""


def skip_without_browser(chromium: ModuleType) -> str:
    binary = chromium.find_chromium()
    if binary is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    return binary


async def look(chromium: ModuleType, path: Path) -> list[Any]:
    """Open and use the page in all four forms; returns what its readouts say in the last."""
    readouts: list[Any] = []
    async with chromium.open_browser(skip_without_browser(chromium)) as browser:
        for width, height in ((1400, 900), (360, 780)):
            for dark in (False, True):
                await browser.open(path.as_uri(), width=width, height=height, dark=dark)
                assert await browser.evaluate(_NO_OVERFLOW), f"{path.parent.name} overflows at {width} px"
                readouts = await browser.evaluate(_USE_EVERYTHING)
                assert await browser.evaluate(_NO_OVERFLOW), f"{path.parent.name} overflows at {width} px after use"
                assert await browser.evaluate("performance.getEntriesByType('resource').length") == 0
        assert browser.errors == []
    return readouts


async def test_a_whole_run_has_no_console_error_and_no_overflow(whole_run: Path, chromium: ModuleType) -> None:
    readouts = await look(chromium, build_report(whole_run))
    assert any(text.startswith("step ") and "reward" in text for text in readouts)
    assert any("generation" in text and "in flight" not in text for text in readouts)
    assert any(text.startswith("token ") and "version" in text for text in readouts)


@pytest.mark.parametrize(("steps", "evaluate"), [(0, False), (1, True)])
async def test_partial_runs_have_none_either(
    tmp_path: Path, steps: int, evaluate: bool, write_synthetic_run: Callable[..., Path], chromium: ModuleType
) -> None:
    skip_without_browser(chromium)
    run_dir = write_synthetic_run(tmp_path / f"run-of-{steps}", steps=steps, evaluate=evaluate, finish=False)
    await look(chromium, build_report(run_dir))


async def test_the_page_is_usable_by_keyboard(whole_run: Path, chromium: ModuleType) -> None:
    path = build_report(whole_run)
    async with chromium.open_browser(skip_without_browser(chromium)) as browser:
        await browser.open(path.as_uri(), width=1000, height=800, dark=False)
        await browser.evaluate("document.querySelector('#charts svg').focus()")
        await browser.press("ArrowRight")
        assert "step 1:" in await browser.evaluate("document.querySelector('#charts .readout').textContent")
        await browser.evaluate("document.querySelector('#timeline svg').focus()")
        before = await browser.evaluate("document.querySelector('#timeline .readout').textContent")
        await browser.press("+")
        await browser.press("ArrowLeft")
        assert await browser.evaluate("document.querySelector('#timeline .readout').textContent") != before
        assert await browser.evaluate("document.querySelector('#timeline').contains(document.activeElement)")
        await browser.evaluate("document.querySelector('.tokens').focus()")
        await browser.press("ArrowRight")
        assert "version" in await browser.evaluate("document.querySelector('.sample .readout').textContent")
        await browser.evaluate("document.querySelector('[role=tab]').focus()")
        await browser.press("ArrowRight")
        assert await browser.evaluate("document.activeElement.textContent") == "Worst"
        assert browser.errors == []


async def test_the_browser_reports_errors_at_all(tmp_path: Path, chromium: ModuleType) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<script>console.error('seen'); throw new Error('thrown')</script><div style='width:3000px'>x</div>"
    )
    async with chromium.open_browser(skip_without_browser(chromium)) as browser:
        await browser.open(page.as_uri(), width=360, height=780, dark=False)
        await asyncio.sleep(0)
        assert any("seen" in text for text in browser.errors)
        assert any("thrown" in text for text in browser.errors)
        assert not await browser.evaluate(_NO_OVERFLOW)
