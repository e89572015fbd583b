"""The conversation page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import Page, expect, sync_playwright

pytestmark = pytest.mark.slow


def recording(speech: Path) -> Path:
    """A person saying a digit."""
    return min((speech / "fsdd" / "audio").rglob("*.flac"))


@pytest.fixture
def page(speech: Path, tmp_path: Path) -> Iterator[Page]:
    """A Chromium whose microphone hears a recording."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.fail("chromium missing: run tools/install_servers.sh")
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    wave, rate = soundfile.read(recording(speech))
    soundfile.write(tmp_path / "microphone.wav", wave, rate)
    flags.append(f"--use-file-for-fake-audio-capture={tmp_path / 'microphone.wav'}")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=flags)
        yield chromium.new_page()
        chromium.close()


def test_sound_and_transcript_side_by_side(page: Page, address: str, speech: Path) -> None:
    page.goto(address)
    expect(page.locator("#model")).to_have_text("demo")
    page.set_input_files("#file", recording(speech))
    page.fill("#prompt", "count the digits")
    page.fill("#transcript", "three five seven")
    page.click("#ask")
    expect(page.locator("body")).to_have_attribute("data-asked", "1", timeout=20_000)
    assert page.inner_text("#read") == "three"
    assert page.inner_text("#heard")
    assert "count the digits" in page.inner_text("#history")


def test_the_microphone(page: Page, address: str) -> None:
    page.goto(address)
    page.click("#record")
    expect(page.locator("#record")).to_have_text("■ Stop")
    page.wait_for_timeout(1500)
    page.click("#record")
    expect(page.locator("#player")).to_be_visible()
    page.fill("#prompt", "count the digits")
    page.click("#ask")
    expect(page.locator("body")).to_have_attribute("data-asked", "1", timeout=20_000)
    assert page.inner_text("#heard")


def test_mistakes_are_told(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(address)
    page.fill("#prompt", "count the digits")
    page.click("#ask")
    expect(page.locator("#status")).to_contain_text("record or choose a recording")
    (tmp_path / "a.wav").write_text("this is no sound")
    page.set_input_files("#file", tmp_path / "a.wav")
    page.click("#ask")
    expect(page.locator("#status")).to_contain_text("part 1: not readable as audio", timeout=10_000)
