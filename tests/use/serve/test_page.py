"""The conversation page in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import Page, expect, sync_playwright

from mtbi.demo.encoder import DemoAligner
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.mix import Mix, Mixer, align_words
from mtbi.use.serve.server import make_app

pytestmark = pytest.mark.slow


def recording(speech: Path) -> Path:
    """A person saying a digit."""
    return min((speech / "fsdd" / "audio").rglob("*.flac"))


@pytest.fixture
def page(speech: Path, tmp_path: Path) -> Iterator[Page]:
    """A Chromium whose microphone plays a recording."""
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


def test_words_are_switched_between_heard_and_read(
    page: Page, address: str, run: TrainedRun, spoken: tuple, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "spoken.flac", spoken[0], 16_000)
    wave = soundfile.read(tmp_path / "spoken.flac", dtype="float32")[0]
    page.set_viewport_size({"width": 390, "height": 844})  # a phone
    page.goto(address)
    page.set_input_files("#file", tmp_path / "spoken.flac")
    words = page.locator("#words button")
    expect(words).to_have_count(3)
    expect(page.locator("#transcript")).to_have_value("three five seven")  # proposed by the recogniser
    expect(page.locator("#notice")).to_contain_text("These words were recognised")
    expect(page.locator("#shape")).to_have_attribute("d", re.compile("^M0 .*Z$"))
    expect(page.locator("#given-mixed")).to_have_text("click words to give them as text")
    boxes = [button.bounding_box() for button in words.all()]
    ends = [word.end for word in align_words(DemoAligner(), wave, "")]
    left, right = boxes[0]["x"], boxes[2]["x"] + boxes[2]["width"]
    drawn = [(box["x"] + box["width"] - left) / (right - left) * ends[2] for box in boxes]
    assert drawn == pytest.approx(ends, abs=0.02)

    words.nth(1).click()
    words.nth(2).focus()
    page.keyboard.press("Space")
    assert [button.get_attribute("aria-pressed") for button in words.all()] == ["false", "true", "true"]
    expect(page.locator("#given-mixed")).to_have_text("♪ three “five seven”")
    page.fill("#prompt", "reverse the digits")
    page.click("#ask")
    expect(page.locator("body")).to_have_attribute("data-asked", "1", timeout=20_000)
    mix = Mix(wave, align_words(DemoAligner(), wave, ""))
    for word in mix.words[1:]:
        word.read = True
    assert page.inner_text("#mixed") == Mixer(run).answer(Conversation(run, 24), mix, "reverse the digits")
    assert page.inner_text("#heard") == Conversation(run, 24).say([wave], "reverse the digits")
    assert page.inner_text("#read") == "seven five three"
    assert "| mix ♪ “five seven”: " in page.inner_text("#history")

    page.fill("#transcript", "three three three five five five seven")
    expect(words).to_have_count(7)
    wide = page.locator("#timeline").bounding_box()
    assert wide
    assert wide["width"] > 390 >= page.evaluate("document.documentElement.scrollWidth")  # the words scroll, not the page
    page.fill("#transcript", "one two three four five six seven eight nine zero " * 9)
    expect(page.locator("#notice")).to_contain_text("cannot be aligned")
    expect(words).to_have_count(0)


def test_without_an_aligner_the_page_says_how_to_have_one(page: Page, run: TrainedRun, serving: Callable, speech: Path) -> None:
    with serving(make_app(run)) as address:
        page.goto(address)
        page.set_input_files("#file", recording(speech))
        expect(page.locator("#notice")).to_contain_text("start `mtbi serve` with --aligner")
        page.fill("#prompt", "count the digits")
        page.click("#ask")
        expect(page.locator("body")).to_have_attribute("data-asked", "1", timeout=20_000)
        assert page.inner_text("#heard")


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


def test_mistakes_are_shown(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(address)
    page.fill("#prompt", "count the digits")
    page.click("#ask")
    expect(page.locator("#status")).to_contain_text("record or choose a recording")
    (tmp_path / "a.wav").write_text("this is no sound")
    page.set_input_files("#file", tmp_path / "a.wav")
    page.click("#ask")
    expect(page.locator("#status")).to_contain_text("part 1: not readable as audio", timeout=10_000)
