"""The page, as people use it: a real Chromium on a real server."""

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fieldmark.charts import DARK, LIGHT

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
Page, Route, expect = playwright.Page, playwright.Route, playwright.expect

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
ARGUMENTS = [f"--{word}" for word in ("no-sandbox", "disable-gpu", *QUIET)]
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
PAGE = Path(__file__).parents[2] / "fieldmark" / "serve" / "page"
TOLD = "Failed to load resource"  # what Chromium itself says of any answer that is no 2xx


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium in {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Page]]:
    """URL, settings of the browser -> its page there. Nothing may stand in the console or be asked for elsewhere."""
    opened, said, asked = [], [], []

    def go(url: str, before: Callable[[Page], Any] = lambda page: None, **settings: Any) -> Page:
        context = browser.new_context(**settings)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append((url, request.url)))
        before(page)
        page.goto(url)
        return page

    yield go
    for context in opened:
        context.close()
    assert [text for text in said if not text.startswith(TOLD)] == []
    assert [there for url, there in asked if not there.startswith((f"{url}/", "blob:", "data:"))] == []


@pytest.fixture(scope="session")
def photo(small_photos: Path) -> Path:
    return small_photos / "disc" / "00.jpg"


def choose(page: Page, *files: Path) -> Any:
    """Puts the files into the input, waits for their answers. -> the cards"""
    page.locator("#choose").set_input_files([str(file) for file in files])
    expect(page.locator(".card[aria-busy=false]")).to_have_count(len(files))
    return page.locator(".card")


def answers(
    classes: list[str], crop: float = 1.0, known: bool = True, text: str | None = None
) -> Callable[[Page], None]:
    """Lets the page hear of other classes: `before` of `visit`."""
    picture = io.BytesIO()
    Image.new("RGBA", (8, 8), (232, 60, 0, 255)).save(picture, "PNG")
    evidence = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    top = [{"label": label, "confidence": 0.61 / (n + 1)} for n, label in enumerate(classes[:5])]
    answer = {"path": "x", **top[0], "known": known, "top": top, "evidence": evidence}
    seen = {"size": 64, "crop": crop}
    card = {"classes": classes, "network": "net", "preprocessing": seen, "limits": {"bytes": 2**21}, "text": text}

    def before(page: Page) -> None:
        page.route("**/card", lambda route: route.fulfill(json=card))
        page.route("**/predict*", lambda route: route.fulfill(json=[answer]))

    return before


def box(page: Page, of: str) -> dict[str, float]:
    """Left, top, width and height of the first such thing, in pixels of the screen."""
    return page.locator(of).first.evaluate("it => it.getBoundingClientRect().toJSON()")


def colour(page: Page, of: str, which: str) -> str:
    return page.locator(of).first.evaluate("(it, which) => getComputedStyle(it)[which]", which)


# ---- photos in, answers out


def test_a_photo_gets_its_label_its_bars_and_its_evidence(visit, served: str, photo: Path) -> None:
    page = visit(served)
    expect(page.locator("#question")).to_contain_text("square")
    card = choose(page, photo)
    expect(card.locator(".label")).to_have_text(re.compile(r"^disc \d\d\.\d\u00a0%$"))
    expect(card.locator(".bars li")).to_have_count(3)
    shares = card.locator(".bars .share").all_inner_texts()
    assert sum(float(share.split()[0]) for share in shares) == pytest.approx(100, abs=0.2)
    expect(page.locator("#said")).to_contain_text("00.jpg: disc")
    assert card.locator(".heat").evaluate("it => it.complete && it.naturalWidth > 0")
    assert colour(page, ".heat", "opacity") == "0.7"
    card.locator(".slider").fill("0")
    assert colour(page, ".heat", "opacity") == "0"


@pytest.mark.parametrize("crop", [1.0, 0.75])
@pytest.mark.parametrize("width", [360, 1100])
def test_evidence_lies_where_the_network_looked(visit, served: str, tmp_path: Path, crop: float, width: int) -> None:
    turned, tall = Image.new("RGB", (200, 120), "grey"), Image.new("RGB", (50, 180), "grey")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: 120 x 200 when upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    tall.save(tmp_path / "tall.png")
    page = visit(served, answers(["a"], crop), viewport={"width": width, "height": 700})
    for name, (w, h) in {"turned.jpg": (120, 200), "tall.png": (50, 180)}.items():
        page.reload()
        choose(page, tmp_path / name)
        frame, heat = box(page, ".picture"), box(page, ".heat")
        assert frame["width"] / frame["height"] == pytest.approx(w / h, rel=0.02)
        side = crop * min(frame["width"], frame["height"])
        assert (heat["width"], heat["height"]) == pytest.approx((side, side), abs=0.6)
        for at, size in (("x", "width"), ("y", "height")):
            assert heat[at] + heat[size] / 2 == pytest.approx(frame[at] + frame[size] / 2, abs=0.6)


