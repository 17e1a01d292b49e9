"""`fieldmark teach` as people start it: each answer is on the disk before it is acknowledged, whatever happens next."""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image
from served import Served, teaching
from teach_clients import KINDS, SIZE, Client, draw_images, journal, kind_of, prepare

from fieldmark.core.io import read_csv
from fieldmark.data.readers import read_catalog
from fieldmark.pipeline.teaching.journal import JOURNAL_FILE, Journal

ESTIMATE = {"share", "low", "high", "n"}
METRICS = {
    *("labelled", "unlabelled", "excluded", "skipped", "accuracy", "coverage", "selective_accuracy", "expected_gain"),
    *("next_labels", "classes", "history", "suspicious"),
}
STATE = {
    *("lang", "name", "folder", "classes", "metrics", "reading", "training", "labels_file", "decisions_file"),
}
QUESTION = {"id", "path", "reason", "purpose", "proposal", "confidence", "top", "label", "others"}
TRAINING = {"state", "line", "seconds", "folder", "report", "accuracy"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("teach") / "shapes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the session of `server`."""
    return tmp_path_factory.mktemp("teach") / "session"


@pytest.fixture(scope="module")
def server(images: Path, folder: Path) -> Iterator[Served]:
    """One for all tests that do not end it; it reads the images with the network."""
    with teaching(images, folder) as served:
        yield served


@pytest.fixture(scope="module")
def prepared(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session without answers, to be copied; its server starts without a network."""
    return prepare(images, tmp_path_factory.mktemp("teach") / "prepared")


@pytest.fixture
def session(prepared: Path, tmp_path: Path) -> Path:
    """A session of the test's own."""
    return shutil.copytree(prepared, tmp_path / "session")


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    """Always of one author, since what one was asked about nobody else is; the answers of a test are taken back."""
    one = Client(server.url)
    yield one
    while one.undo()["undone"]:
        pass


def labels_of(folder: Path) -> dict[str, str]:
    """labels.csv: name of the image -> class."""
    return {Path(row["path"]).name: row["label"] for row in read_csv(folder / "labels.csv")}


def wait_for(condition: Callable[[], Any], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- the routes


def check_estimate(value: dict[str, Any]) -> None:
    assert set(value) == ESTIMATE and isinstance(value["n"], int)
    assert (value["share"] is None) == (value["n"] == 0)
    assert (
        0 <= value["low"] <= (value["share"] or 0) + 1e-9 and (value["share"] or 0) <= value["high"] + 1e-9 <= 1 + 1e-9
    )


def check_question(value: dict[str, Any]) -> None:
    assert set(value) == QUESTION
    assert value["reason"] in ("random", "uncertain", "new", "suspicious", "duplicates")
    assert value["purpose"] in ("train", "test")
    assert (value["proposal"] is None) == (value["confidence"] is None) == (value["top"] == [])
    assert len(value["top"]) <= 5
    for name, p in value["top"]:
        assert isinstance(name, str) and 0 <= p <= 1
    for other in value["others"]:
        assert set(other) == {"id", "path", "label"}


def check_metrics(metrics: dict[str, Any]) -> None:
    assert set(metrics) == METRICS
    check_estimate(metrics["accuracy"])
    check_estimate(metrics["selective_accuracy"])
    for one in metrics["classes"]:
        assert set(one) == {"name", "labelled", "recall", "is_short"} and isinstance(one["is_short"], bool)
        check_estimate(one["recall"])
    assert all(set(point) == {"labelled", "accuracy"} for point in metrics["history"])


def test_the_state(client: Client, folder: Path, images: Path):
    state = client.state()
    assert set(state) == STATE
    check_metrics(state["metrics"])
    assert state["lang"] == "en" and state["name"] == "shapes" and state["folder"] == str(folder)
    assert state["reading"] == {"done": 48, "total": 48}
    assert set(state["training"]) == TRAINING and state["training"]["state"] == "none"
    assert state["labels_file"] == str(folder / "labels.csv") and state["decisions_file"] is None
    metrics = state["metrics"]
    assert sum(metrics[name] for name in ("labelled", "unlabelled", "excluded", "skipped")) == 48


def test_questions_are_no_others_than_asked_for(client: Client):
    first = client.next(5)
    assert len({one["id"] for one in first}) == 5
    for one in first:
        check_question(one)
    held = [one["id"] for one in first]
    assert not {one["id"] for one in client.next(5, after=held)} & set(held)
    # Near-duplicates of test images are never asked about.
    assert 40 <= len(client.next(50)) <= 48 - client.state()["metrics"]["labelled"]
    assert client.next(3, after=[10**6]) != []  # which an earlier server knew


def test_an_answer_is_recorded_before_it_is_acknowledged(client: Client, folder: Path):
    (question,) = client.next()
    reply = client.label(question, "  a   disc ", next=2)
    assert set(reply) == {"numbers", "questions", "metrics", "classes"}
    lines = journal(folder)
    last = {name: lines[-1][name] for name in ("path", "action", "label", "author", "purpose")}
    assert last == {
        "path": question["path"],
        "action": "label",
        "label": "a disc",
        "author": client.author,
        "purpose": question["purpose"],
    }
    assert abs(lines[-1]["time"] - time.time()) < 60
    assert reply["numbers"] == [len(lines) - 1] and "a disc" in reply["classes"]
    check_metrics(reply["metrics"])
    assert len(reply["questions"]) == 2 and question["id"] not in {one["id"] for one in reply["questions"]}
    for one in reply["questions"]:
        check_question(one)
    wait_for(lambda: labels_of(folder).get(question["path"]) == "a disc", 5)


def test_answers_are_all_recorded_or_none(client: Client, folder: Path):
    some, before = client.next(3), len(journal(folder))
    good = [{"id": one["id"], "action": "label", "label": "x"} for one in some]
    for bad in ({"id": 10**6, "label": "x"}, {"id": some[0]["id"], "label": " "}, {"id": some[0]["id"]}):
        status = 404 if bad["id"] == 10**6 else 422
        assert "error" in client.answer(*good, {"action": "label", **bad}, status=status)
    assert len(journal(folder)) == before


def test_exclude_and_skip(client: Client, folder: Path):
    (a, b), before = client.next(2), client.state()["metrics"]
    client.answer({"id": a["id"], "action": "exclude"})
    metrics = client.answer({"id": b["id"], "action": "skip"})["metrics"]
    assert (metrics["excluded"], metrics["skipped"]) == (before["excluded"] + 1, before["skipped"] + 1)
    rest = client.next(50)
    assert rest[-1]["id"] == b["id"] and a["id"] not in {one["id"] for one in rest}  # it comes again, at the end


def test_undo_takes_back_all_of_a_request_and_only_ones_own(client: Client, server: Served, folder: Path):
    (a, b, c), other = client.next(3), Client(server.url, "somebody else")
    client.label(a, "x")
    client.answer(*({"id": one["id"], "action": "label", "label": "x"} for one in (b, c)))
    assert other.undo() == {"undone": None, "questions": [], **{k: client.state()[k] for k in ("metrics", "classes")}}
    reply = client.undo()
    assert set(reply) == {"undone", "questions", "metrics", "classes"}
    assert reply["undone"] == {"ids": [b["id"], c["id"]]}
    (question,) = reply["questions"]
    check_question(question)
    assert question["id"] == b["id"] and question["label"] is None
    assert client.undo()["undone"] == {"ids": [a["id"]]} and client.undo()["undone"] is None
    wait_for(lambda: not {one["path"] for one in (a, b, c)} & set(labels_of(folder)), 5)
    client.label(a, "x")
    assert client.label(a, "y")["metrics"] and client.undo()["questions"][0]["label"] == "x"  # what it was before


def test_a_repeated_request_does_nothing_twice(client: Client, folder: Path):
    a, b = client.next(2)
    client.label(b, "x")
    first = client.label(a, "x", key="k1")
    n = len(journal(folder))
    again = client.label(a, "x", key="k1")
    assert again["numbers"] == first["numbers"] and len(journal(folder)) == n
    assert client.undo(key="k2")["undone"] == {"ids": [a["id"]]}
    assert client.undo(key="k2")["undone"] == {"ids": [a["id"]]} and len(journal(folder)) == n + 1
    assert client.undo()["undone"] == {"ids": [b["id"]]}
    assert client.undo(key="k1")["undone"] is None  # the key of an answer is none of an undo


def test_groups_are_of_one_kind(client: Client):
    groups = client.ask("GET", "/groups?n=6")["groups"]
    assert 3 <= len(groups) <= 6
    sizes = [len(group["images"]) for group in groups]
    assert sizes == sorted(sizes, reverse=True) and len({i["id"] for g in groups for i in g["images"]}) == sum(sizes)
    assert all(set(image) == {"id", "path"} for group in groups for image in group["images"])
    pure = [len({kind_of(image) for image in group["images"]}) == 1 for group in groups]
    assert sum(pure) >= len(groups) - 1


def test_similar_images_are_of_one_kind(client: Client):
    for kind in KINDS:
        image = next(one for one in client.next(50) if kind_of(one) == kind)
        found = client.ask("GET", f"/similar?id={image['id']}&n=6")["images"]
        assert all(set(one) == {"id", "path", "proposal", "confidence"} for one in found)
        assert found[0]["id"] == image["id"] and len({one["id"] for one in found}) == 6
        assert sum(kind_of(one) == kind for one in found) >= 5


def test_images_have_the_size_that_is_asked_for(client: Client, images: Path):
    (image,) = client.next()
    for size in (64, 100, 800, 1600):
        response = client.send("GET", f"/image?id={image['id']}&size={size}")
        assert response.status_code == 200 and response.headers["content-type"] == "image/jpeg"
        opened = Image.open(io.BytesIO(response.content))
        assert max(opened.size) == min(size, max(SIZE))
    for wrong in ("size=63", "size=1601", "size=x", "size="):
        assert client.send("GET", f"/image?id={image['id']}&{wrong}").status_code == 422
    assert client.send("GET", "/image?id=48").status_code == 404


def test_classes_in_chinese(client: Client, folder: Path):
    (question,) = client.next()
    assert client.label(question, "划痕，深")["classes"][-1] == "划痕，深"
    assert journal(folder)[-1]["label"] == "划痕，深" and "划痕，深" in client.state()["classes"]
    assert '"划痕，深"'.encode() in (folder / JOURNAL_FILE).read_bytes()  # people can read it
    wait_for(lambda: labels_of(folder).get(question["path"]) == "划痕，深", 5)


def test_it_learns(client: Client):
    """After 24 true answers it predicts the others; test images have no proposal."""
    (question,) = client.next()
    reply: dict[str, Any] = {}
    for _ in range(24):
        if question["reason"] == "random":
            assert question["proposal"] is None and question["purpose"] == "test"
        reply = client.label(question)
        (question,) = reply["questions"]
    wait_for(lambda: client.state()["metrics"]["accuracy"]["n"] >= 3)
    assert client.state()["metrics"]["accuracy"]["share"] > 0.5
    wait_for(lambda: all(one["proposal"] for one in client.next(4) if one["reason"] == "uncertain"))
    rest = [one for one in client.next(12) if one["proposal"]]
    assert sum(one["proposal"] == kind_of(one) for one in rest) >= 0.7 * len(rest)


# ---- the life of a session


def test_two_people_are_asked_about_different_images(images: Path, session: Path):
    with teaching(images, session, "--ignore-labels") as served:
        one, other = Client(served.url), Client(served.url, "the other")
        assert not {a["id"] for a in one.next(6)} & {b["id"] for b in other.next(6)}
        (a,), (b,) = one.next(), other.next()
        for _ in range(4):
            assert a["id"] != b["id"]
            (a,), (b,) = one.label(a)["questions"], other.label(b)["questions"]
        assert one.undo()["undone"] != other.undo()["undone"] != {"ids": []}
        assert one.label(a, "x", key="k")["numbers"] and one.undo(key="u")["undone"]
    with teaching(images, session, "--ignore-labels") as served:  # requests whose responses were lost
        again, n = Client(served.url), len(journal(session))
        assert again.label(a, "x", key="k")["numbers"] == [n - 2]
        assert again.undo(key="u")["undone"] == {"ids": [a["id"]]} and len(journal(session)) == n


def test_a_session_goes_on_in_chinese(images: Path, session: Path):
    with teaching(images, session, "--ignore-labels", "--lang", "zh") as served:
        client = Client(served.url)
        assert client.state()["lang"] == "zh"
        asked = client.next(8)
        for one in asked:
            client.label(one)
        before = client.state()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(20) in (0, 130)
    assert labels_of(session) == {one["path"]: kind_of(one) for one in asked}
    with teaching(images, session, "--ignore-labels") as served:
        client = Client(served.url)
        after = client.state()
        assert after["classes"] == before["classes"] and after["metrics"]["labelled"] == 8
        assert not {one["id"] for one in client.next(50)} & {one["id"] for one in asked}
        assert client.undo()["undone"] == {"ids": [asked[-1]["id"]]}
        served.process.terminate()
        assert served.process.wait(20) == 0
    assert len(labels_of(session)) == 7
    catalog = read_catalog(session / "labels.csv")
    assert {Path(photo.path).name: photo.label for photo in catalog.photos} == labels_of(session)


def test_an_answer_that_was_kept_is_for_the_image_that_was_seen(tmp_path: Path):
    """The page keeps answers while the server is away; images that are added meanwhile move the numbers."""
    images = draw_images(tmp_path / "images", 12)
    session = prepare(images, tmp_path / "session")
    with teaching(images, session, "--ignore-labels") as served:
        kept = Client(served.url).next(3)
    (images / "disc-00.jpg").rename(images / "a-first.jpg")
    Image.new("RGB", (99, 88), (9, 9, 200)).save(images / "b-second.jpg")
    shutil.rmtree(session / "features")
    other = prepare(images, tmp_path / "other")  # the features of the images of now
    (other / "features").rename(session / "features")
    with teaching(images, session, "--ignore-labels") as served:
        client = Client(served.url)
        for one in kept:
            reply = client.answer(
                {"id": one["id"], "path": one["path"], "action": "label", "label": kind_of(one)},
                status=404 if one["path"] == "disc-00.jpg" else 200,
            )
            assert "numbers" in reply or "have changed" in reply["error"]
    assert [line["path"] for line in journal(session)] == [o["path"] for o in kept if o["path"] != "disc-00.jpg"]


def kill_while_answering(images: Path, session: Path, seconds: float, acknowledged: dict[int, tuple[str, str]]) -> None:
    """Up to 200 answers, and a SIGKILL after a while; `acknowledged` gets number -> path and label."""
    with teaching(images, session, "--ignore-labels") as served:
        client = Client(served.url)
        names = [Path(one).name for one in sorted(os.listdir(images))]
        timer = threading.Timer(seconds, served.process.kill)
        try:
            for k in range(200):
                number, label = k % len(names), f"{random.choice(KINDS)} {k % 7}"
                (written,) = client.answer({"id": number, "label": label}, next=1)["numbers"]
                acknowledged[written] = names[number], label
                if k == 0:
                    timer.start()
        except httpx.TransportError:
            pass
        finally:
            timer.join()
    assert served.process.returncode == -signal.SIGKILL


def check_kills(images: Path, session: Path, times: int) -> None:
    acknowledged = dict[int, tuple[str, str]]()
    for _ in range(times):
        kill_while_answering(images, session, random.uniform(0.1, 1.5), acknowledged)
        found = {each.number: (each.path, each.label) for each in Journal(session).answers}
        assert {number: found[number] for number in acknowledged} == acknowledged
    assert len(found) <= len(acknowledged) + times  # written, and killed before the response
    with teaching(images, session, "--ignore-labels") as served:
        current = Journal(session).current()
        assert Client(served.url).state()["metrics"]["labelled"] == len(current)
    assert labels_of(session) == {path: answer.label for path, answer in current.items()}


def test_no_acknowledged_answer_is_lost_to_a_kill(images: Path, session: Path):
    check_kills(images, session, 2)


@pytest.mark.slow
def test_no_acknowledged_answer_is_lost_to_ten_kills(images: Path, session: Path):
    check_kills(images, session, 10)


def test_what_cannot_be_served_is_one_line(server: Served, images: Path, session: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "novel.txt").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "session.json").write_text('{"data": ')
    new, port = str(tmp_path / "new"), str(server.address[1])
    asked = {
        "missing": [str(tmp_path / "nowhere"), "--out", new],
        "has no images": [str(tmp_path / "photos"), "--ignore-labels", "--out", new],
        "is a session on other images": [str(tmp_path / "photos"), "--out", str(session)],
        "exists and is no session": [str(images), "--out", str(tmp_path / "full")],
        "in use": [str(images), "--out", new, "--port", port],
        "damaged": [str(images), "--out", str(tmp_path / "damaged")],
        "--token": [str(images), "--out", new, "--token", "é"],
        "lang": [str(images), "--out", new, "--lang", "tlh"],
    }
    command = [sys.executable, "-m", "fieldmark.cli", "teach"]
    started = [
        (text, subprocess.Popen([*command, "--port", "0", *words], stderr=subprocess.PIPE, text=True))
        for text, words in asked.items()
    ]
    for text, process in started:
        _, message = process.communicate(timeout=60)
        assert process.returncode == 2 and message.count("\n") == 1 and text in message, message
    assert not (tmp_path / "new" / "session.json").exists()


@pytest.mark.slow
def test_images_that_cannot_be_read_end_with_the_reason(tmp_path: Path):
    """None of them: the page opens, and has no question."""
    (tmp_path / "photos").mkdir()
    for k in range(3):
        (tmp_path / "photos" / f"{k}.jpg").write_bytes(b"\xff\xd8\xff not a photo")
    with teaching(tmp_path / "photos", tmp_path / "session", "--ignore-labels") as served:
        client = Client(served.url)
        assert client.state()["reading"] == {"done": 3, "total": 3}
        assert client.next(3) == [] and client.ask("GET", "/groups")["groups"] == []
        assert "cannot be read" in client.ask("GET", "/image?id=1", 422)["error"]


# ---- in a browser


def label_by_keys(page: Any, classes: list[str], n: int) -> list[tuple[str, str]]:
    """Label `n` images with the truth, as people do: by the key of the class, or by `n` and its name."""
    typed = list[tuple[str, str]]()
    for _ in range(n):
        page.locator("#frame img").wait_for()
        path = page.locator("#path").inner_text()
        kind = path.partition("-")[0]
        if kind in classes:
            page.keyboard.press(str(classes.index(kind) + 1))
        else:
            page.keyboard.press("n")
            page.keyboard.type(kind)
            page.keyboard.press("Enter")
            classes.append(kind)
        page.wait_for_function("path => document.querySelector('#path').textContent !== path", arg=path)
        typed.append((path, kind))
    return typed


def name_group(page: Any) -> list[tuple[str, str]]:
    """Untick what is not like the first image of the group, and name the class."""
    tiles = page.locator(".tile")
    tiles.first.wait_for()
    names = [tiles.nth(k).get_attribute("aria-label") for k in range(tiles.count())]
    kind = names[0].partition("-")[0]
    for k, name in enumerate(names):
        if not name.startswith(kind):
            tiles.nth(k).click()
    page.locator("#new-name").fill(kind)
    page.keyboard.press("Enter")
    wait_for(lambda: not tiles.first.is_visible() or tiles.first.get_attribute("aria-label") != names[0])
    return [(name, kind) for name in names if name.startswith(kind)]


def check_axe(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def recorded(session: Path) -> list[tuple[str, str]]:
    """(path, label) of the answers that hold, in order."""
    answers = sorted(Journal(session).current().values(), key=lambda answer: answer.number)
    return [(answer.path, answer.label or answer.action) for answer in answers]


def test_the_page_records_what_was_typed(visit: Callable[..., Any], images: Path, session: Path):
    with teaching(images, session, "--ignore-labels") as served:
        page = visit(f"{served.url}/#token=secret", reduced_motion="reduce")
        typed, classes = list[tuple[str, str]](), list[str]()
        while len(classes) < 2:  # the groups come until there are two classes
            check_axe(page)
            typed += (group := name_group(page))
            if group[0][1] not in classes:
                classes.append(group[0][1])
        typed += label_by_keys(page, classes, 7)
        check_axe(page)
        wait_for(lambda: recorded(session) == typed)
        page.reload()
        typed += label_by_keys(page, classes, 2)
        page.locator("#frame img").wait_for()
        seen = page.locator("#path").inner_text()
        page.keyboard.press("g")
        page.locator(".tile img").last.wait_for()
        check_axe(page)
        names = page.locator(".tile").evaluate_all("all => all.map(one => one.ariaLabel)")
        assert names[0] == seen
        kind = seen.partition("-")[0]
        for k, name in enumerate(names):
            if not name.startswith(kind):
                page.locator(".tile").nth(k).click()
        page.keyboard.press(str(classes.index(kind) + 1))
        wait_for(lambda: recorded(session) == typed + [(name, kind) for name in names if name.startswith(kind)])
        page.keyboard.press("u")
        wait_for(lambda: recorded(session) == typed)
        page.reload()
        page.locator("#frame img").wait_for()
        page.keyboard.press("x")
        wait_for(lambda: len(recorded(session)) == len(typed) + 1)
        assert recorded(session)[-1][1] == "exclude"
        page.keyboard.press("u")
        wait_for(lambda: recorded(session) == typed)
        assert page.locator("#counts").inner_text().split()[1] == str(len(typed))
    assert labels_of(session) == dict(typed)


def test_two_browsers_share_a_session(visit: Callable[..., Any], images: Path, session: Path):
    with teaching(images, session, "--ignore-labels", "--lang", "zh") as served:
        client = Client(served.url)
        for one in client.next(4):
            client.label(one)
        before = recorded(session)
        classes = client.state()["classes"]
        pages = [visit(f"{served.url}/#token=secret", locale=locale) for locale in ("en-US", "zh-CN")]
        typed = list[tuple[str, str]]()
        for _ in range(4):
            for page in pages:
                wait_for(lambda page=page: page.locator(".class").count() >= 3)
                typed += label_by_keys(page, classes, 1)
        assert len({path for path, _ in typed}) == len(typed) == 8
        wait_for(lambda: len(recorded(session)) == len(before) + 8)
        assert dict(recorded(session)) == dict(before + typed)
        authors = {line["author"] for line in journal(session)} - {"one"}
        assert len(authors) == 2
