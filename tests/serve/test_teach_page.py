"""The page of `fieldmark teach`, as people use it: a real Chromium on a server without a classifier."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_teach import UNKNOWN, FakeTeach, running

from fieldmark.report.charts.frame import DARK, LIGHT

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
expect = sync_api.expect

KINDS = ("glass", "metal", "paper")
PATHS = [f"{KINDS[n % 3]}/{n:03}.jpg" for n in range(60)]
FORBID = "for (const it of ['localStorage', 'sessionStorage']) Object.defineProperty(window, it, {get() { throw it; }})"
TOO_SMALL = """all => all.map(one => [one.outerHTML, one.getBoundingClientRect()])
    .filter(([, box]) => box.width < 44 || box.height < 44).map(([html]) => html)"""
MARKUP = "<script>document.title='gone'</script><img src=x onerror=alert(1)>"
ESTIMATE = {"share": 0.87, "low": 0.81, "high": 0.91, "n": 104}
LEARNED = {
    "accuracy": ESTIMATE,
    "coverage": 0.72,
    "selective_accuracy": {**ESTIMATE, "share": 0.96},
    "expected_gain": 0.021,
    "next_labels": 100,
    "suspicious": 2,
    "skipped": 1,
    "history": [{"labelled": 20, "accuracy": 0.5}, {"labelled": 300, "accuracy": ESTIMATE}],
    "classes": [{"name": name, "labelled": 30, "recall": ESTIMATE, "is_short": name == "metal"} for name in KINDS],
}


@pytest.fixture
def teach() -> Iterator[Callable[..., tuple[FakeTeach, str]]]:
    """Arguments of `FakeTeach` -> it and its URL with the token. Two classes have labels unless `is_new`."""
    contexts = []

    def start(paths: Any = PATHS, classes: Any = KINDS, is_new: bool = False, **more: Any) -> tuple[FakeTeach, str]:
        fake = FakeTeach(paths, classes, **more)
        if not is_new:
            rows = [{"name": name, "labelled": 5, "recall": UNKNOWN, "is_short": False} for name in classes]
            fake.metrics = {"classes": rows}
        contexts.append(running(fake))
        return fake, f"{contexts[-1].__enter__()}/#token=secret"

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def wait_for(page: Any, condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        page.wait_for_timeout(20)


def press(page: Any, *keys: str) -> None:
    """Each key when the image to answer is there."""
    for key in keys:
        expect(page.locator("#frame img, .tile").first).to_be_visible()
        page.keyboard.press(key)


def answers(fake: FakeTeach) -> list[list[tuple[Any, ...]]]:
    """What was posted, each once: action, id, label."""
    posts = {body["key"]: body for _, path, body in fake.requests if path == "/answers"}
    return [
        [
            (answer["action"], answer["id"], *([answer["label"]] if "label" in answer else []))
            for answer in body["answers"]
        ]
        for body in posts.values()
    ]


def test_ten_images_are_labelled_by_their_keys(visit, teach) -> None:
    fake, url = teach()
    page = visit(url)
    expect(page.locator("#path")).to_have_text(PATHS[0])
    assert page.url == url.split("#")[0]  # without the token
    press(page, *("1", "2", "3", "1", "1", "2", "3", "3", "2", "1"))
    wait_for(page, lambda: len(fake.labels) == 10)
    labels = [KINDS[int(key) - 1] for key in "1231123321"]
    assert answers(fake) == [[("label", id, label)] for id, label in enumerate(labels)]
    assert len({body["author"] for _, path, body in fake.requests if path == "/answers"}) == 1
    expect(page.locator("#last-text")).to_have_text("glass: 009.jpg, recorded")
    expect(page.locator("#announcements")).to_contain_text("glass: 009.jpg, recorded")
    expect(page.locator("#counts")).to_contain_text("Labelled10Unlabelled50")


def test_answers_do_not_wait_for_the_server(visit, teach) -> None:
    fake, url = teach()
    page = visit(url)
    expect(page.locator("#frame img")).to_be_visible()
    wait_for(page, lambda: page.evaluate("document.querySelector('#frame img')?.complete"))
    page.wait_for_timeout(300)  # the next three are loaded
    fake.delay = 0.6
    started = time.monotonic()
    press(page, "1", "2", "3")
    expect(page.locator("#path")).to_have_text(PATHS[3])
    assert time.monotonic() - started < 0.6
    assert not fake.labels
    wait_for(page, lambda: len(fake.labels) == 3)
    assert answers(fake) == [[("label", id, label)] for id, label in enumerate(KINDS)]


def test_enter_accepts_and_other_keys_make_exclude_skip_and_undo(visit, teach) -> None:
    fake, url = teach()
    page = visit(url)
    expect(page.locator("#accept")).to_have_text("Enterglass87\u00a0%")
    press(page, "Enter", "x", " ", "n")
    page.keyboard.type("gxu")  # a field takes the keys
    page.keyboard.press("Enter")
    press(page, "n")
    page.keyboard.type(" GLASS ")  # not a class of its own
    page.keyboard.press("Enter")
    expected = [("label", 0, "glass"), ("exclude", 1), ("skip", 2), ("label", 3, "gxu"), ("label", 4, "glass")]
    wait_for(page, lambda: answers(fake) == [[one] for one in expected])
    expect(page.locator(".class")).to_contain_text([*KINDS, "gxu"])
    press(page, "4")
    wait_for(page, lambda: fake.labels.get(5) == ("label", "gxu"))
    expect(page.locator("#path")).to_have_text(PATHS[6])
    for id in (5, 4, 3):
        press(page, "u")
        expect(page.locator("#path")).to_have_text(PATHS[id])
        wait_for(page, lambda id=id: id not in fake.labels)
    press(page, "2", "2")
    wait_for(page, lambda: fake.labels.get(4) == ("label", "metal"))
    assert fake.labels[3] == ("label", "metal") and set(fake.labels) == set(range(5))
    page.reload()
    press(page, "u")  # the page does not know the image any more, but the server does
    expect(page.locator("#path")).to_have_text(PATHS[4])
    for _ in range(4):
        press(page, "u")
        page.wait_for_timeout(150)
    press(page, "u")
    expect(page.locator("#last-text")).to_have_text("There is nothing to undo.")
    assert not fake.labels


def test_keys_with_modifiers_and_repeated_keys_do_nothing(visit, teach) -> None:
    fake, url = teach()
    page = visit(url)
    press(page, "Control+1", "Alt+2", "Meta+3", "q", "0")
    page.keyboard.down("1")
    for _ in range(5):
        page.keyboard.down("1")  # held
    page.keyboard.up("1")
    wait_for(page, lambda: 0 in fake.labels)
    press(page, "?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("1")
    page.get_by_label("Single keys answer").uncheck()
    page.keyboard.press("Escape")
    press(page, "2", "x")
    page.locator(".class").nth(1).click()
    wait_for(page, lambda: 1 in fake.labels)
    page.reload()
    press(page, "1")
    assert answers(fake) == [[("label", 0, "glass")], [("label", 1, "metal")]]


def test_an_image_that_is_not_shown_yet_gets_no_answer(visit, teach) -> None:
    fake, url = teach()
    held: list[Any] = []
    page = visit(url, lambda page: page.route("**/image*", lambda route: held.append(route)))
    expect(page.locator("#frame")).to_have_text("Loading …")
    page.keyboard.press("1")
    wait_for(page, lambda: len(held) == 4)
    held.pop(0).fulfill(body=b"not an image", content_type="image/jpeg")
    expect(page.locator("#frame")).to_have_text("This image cannot be shown.")
    page.keyboard.press("x")
    wait_for(page, lambda: 0 in fake.labels)
    assert answers(fake) == [[("exclude", 0)]]
    for route in held:
        route.abort()


def test_a_grid_labels_many(visit, teach) -> None:
    fake, url = teach()
    page = visit(url)
    press(page, "g")
    expect(page.get_by_role("heading", level=1)).to_have_text("Similar images. Which are the same class?")
    expect(page.locator(".tile[aria-pressed=true]")).to_have_count(24)
    expect(page.locator(".tile").first).to_be_focused()
    for key in ("ArrowRight", " ", "ArrowDown", " ", " "):
        page.keyboard.press(key)
    page.locator(".tile").nth(5).click()
    expect(page.locator("#chosen")).to_have_text("Chosen: 22 of 24")
    page.keyboard.press("2")
    ids = [id for id in range(24) if id not in (1, 5)]
    wait_for(page, lambda: len(fake.labels) == 22)
    assert answers(fake) == [[("label", id, "metal") for id in ids]]
    expect(page.locator("#path")).to_have_text(PATHS[1])
    expect(page.locator("#last-text")).to_have_text("metal: 22 images, recorded")
    press(page, "u")
    wait_for(page, lambda: not fake.labels)
    expect(page.locator("#path")).to_have_text(PATHS[0])
    press(page, "g")
    expect(page.locator("#accept")).to_have_text("EnterAll 24: glass")
    page.keyboard.press("Escape")
    press(page, "1")
    wait_for(page, lambda: len(fake.labels) == 1)
    fake.delay = 0.4
    press(page, "g", "Enter")  # the second one too early: it must not label one image
    expect(page.locator(".tile").first).to_be_focused()
    fake.delay = 0
    press(page, "Enter")
    wait_for(page, lambda: len(fake.labels) == 25)


def test_at_the_beginning_groups_are_named(visit, teach) -> None:
    fake, url = teach(classes=(), is_new=True)
    page = visit(url)
    expect(page.get_by_role("heading", level=1)).to_have_text("These images look alike. What do they show?")
    expect(page.locator(".tile")).to_have_count(20)
    name = page.get_by_label("Name of the class")
    expect(name).to_be_focused()
    page.get_by_role("button", name="None of these: next group").click()
    expect(page.locator(".tile").first).to_have_accessible_name("001.jpg")
    page.locator(".tile").first.click()
    name.fill("metal")
    page.keyboard.press("Enter")
    expect(page.locator(".tile").first).to_have_accessible_name("002.jpg")
    wait_for(page, lambda: len(fake.labels) == 19)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#chosen")).to_have_text("Chosen: 19 of 20")
    wait_for(page, lambda: not fake.labels)
    name.fill("metal")
    page.keyboard.press("Enter")
    expect(page.locator(".tile").first).to_have_accessible_name("002.jpg")
    page.keyboard.type("paper")
    page.keyboard.press("Enter")
    expect(page.locator("#path")).to_have_text(PATHS[0])
    wait_for(page, lambda: len(fake.labels) == 39)
    expect(page.locator(".class")).to_contain_text(["metal", "paper"])
    page.get_by_role("button", name="Show groups").click()
    expect(page.locator(".tile")).to_have_count(20)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#path")).to_have_text(PATHS[0])


def test_sixty_classes_are_found_by_a_part_of_the_name(visit, teach) -> None:
    classes = [f"kind {n:02}" for n in range(60)]
    fake, url = teach(classes=classes)
    page = visit(url)
    press(page, "9", "a", "z", "/")
    filter_field = page.get_by_role("combobox", name="Find a class")
    expect(filter_field).to_be_focused()
    page.keyboard.type("d 4")
    expect(page.locator("#found").get_by_role("option")).to_have_text([f"kind 4{n}" for n in range(10)])
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    expect(page.locator("#found").get_by_role("option", selected=True)).to_have_text("kind 41")
    page.keyboard.press("Enter")
    expect(page.locator("#frame img")).to_be_visible()
    filter_field.fill("59")
    page.locator("#found").get_by_role("option").click()
    wait_for(page, lambda: len(fake.labels) == 5)
    assert [fake.labels[id][1] for id in range(5)] == ["kind 08", "kind 09", "kind 30", "kind 41", "kind 59"]


def test_why_an_image_is_shown(visit, teach) -> None:
    fake, url = teach()
    top = [["glass", 0.41], ["metal", 0.38], ["paper", 0.2]]
    other = {"id": 30, "path": PATHS[30], "label": "paper"}
    fake.changes = {
        1: {"reason": "uncertain", "top": top},
        2: {"reason": "suspicious", "label": "glass"},
        3: {"reason": "duplicates", "label": "glass", "others": [other]},
        4: {"reason": "new"},
        5: {"proposal": None, "confidence": None, "top": [], "reason": "uncertain"},
    }
    page = visit(url)
    for text in (
        "Drawn at random for the test set: this answer measures the classifier and does not train it.",
        "The classifier is unsure: glass 41\u00a0%, metal 38\u00a0%.",
        "Its label is glass. The classifier predicts another class. Which is right?",
        "Nearly the same image has the label paper. Its label is glass.",
        "Out of distribution: unlike everything labelled so far.",
    ):
        expect(page.locator("#reason")).to_have_text(text)
        expect(page.locator("#others img")).to_have_count(int("Nearly" in text))
        expect(page.locator("#announcements")).to_contain_text(text)
        press(page, "1")
    expect(page.locator("#reason")).to_have_text("Not labelled yet.")
    expect(page.locator("#accept")).to_be_hidden()
    press(page, "Enter")
    expect(page.locator("#last-text")).to_have_text("There is no proposal yet: choose a class.")


def test_an_image_that_was_labelled_is_asked_for_again(visit, teach) -> None:
    fake, url = teach(PATHS[:5])
    page = visit(url)
    press(page, "1", "2", "3")
    wait_for(page, lambda: len(fake.labels) == 3)
    fake.again, fake.changes[0] = [0], {"reason": "suspicious", "label": "glass"}
    press(page, "1", "2")
    text = "Its label is glass. The classifier predicts another class. Which is right?"
    expect(page.locator("#reason")).to_have_text(text)
    press(page, "3")
    wait_for(page, lambda: fake.labels[0] == ("label", "paper"))


def test_what_was_learned_and_the_training(visit, teach) -> None:
    fake, url = teach()
    fake.metrics |= {"accuracy": {**ESTIMATE, "n": 9}}
    page = visit(url)
    expect(page.locator("#accuracy")).to_have_text("Not known yet")
    expect(page.locator("#interval")).to_have_text("Test images labelled: 9.")
    fake.metrics, fake.reading = {**LEARNED}, {"done": 20, "total": 60}
    press(page, "1")
    expect(page.locator("#accuracy")).to_have_text("87\u00a0%")
    expect(page.locator("#interval")).to_have_text("95\u00a0% interval 81 to 91\u00a0%, on 104 test images")
    expect(page.locator("#gain")).to_have_text("With 100 more labels: about +2.1 points.")
    expect(page.locator("#coverage")).to_have_text("Sure about 72\u00a0% of the images, 96\u00a0% of them right.")
    expect(
        page.get_by_role("img", name="Accuracy by number of labels: 50\u00a0% with 20, 87\u00a0% with 300")
    ).to_be_visible()
    expect(page.locator("#class-table li")).to_have_text(
        [re.compile("glass"), re.compile("needs more"), re.compile("paper")]
    )
    expect(page.locator("#labels-file")).to_have_text(
        "Labels: /data/photos-teach/labels.csv, updated after each answer"
    )
    fake.metrics["expected_gain"] = 0.001
    page.get_by_label("Time").select_option("15m")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("#train-line")).to_have_text("epoch 1 of 8: loss 0.52")
    expect(page.locator("#train-result")).to_have_text("Training for 0:12.")
    expect(page.locator("#reading")).to_have_text("Reading images: 20 of 60")
    expect(page.locator("#gain")).to_have_text("Another 100 labels would hardly help.")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    fake.training = {**fake.training, "state": "done", "accuracy": 0.91, "report": "/runs/1/report.html"}
    expect(page.locator("#train-result")).to_have_text("Trained. Accuracy on the test set: 91\u00a0%.")
    expect(page.locator("#train-report")).to_have_text("Report: /runs/1/report.html")
    assert ("POST", "/train", {"budget": "15m"}) in fake.requests


def test_the_end_is_said(visit, teach) -> None:
    _, url = teach(PATHS[:3])
    page = visit(url)
    press(page, "1", "2", "3")
    expect(page.get_by_role("heading", level=1)).to_have_text("All images are labelled.")
    expect(page.locator("#announcements")).to_contain_text("All images are labelled.")
    page.keyboard.press("u")
    expect(page.locator("#path")).to_have_text(PATHS[2])


def test_nothing_is_lost_while_the_server_is_away(visit, teach) -> None:
    fake, url = teach()
    page = visit(url)
    expect(page.locator("#frame img")).to_be_visible()
    page.wait_for_timeout(300)
    fake.failures = [503]
    press(page, "1")
    expect(page.locator("#notice")).to_contain_text("The server has an error: out of order.")
    wait_for(page, lambda: 0 in fake.labels)
    expect(page.locator("#notice")).to_be_hidden()
    page.wait_for_timeout(300)
    page.route("**/answers", lambda route: route.abort())
    press(page, "2", "3")
    expect(page.locator("#notice")).to_contain_text("Answers kept in this browser: 2. They will be sent.")
    press(page, "u", "1")  # what was not sent is taken back here
    page.unroute("**/answers")
    asked: list[str] = []
    page.on("dialog", lambda dialog: asked.append(dialog.type))
    page.reload()
    assert asked == ["beforeunload"]
    wait_for(page, lambda: len(fake.labels) == 3)
    assert [fake.labels[id][1] for id in range(3)] == ["glass", "metal", "glass"]
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#path")).to_have_text(PATHS[3])
    assert page.evaluate("Object.keys(localStorage).filter(key => key.startsWith('fieldmark-teach')).length") == 0


def test_a_lost_response_does_not_count_twice(visit, teach) -> None:
    fake, url = teach()
    lost: list[str] = []

    def lose(route: Any) -> None:
        if route.request.url in lost:
            return route.continue_()
        lost.append(route.request.url)
        route.fetch()  # the server has it
        route.abort()

    page = visit(url, lambda page: [page.route(f"**/{name}", lose) for name in ("answers", "undo")])
    press(page, "1", "2")
    wait_for(page, lambda: len(fake.labels) == 2)
    expect(page.locator("#last-text")).to_have_text("metal: 001.jpg, recorded")
    press(page, "u")
    expect(page.locator("#notice")).to_be_visible()
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#notice")).to_be_hidden()
    assert fake.labels == {0: ("label", "glass")}
    assert [path for _, path, _ in fake.requests if path == "/undo"] == ["/undo"] * 2


def test_answers_of_a_closed_tab_are_sent_by_another(visit, teach) -> None:
    fake, url = teach()
    page = visit(url)
    expect(page.locator("#frame img")).to_be_visible()
    page.route("**/answers", lambda route: route.abort())
    press(page, "1")
    expect(page.locator("#notice")).to_be_visible()
    other = page.context.new_page()
    other.goto(url)
    expect(other.locator("#frame img")).to_be_visible()
    assert not fake.labels  # the first tab still has it
    page.close()
    other.reload()
    wait_for(other, lambda: 0 in fake.labels)
    expect(other.locator("#path")).to_have_text(PATHS[1])


def test_one_refused_answer_does_not_stop_the_others(visit, teach) -> None:
    fake, url = teach()
    page = visit(url)
    expect(page.locator("#frame img")).to_be_visible()
    page.wait_for_timeout(300)
    fake.failures = [200, 409]
    press(page, "1", "2", "3")
    wait_for(page, lambda: len(fake.labels) == 2)
    assert fake.labels == {0: ("label", "glass"), 2: ("label", "paper")}
    expect(page.get_by_role("alert").filter(has_text="Not recorded")).to_have_text(
        re.compile("Not recorded: metal: 001.jpg. out of order")
    )
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator("#errors p")).to_have_count(0)


def test_a_token_is_asked_for_and_kept_for_the_session(visit, teach) -> None:
    fake, url = teach()
    page = visit(url.split("#")[0])
    token = page.get_by_label("Token", exact=True)
    expect(token).to_be_focused()
    expect(page.get_by_role("alert").first).to_contain_text("This server requires a token.")
    token.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").first).to_have_text("Wrong token.")
    token.fill("secret")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#frame img")).to_be_visible()
    expect(token).to_be_hidden()
    page.reload()
    expect(page.locator("#frame img")).to_be_visible()
    page.wait_for_timeout(300)
    fake.token = "new"  # the command was started again
    press(page, "1")
    expect(token).to_be_focused()
    token.fill("new")
    page.keyboard.press("Enter")
    wait_for(page, lambda: fake.labels == {0: ("label", "glass")})


def test_untrusted_names_stay_text(visit, teach) -> None:
    fake, url = teach([f"glass/{MARKUP}.jpg", *PATHS[1:]], [MARKUP, "b"])
    fake.changes[0] = {"reason": "duplicates", "label": MARKUP, "others": [{"id": 9, "path": MARKUP, "label": MARKUP}]}
    fake.training |= {"state": "failed", "line": MARKUP}
    page = visit(url)
    expect(page.locator("#path")).to_have_text(f"glass/{MARKUP}.jpg")
    expect(page.locator(".class").first).to_contain_text(MARKUP)
    expect(page.locator("#reason")).to_contain_text(MARKUP)
    expect(page.locator("#class-table li").first).to_contain_text(MARKUP)
    expect(page.locator("#train-line")).to_have_text(MARKUP)
    press(page, "1")
    expect(page.locator("#last-text")).to_contain_text(MARKUP)
    expect(page.locator("main :is(script, b, [onerror])")).to_have_count(0)
    expect(page).to_have_title("photos · Fieldmark")


def test_it_speaks_the_language_of_the_command_until_another_is_chosen(visit, teach) -> None:
    _, url = teach(lang="zh")
    page = visit(url, locale="en-US")
    expect(page.get_by_role("heading", level=1)).to_have_text("这张图像属于哪个类别？")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.get_by_role("button", name="English").click()
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("What does the image show?")
    script = page.request.get(f"{url.split('#')[0]}teach.js").text()
    texts = script.split("const TEXTS")[1].split("\n};")[0].split("  zh: {")
    english, chinese = (dict(re.findall(r'(?:^    |, )(\w+): "((?:[^"\\]|\\.)*)"', half, re.M)) for half in texts)
    assert len(english) > 100 and sorted(english) == sorted(chinese)
    values = re.compile(r"\{\w+\}")
    for key, text in english.items():
        if key != "curve":
            assert sorted(values.findall(text)) == sorted(values.findall(chinese[key])), key
    used = set(re.findall(r'data-(?:text|label)="(\w+)"', page.content()))
    assert used <= set(english)


@pytest.mark.parametrize(
    ("scheme", "locale", "is_short"),
    [("light", "en", False), ("dark", "zh", False), ("light", "zh", True), ("dark", "en", True)],
)
def test_axe_finds_nothing_in_any_light_and_language(visit, teach, scheme: Any, locale: str, is_short: bool) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    fake, url = teach(lang=locale)
    fake.metrics = {**LEARNED}
    other = {"id": 30, "path": PATHS[30], "label": "paper"}
    fake.changes[0] = {"reason": "duplicates", "label": "glass", "others": [other]}
    page = visit(url, color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator("#others img")).to_be_visible()
    for name, value in (part.split(":") for part in {"light": LIGHT, "dark": DARK}[scheme].split(";")):
        assert page.evaluate("it => getComputedStyle(document.body).getPropertyValue(it)", name) == value

    def check() -> None:
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        unsure = [(one["id"], *node["target"]) for one in found.response["incomplete"] for node in one["nodes"]]
        # Of a text inside an SVG axe cannot always tell what is behind it: it is the page, as behind other text.
        assert [one for one in unsure if not one[1].startswith("text[")] == []

    check()
    if is_short:  # the other two show all views
        return
    press(page, "g")
    expect(page.locator(".tile img").last).to_be_visible()
    page.locator(".tile").nth(2).click()
    check()
    page.keyboard.press("Escape")
    page.locator("#to-groups").click()
    expect(page.locator("#new-name")).to_be_visible()
    check()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    fake.failures = [503]
    press(page, "1", "/")
    expect(page.locator("#notice")).to_be_visible()
    check()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    check()


@pytest.mark.parametrize("locale", ["en", "zh"])
def test_a_phone_needs_no_sideways_scrolling(visit, teach, locale: str) -> None:
    long = "Donaudampfschifffahrtsgesellschaft" * 3
    fake, url = teach([f"{'IMG_20261124' * 8}.jpg", *PATHS[1:]], [long, "b"], lang=locale)
    fake.training |= {"state": "done", "report": f"/{long}" * 3, "accuracy": 0.9}
    row = {"name": long, "labelled": 5, "recall": ESTIMATE, "is_short": True}
    fake.metrics = {**LEARNED, "classes": [row, {**row, "name": "b"}]}
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    page = visit(url, **phone)

    def check() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        small = page.locator(":is(button, input:not([type=checkbox]), select):visible").evaluate_all(TOO_SMALL)
        assert small == []

    expect(page.locator("#frame img")).to_be_visible()
    check()
    page.locator("[data-key=g]").tap()
    page.locator(".tile").nth(1).tap()
    expect(page.locator(".tile[aria-pressed=true]")).to_have_count(23)
    check()
    page.locator(".class").nth(1).tap()
    wait_for(page, lambda: len(fake.labels) == 23)
    page.locator("#to-groups").tap()
    expect(page.locator("#new-name")).to_be_visible()
    check()


def test_stores_may_be_forbidden(visit, teach) -> None:
    fake, url = teach()
    page = visit(url, lambda page: page.add_init_script(FORBID))
    press(page, "1", "2")
    wait_for(page, lambda: len(fake.labels) == 2)