def test_several_photos_come_newest_batch_first_two_at_a_time(visit, served: str, small_photos: Path) -> None:
    held: list[Route] = []
    page = visit(served, lambda page: page.route("**/predict*", lambda route: held.append(route)))
    files = [small_photos / label / "01.jpg" for label in ("disc", "square", "cross, blue")]
    page.locator("#choose").set_input_files([str(file) for file in files])
    expect(page.locator(".card[data-state=looking]")).to_have_count(2)
    expect(page.locator(".card[data-state=waiting]")).to_have_count(1)
    page.locator("#choose").set_input_files(str(small_photos / "disc" / "02.jpg"))
    expect(page.locator(".file")).to_have_text(["02.jpg", "01.jpg", "01.jpg", "01.jpg"])
    assert len(held) == 2
    page.unroute("**/predict*")
    for route in held:
        route.continue_()
    expect(page.locator(".label")).to_have_text(
        [re.compile(f"^{name}") for name in ("disc", "disc", "square", "cross")]
    )
    expect(page.locator("#tally")).to_have_text("Photos: 4")
    page.get_by_role("button", name="Remove 02.jpg").click()
    expect(page.locator(".card")).to_have_count(3)
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator(".card, #line:visible")).to_have_count(0)


def test_a_photo_can_be_dropped_and_pasted(visit, served: str, photo: Path) -> None:
    page = visit(served)
    page.locator("#question:not(:empty)").wait_for()
    carried = {"items": [], "files": [str(photo)], "dragOperationsMask": 1}
    browser = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 500, "data": carried})
        assert page.evaluate("document.body.classList.contains('over')") == (kind != "drop")
    expect(page.locator(".label")).to_have_text(re.compile("^disc"))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(90, 70), brush = canvas.getContext("2d");
            brush.fillRect(0, 0, 90, 70);
            const png = await canvas.convertToBlob({type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": png})]);
        }"""
    )
    page.keyboard.press("Control+V")
    expect(page.locator(".card[data-state=answered]")).to_have_count(2)


def test_what_cannot_be_read_or_shown_or_sent_is_told(visit, served: str, tmp_path: Path, photo: Path) -> None:
    whole = Image.open(photo)
    whole.save(tmp_path / "scan.tiff")
    (tmp_path / "half.jpg").write_bytes(photo.read_bytes()[:900])
    (tmp_path / "words.jpg").write_text("these are words")
    page = visit(served)
    cards = choose(page, *(tmp_path / name for name in ("half.jpg", "words.jpg", "scan.tiff")))
    expect(cards.nth(0).locator(".label")).to_have_text("Cannot be read: truncated")
    expect(cards.nth(1).locator(".label")).to_have_text("Cannot be read: not a photo (text?)")
    expect(cards.nth(2).locator(".label")).to_have_text(re.compile("^disc"))
    expect(cards.nth(2).locator(".gone")).to_be_visible()
    expect(cards.locator(".fade:visible, .again:visible, .gone:visible")).to_have_count(1 + 0)
    small = visit(served, answers(["a"]))  # takes 2 MiB
    small.on("request", lambda request: pytest.fail("was sent") if "predict" in request.url else None)
    (tmp_path / "large.jpg").write_bytes(bytes(3 * 2**20))
    expect(choose(small, tmp_path / "large.jpg").locator(".label")).to_contain_text("3.0 MiB, more than")


def test_none_of_these_is_said_plainly(visit, served: str, photo: Path) -> None:
    page = visit(served, answers(["glass", "metal"], known=False))
    card = choose(page, photo)
    expect(card.locator(".answer")).to_contain_text("Perhaps none of these.Nearest: glass, 61.0\u00a0%")
    expect(card.locator(".bars li")).to_have_count(2)


def test_a_busy_server_is_asked_again_and_then_told(visit, served: str, photo: Path) -> None:
    tries: list[str] = []

    def busy(route: Route) -> None:
        tries.append(route.request.url)
        if 2 <= len(tries) <= 7:
            route.fulfill(status=(429, 503)[len(tries) % 2], headers={"Retry-After": "0.05"}, json={"error": "full"})
        else:
            route.continue_()

    page = visit(served, lambda page: page.route("**/predict*", busy))
    expect(choose(page, photo).locator(".label")).to_have_text(re.compile("^disc"))
    page.get_by_role("button", name="Clear all").click()
    expect(choose(page, photo).locator(".label")).to_have_text("The server stayed busy: full")
    assert len(tries) == 7
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".label")).to_have_text(re.compile("^disc"))
    page.route("**/predict*", lambda route: route.abort())
    page.get_by_role("button", name="Clear all").click()
    expect(choose(page, photo).locator(".label")).to_have_text("The server cannot be reached.")


def test_a_token_is_asked_for_and_kept_for_the_session(visit, served_with_token: str, photo: Path) -> None:
    page = visit(served_with_token)
    page.locator("#choose").set_input_files(str(photo))
    token = page.get_by_label("Token", exact=True)
    expect(token).to_be_focused()
    for word in ("something else", "let me in"):
        token.fill(word)
        page.keyboard.press("Enter")
        if word != "let me in":
            expect(page.get_by_role("alert")).to_have_text("That is not the token of this server.")
    expect(page.locator(".label")).to_have_text(re.compile("^disc"))
    expect(token).to_be_hidden()
    page.reload()
    expect(page.locator("#question")).to_contain_text("square")


# ---- for everybody


def test_names_of_strangers_stay_text(visit, served: str, tmp_path: Path, photo: Path) -> None:
    odd = "<script>document.title='gone'</script><img src=x onerror=alert(1)>"
    file = tmp_path / "<b>& photo.jpg"
    file.write_bytes(photo.read_bytes())
    card = f"---\ntags: x\n---\n\n# Card of {odd}\n"
    page = visit(served, answers([odd, *(f"class {n}" for n in range(999))], text=card))
    choose(page, file)
    expect(page.locator(".label")).to_contain_text(odd)
    expect(page.locator(".file")).to_have_text(file.name)
    page.get_by_role("link", name="About this model").click()
    expect(page.locator("#classes li").first).to_have_text(odd)
    expect(page.locator("#text")).to_have_text(f"# Card of {odd}")
    assert page.title().startswith("What") and not page.locator("main :is(script, b, img:not(.frame img))").count()
    assert box(page, "#classes")["height"] < 300  # a thousand of them scroll


def test_the_keyboard_is_enough(visit, served: str, photo: Path) -> None:
    page = visit(served)

    def tab_to(name: str) -> None:
        for _ in range(12):
            page.keyboard.press("Tab")
            now = page.evaluate("[document.activeElement.id, document.activeElement.className].join(' ')")
            if name in now:
                return
        pytest.fail(f"the tab key does not lead to {name}")

    tab_to("choose")
    assert colour(page, ".button:has(#choose)", "outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(photo))
    expect(page.locator(".label")).to_have_text(re.compile("^disc"))
    tab_to("remove")
    tab_to("slider")
    page.keyboard.press("ArrowLeft")
    assert colour(page, ".heat", "opacity") == "0.65"
    page.locator("#clear").focus()
    tab_to("remove")
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#choose")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")


def test_chinese_is_spoken_to_those_who_read_it_and_remembered(visit, served: str, photo: Path) -> None:
    page = visit(served, locale="zh-CN")
    expect(page.locator("h1")).to_have_text("照片里是什么？")
    expect(choose(page, photo).locator(".label")).to_have_text(re.compile(r"^disc \d\d\.\d%$"))
    assert page.title() == "照片里是什么？ · Fieldmark"
    page.get_by_role("button", name="English").click()
    expect(page.locator(".key")).to_contain_text("spoke for disc")
    page.reload()
    expect(page.locator("h1")).to_have_text("What does the photo show?")
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    english, chinese = (
        re.findall(r"(?:^    |, )(\w+): \"", block, re.M)
        for block in re.findall(r"  ..: \{\n(.*?)\n  \}", script, re.S)
    )
    assert sorted(english) == sorted(chinese) and len(set(english)) == len(english) > 30


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_light_or_language(visit, served: str, photo: Path, scheme: str, locale: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = visit(served, color_scheme=scheme, locale=locale)
    choose(page, photo, Path(__file__))
    page.locator("#to-about").click()
    page.locator("#text").wait_for()
    wanted = dict(part.split(":", 1) for part in {"light": LIGHT, "dark": DARK}[scheme].split(";"))
    told = page.evaluate("names => names.map(n => getComputedStyle(document.body).getPropertyValue(n))", list(wanted))
    assert dict(zip(wanted, told, strict=True)) == wanted  # the colours of all our pages
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    unsure = [one["id"] for one in found.response["incomplete"]]
    assert unsure == [], found.response["incomplete"]


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phone_shows_it_without_sideways_scrolling(
    visit, served: str, tmp_path: Path, photo: Path, locale: str
) -> None:
    file = tmp_path / f"{'IMG_20261124' * 8}.jpg"
    file.write_bytes(photo.read_bytes())
    page = visit(served, answers(["Donaudampfschifffahrtsgesellschaft" * 3, "b"]), locale=locale, **PHONE)
    choose(page, file)
    page.locator("#to-about").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.locator("label:has(#take)")).to_be_visible()
    expect(page.locator("#take")).to_have_attribute("capture", "environment")
    for pressed in page.locator(":is(button, label.button, a, summary, .slider):visible").all():
        size = pressed.bounding_box()
        assert size and size["height"] >= 44, pressed.inner_text()


def test_pictures_are_let_go_and_stores_may_be_forbidden(visit, served: str, photo: Path) -> None:
    forbidden = "Object.defineProperty(window, '{}', {{get() {{ throw Error('forbidden'); }}}});"
    script = "".join(forbidden.format(store) for store in ("localStorage", "sessionStorage"))
    page = visit(served, lambda page: page.add_init_script(script))
    choose(page, photo)
    loads = (
        "url => { const image = new Image(); image.src = url; return image.decode().then(() => true, () => false); }"
    )
    url = page.locator(".picture").get_attribute("src")
    assert page.evaluate(loads, url)
    page.get_by_role("button", name="中文").click()
    page.get_by_role("button", name="移除 00.jpg").click()
    assert not page.evaluate(loads, url)
