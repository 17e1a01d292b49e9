"""The page, as people use it: a real Chromium on a real server."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fieldmark
from fieldmark.report.charts.frame import DARK, LIGHT

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
expect = sync_api.expect

LAYER = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
LOADS = "url => { const it = new Image(); it.src = url; return it.decode().then(() => true, () => false); }"
FORBID = "for (const it of ['localStorage', 'sessionStorage']) Object.defineProperty(window, it, {get() { throw it; }})"
COPY = """const canvas = document.createElement("canvas");
const png = new Promise(done => canvas.toBlob(done));
navigator.clipboard.write([new ClipboardItem({"image/png": png})])"""


@pytest.fixture(scope="module")
def photo(small_photos: Path) -> Path:
    return small_photos / "disc" / "00.jpg"


@pytest.fixture(scope="module")
def expected_text(small_run: Path) -> Callable[[Path], str]:
    """Photo -> the English text of its card: the prediction of `fieldmark.load`."""
    classifier = fieldmark.load(small_run)
    return lambda file: "{label} {confidence:.1%}".format(**classifier.predict(file).to_dict()).replace("%", "\u00a0%")


def choose(page: Any, *files: Path) -> Any:
    """Puts the files into the input, waits for their answers. -> the cards"""
    page.locator("#choose").set_input_files([str(file) for file in files])
    expect(page.locator(".card[aria-busy=false]")).to_have_count(len(files))
    return page.locator(".card")


def mock_server(
    classes: list[str], crop: float = 1.0, known: bool = True, text: str = "", **more: Any
) -> Callable[[Any], None]:
    """A server with other classes and predictions: a `before` of `visit`."""
    top = [{"label": label, "confidence": 0.61 / 2**n} for n, label in enumerate(classes[:5])]
    prediction = {"path": "x", **top[0], "known": known, "top": top, "evidence": LAYER}
    seen, limits = {"size": 64, "crop": crop}, {"bytes": 2**21}
    card = {"classes": classes, "network": "net", "preprocessing": seen, "limits": limits, "text": text} | more

    def before(page: Any) -> None:
        page.route("**/card", lambda route: route.fulfill(json=card))
        page.route("**/predict*", lambda route: route.fulfill(json=[prediction]))

    return before


def test_a_photo_gets_its_label_its_bars_and_its_evidence(visit, served: str, photo: Path, expected_text) -> None:
    page = visit(served)
    expect(page.locator("#question")).to_contain_text("square")
    card = choose(page, photo)
    expect(card.locator(".label")).to_have_text(expected_text(photo))
    shares = card.locator(".bars .share").all_inner_texts()
    assert len(shares) == 3 and sum(float(share.split()[0]) for share in shares) == pytest.approx(100, abs=0.2)
    expect(page.locator("#announcements")).to_contain_text(f"00.jpg: {expected_text(photo)}")
    assert card.locator(".heat").evaluate("it => it.decode().then(() => it.naturalWidth > 0)")
    expect(page.locator(".heat")).to_have_css("opacity", "0.7")
    card.get_by_label("Class activation map", exact=True).fill("0")
    expect(page.locator(".heat")).to_have_css("opacity", "0")


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize(("crop", "width"), [(1.0, 360), (0.75, 360), (0.75, 1100)])
def test_the_map_covers_what_the_network_sees(
    visit, served: str, tmp_path: Path, crop: float, width: int, fit: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side, and is 120 x 200 when upright
    Image.new("RGB", (200, 120), "grey").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (50, 180), "grey").save(tmp_path / "tall.png")
    looks = {"size": 64, "crop": crop, "fit": fit}
    page = visit(served, mock_server(["a"], preprocessing=looks), viewport={"width": width, "height": 700})
    for name, shape in {"turned.jpg": 120 / 200, "tall.png": 50 / 180}.items():
        choose(page, tmp_path / name)
        drawn, heat = (page.locator(of).bounding_box() for of in (".picture", ".heat"))
        assert drawn["width"] / drawn["height"] == pytest.approx(shape, rel=0.02)
        side = crop * min(drawn["width"], drawn["height"])
        whole = (crop * drawn["width"], crop * drawn["height"])
        assert (heat["width"], heat["height"]) == pytest.approx(whole if fit == "squash" else (side, side), abs=0.6)
        for start, size in (("x", "width"), ("y", "height")):
            assert heat[start] + heat[size] / 2 == pytest.approx(drawn[start] + drawn[size] / 2, abs=0.6)
        page.locator("#clear").click()


def test_several_photos_come_newest_batch_first_two_at_a_time(
    visit, served: str, small_photos: Path, expected_text
) -> None:
    held: list[Any] = []
    page = visit(served, lambda page: page.route("**/predict*", lambda route: held.append(route)))
    files = [small_photos / label / "03.jpg" for label in ("disc", "square", "cross, blue")]
    page.locator("#choose").set_input_files([str(file) for file in files])
    expect(page.locator(".card[data-state=predicting]")).to_have_count(2)
    newer = small_photos / "disc" / "04.jpg"
    page.locator("#choose").set_input_files(str(newer))
    expect(page.locator(".file")).to_have_text(["04.jpg", "03.jpg", "03.jpg", "03.jpg"])
    while held:
        assert len(held) <= 2
        held.pop(0).continue_()
        page.wait_for_timeout(200)
    expect(page.locator(".label")).to_have_text([expected_text(file) for file in (newer, *files)])
    page.get_by_role("button", name="Remove 04.jpg").click()
    expect(page.locator("#count")).to_have_text("Photos: 3")
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator(".card, #count:visible")).to_have_count(0)


def test_a_photo_can_be_dropped_and_pasted(visit, served: str, photo: Path, expected_text) -> None:
    page = visit(served)
    carried = {"items": [], "files": [str(photo)], "dragOperationsMask": 1}
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 500, "data": carried})
        expect(page.locator("body.over")).to_have_count(int(kind == "dragOver"))
    expect(page.locator(".label")).to_have_text(expected_text(photo))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(COPY)
    page.keyboard.press("Control+V")
    expect(page.locator(".card[data-state=predicted]")).to_have_count(2)


def test_errors_are_shown(visit, served: str, tmp_path: Path, photo: Path, expected_text) -> None:
    half, words, scan, large = (tmp_path / name for name in ("half.jpg", "words.jpg", "scan.tiff", "large.jpg"))
    half.write_bytes(photo.read_bytes()[:900])
    words.write_text("these are words")
    Image.open(photo).save(scan)
    cards = choose(visit(served), half, words, scan)
    unread = "Cannot be read: "
    expect(cards.locator(".label")).to_have_text(
        [f"{unread}truncated", f"{unread}not a photo (text?)", expected_text(scan)]
    )
    expect(cards.locator(".gone:visible")).to_have_count(1)
    large.write_bytes(bytes(3 * 2**20))
    page = visit(served, mock_server(["a"]))  # takes 2 MiB
    page.on("request", lambda request: pytest.fail("was sent"))
    expect(choose(page, large).locator(".label")).to_contain_text("3.0 MiB, more than the limit of 2.0 MiB")


@pytest.mark.parametrize(("locale", "words"), [("en-US", "cropped to the object"), ("zh-CN", "裁剪到目标")])
def test_it_names_a_training_on_crops(visit, served: str, locale: str, words: str) -> None:
    page = visit(served, mock_server(["a"], trained_on_crops=True), locale=locale)
    expect(page.locator("#crops")).to_contain_text(words)
    page = visit(served, mock_server(["a"], trained_on_crops=False), locale=locale)
    expect(page.locator("#question")).not_to_be_empty()
    expect(page.locator("#crops")).to_be_hidden()


def test_an_image_out_of_distribution_is_rejected(visit, served: str, photo: Path) -> None:
    card = choose(visit(served, mock_server(["glass", "metal"], known=False)), photo)
    expect(card.locator(".label")).to_have_text("Out of distribution: perhaps none of these classes.")
    expect(card.locator(".nearest")).to_have_text("Most probable class: glass, 61.0\u00a0%")
    expect(card.locator(".bars li")).to_have_count(2)


def test_requests_to_a_busy_server_are_repeated(visit, served: str, photo: Path, expected_text) -> None:
    waits = ["1", "", *["0.05"] * 6]  # seconds; at the second try it answers

    def busy(route: Any) -> None:
        wait = waits.pop(0)
        full = {"status": 429 if len(waits) % 2 else 503, "headers": {"Retry-After": wait}, "json": {"error": "full"}}
        route.fulfill(**full) if wait else route.continue_()

    page = visit(served, lambda page: page.route("**/predict*", busy))
    page.locator("#choose").set_input_files(str(photo))
    expect(page.locator(".label")).to_have_text("The server is busy. Trying again in 1 s …")
    expect(page.locator(".label")).to_have_text(expected_text(photo))
    page.locator("#clear").click()
    expect(choose(page, photo).locator(".label")).to_have_text("The server stayed busy: full")
    assert waits == []
    page.unroute("**/predict*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".label")).to_have_text(expected_text(photo))


def test_a_token_is_asked_for_and_kept_for_the_session(
    visit, served_with_token: str, photo: Path, expected_text
) -> None:
    page = visit(served_with_token)
    page.locator("#choose").set_input_files(str(photo))
    token = page.get_by_label("Token", exact=True)
    expect(token).to_be_focused()
    for word, answer in (("", "This server requires a token."), ("let me out", "Wrong token.")):
        token.fill(word)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text(answer)
    token.fill("let me in")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".label")).to_have_text(expected_text(photo))
    page.reload()
    expect(page.locator("#question")).to_contain_text("square")
    expect(token).to_be_hidden()


def test_untrusted_names_stay_text(visit, served: str, tmp_path: Path, photo: Path) -> None:
    odd = "<script>document.title='gone'</script><img src=x onerror=alert(1)>"
    file = tmp_path / "<b>& photo.jpg"
    file.write_bytes(photo.read_bytes())
    page = visit(served, mock_server([odd, *map(str, range(999))], text=f"---\ntags: x\n---\n\n# Card of {odd}\n"))
    expect(choose(page, file).locator(".label")).to_contain_text(odd)
    expect(page.locator(".file")).to_have_text(file.name)
    page.get_by_role("link", name="About this model").click()
    expect(page.locator("#classes li").first).to_have_text(odd)
    expect(page.locator("#text")).to_have_text(f"# Card of {odd}")
    expect(page.locator("main :is(script, b, [onerror])")).to_have_count(0)
    assert page.title().startswith("What does")
    assert page.locator("#classes").bounding_box()["height"] < 300  # a thousand of them scroll


def test_the_keyboard_is_enough(visit, served: str, photo: Path, expected_text) -> None:
    page = visit(served, lambda page: page.on("filechooser", lambda chooser: chooser.set_files(str(photo))))

    def press(key: str, *, on: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.locator(f"{on}:focus").count():
                return page.keyboard.press(key)
        pytest.fail(f"the tab key does not lead to {on}")

    press("Enter", on="#choose")
    expect(page.locator("label:has(#choose)")).to_have_css("outline-style", "solid")
    expect(page.locator(".label")).to_have_text(expected_text(photo))
    press("ArrowLeft", on=".slider")
    expect(page.locator(".heat")).to_have_css("opacity", "0.65")
    press("Enter", on="summary")
    expect(page.locator("#text")).to_be_visible()
    press("Enter", on=".remove")
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#choose")).to_be_focused()


def test_it_speaks_chinese_and_remembers_what_was_chosen(visit, served: str, photo: Path, expected_text) -> None:
    page = visit(served, locale="zh-CN")
    expect(choose(page, photo).locator(".label")).to_have_text(expected_text(photo).replace("\u00a0", ""))
    assert page.evaluate("`${document.documentElement.lang} ${document.title}`") == "zh-CN 照片里是什么？ · Fieldmark"
    page.get_by_role("button", name="English").click()
    expect(page.locator(".key")).to_contain_text("evidence for disc")
    page.reload()
    expect(page).to_have_title("What does the photo show? · Fieldmark")
    texts = page.request.get(f"{served}/page.js").text().split("const TEXTS")[1].split("\n};")[0].split("  zh: {")
    english, chinese = (sorted(re.findall(r'(?:^    |, )(\w+): "', half, re.MULTILINE)) for half in texts)
    assert len(english) > 30 and english == chinese


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_light_and_language(visit, served: str, photo: Path, scheme: Any, locale: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = visit(served, color_scheme=scheme, locale=locale)
    choose(page, photo, Path(__file__))
    page.locator("#to-about").click()
    for name, value in (part.split(":") for part in {"light": LIGHT, "dark": DARK}[scheme].split(";")):
        assert page.evaluate("it => getComputedStyle(document.body).getPropertyValue(it)", name) == value
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert [one["id"] for one in found.response["incomplete"]] == []


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phone_needs_no_sideways_scrolling(visit, served: str, tmp_path: Path, photo: Path, locale: str) -> None:
    file = tmp_path / f"{'IMG_20261124' * 8}.jpg"
    file.write_bytes(photo.read_bytes())
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    page = visit(served, mock_server(["Donaudampfschifffahrtsgesellschaft" * 3, "b"]), locale=locale, **phone)
    choose(page, file)
    page.locator("#to-about").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.locator("label:has(#take[capture=environment])")).to_be_visible()
    for one in page.locator(":is(button, label.button, a, summary, .slider):visible").all():
        assert one.bounding_box()["height"] >= 44, one.inner_text()


def test_pictures_are_let_go_and_stores_may_be_forbidden(visit, served: str, photo: Path) -> None:
    page = visit(served, lambda page: page.add_init_script(FORBID))
    url = choose(page, photo).locator(".picture").get_attribute("src")
    assert page.evaluate(LOADS, url)
    page.get_by_role("button", name="中文").click()
    page.get_by_role("button", name="移除 00.jpg").click()
    assert not page.evaluate(LOADS, url)
