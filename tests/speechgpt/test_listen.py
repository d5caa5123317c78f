"""The page of held-out recordings: what is drawn, what is right, and HTML that holds everything itself."""

import base64
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import soundfile

from speechgpt.cli import main
from speechgpt.data.files import write_jsonl
from speechgpt.data.qa_file import QuestionAnswer
from speechgpt.data.rows import Utterance, write_manifest

pytest.importorskip("matplotlib")
pytest.importorskip("jiwer")

from speechgpt.listen import level, mp3, right_answers, spread  # noqa: E402
from speechgpt.listen_page import Clip, Item, Line, Section, render  # noqa: E402
from speechgpt.picture import HEIGHT, WIDTH, draw_sound  # noqa: E402
from speechgpt.right_answers import is_right  # noqa: E402

VOID = {"meta", "img", "br"}
ORDER = "coffeeDrink=mocha; size=large"
ROWS = [
    Utterance("say <1>", "a.wav", 0.7, "ann", "toy", 'no less <b>"moss"</b> & more', "test"),
    Utterance("say2", "b.wav", 0.8, "ann", "toy", "see me soon", "test"),
    Utterance("7_ann_0", "c.wav", 0.4, "ann", "digits", "seven", "test"),
    Utterance("order", "a.wav", 0.7, "", "coffee", "", "test", ORDER),
    Utterance("heard before", "b.wav", 0.8, "bob", "toy", "men lean low", "train"),
    Utterance("long", "b.wav", 800.0, "bob", "toy", "men lean low", "test"),
]


class Page(HTMLParser):
    """Fails on tags that do not match; gathers the texts, the media and the links."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.media: list[tuple[str, str]] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert len(found) == len(attrs) and tag not in ("script", "link", "iframe")
        if tag not in VOID:
            self.open.append(tag)
        if "src" in found:
            self.media.append((tag, found["src"]))
        if "id" in found:
            assert found["id"] not in self.ids
            self.ids.add(found["id"])
        if "href" in found:
            self.links.add(found["href"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, make_tone):
    folder = tmp_path_factory.mktemp("heard")
    for name, seconds, rate in (("a", 0.7, 16_000), ("b", 0.8, 22_050), ("c", 0.4, 8_000)):
        soundfile.write(folder / f"{name}.wav", make_tone(seconds, 120, rate), rate)
    write_manifest(folder / "manifest.jsonl", ROWS)
    return folder / "manifest.jsonl"


def listen(model, manifest, out, *more) -> int:
    given = ["--model", model, "--manifest", manifest, "--rows", "2", "--out", out, *more]
    return main(["listen", *map(str, given)])


def test_one_page_holds_everything(tiny_model, manifest, tmp_path, capsys):
    out = tmp_path / "new folder" / "index.html"
    assert listen(tiny_model, manifest, out) == 0
    printed, err = capsys.readouterr()
    assert err == "" and str(out) in printed and "0 of 2 answered right" in printed
    text = out.read_text()
    page = Page(text)
    assert page.ids == {"Turns", "Resynthesis", "Speak", "Transcribe"}
    assert page.links == {f"#{name}" for name in page.ids}
    kinds = {"img": "data:image/webp;base64,", "audio": "data:audio/mpeg;base64,"}
    assert all(source.startswith(kinds[tag]) for tag, source in page.media)
    for source in (source for tag, source in page.media if tag == "audio"):
        assert soundfile.info(BytesIO(base64.b64decode(source.partition(",")[2]))).duration > 0
    # 2 turns, 2 sentences as three sounds and as two, 2 transcripts; random weights may say nothing.
    silent = text.count("nothing was said")
    assert len(page.media) == 2 * (2 * 2 + 2 * 3 + 2 * 2 + 2 - silent) and silent <= 4
    assert "http" not in text and "url(" not in text and str(manifest.parent) not in text
    assert 'no less <b>"moss"</b> & more' in page.texts and "a large mocha" in page.texts
    assert "toy · ann · say <1>" in page.texts and "<p>Held-out recordings, and what" in text
    assert "peaks do not let them" in text  # a click stays softer than the rest
    assert not {"men lean low", "heard before", "long"} & set(page.texts)


def test_the_same_seed_gives_the_same_page(tiny_model, manifest, tmp_path):
    for name in ("one", "two"):
        assert listen(tiny_model, manifest, tmp_path / name, "--split", "train", "--seed", "3") == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    text = (tmp_path / "one").read_text()
    assert "answered right" not in text  # nobody knows what is right
    assert "Recordings of the train split, and" in text and "eld-out" not in text


def test_bad_input_is_one_line(tiny_model, manifest, tmp_path, capsys):
    def complaint(*given) -> str:
        assert listen(*given) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err

    page = tmp_path / "page.html"
    assert "no rows of split 'dev'" in (err := complaint(tiny_model, manifest, page, "--split", "dev"))
    assert "5 of test, 1 of train" in err
    assert "unknown model 'nobody'" in complaint("nobody", manifest, page)
    assert "none.jsonl: no such file" in complaint(tiny_model, tmp_path / "none.jsonl", page)
    assert "is a folder" in complaint(tiny_model, manifest, tmp_path)
    assert "--rows is 0" in complaint(tiny_model, manifest, page, "--rows", "0")
    gone = tmp_path / "gone.jsonl"
    write_manifest(gone, [Utterance("x", "gone.wav", 1.0, text="see me soon", split="test")])
    assert "gone.wav: no such file" in complaint(tiny_model, gone, page)
    assert not page.exists()


def test_questions_say_what_is_right(tiny_model, manifest, tmp_path, capsys):
    write_jsonl(tmp_path / "qa.jsonl", [{"id": "say2", "question": "see me soon", "answer": "no lawn"}])
    assert (
        listen(tiny_model, manifest, tmp_path / "p.html", "--qa", tmp_path / "qa.jsonl", "--rows", "3") == 0
    )
    assert "of 3 answered right" in capsys.readouterr().out
    assert "no lawn" in Page((tmp_path / "p.html").read_text()).texts


def test_right_answers():
    asks = QuestionAnswer("q1", "see me soon", "No lawn!", question_id="say2")
    known = right_answers(ROWS, [asks])
    assert known == {
        "say2": "No lawn!",
        "7_ann_0": "you said seven",
        "order": "okay here is your order a large mocha",
    }
    rows = {row.id: row for row in ROWS}

    def right(name: str, answer: str) -> bool:
        return is_right(rows[name], known[name], answer)

    assert right("order", "Sure, one large mocha.") and right("order", known["order"])
    assert not right("order", "a large mocha with milk") and not right("order", "a mocha")
    assert right("7_ann_0", "You said 7.") and not right("7_ann_0", "seven")  # as the report counts them
    assert right("say2", "no lawn") and not right("say2", "no lawn here")
    other = Utterance("light", "a.wav", 1.0, text="turn on the light", slots="state=on")
    assert right_answers([other], []) == {}


def test_every_corpus_takes_its_turn():
    rows = [
        (Utterance(f"{c}{n}", "x.wav", 1.0, corpus=c), None)
        for c, many in ("a1", "b9", "c9")
        for n in range(int(many))
    ]
    drawn = spread(rows, 7, seed=0)
    assert [row.corpus for row, _ in drawn] == ["a", "b", "b", "b", "c", "c", "c"]
    assert drawn == spread(rows[::-1], 7, seed=0) != spread(rows, 7, seed=1)
    assert len(spread(rows, 100, seed=0)) == 19


def test_sounds_and_pictures(make_tone):
    tone = make_tone(0.5)
    for loudness in (0.001, 0.9):
        assert np.sqrt(np.mean(level(loudness * tone) ** 2)) == pytest.approx(0.08, rel=1e-3)
    click = np.zeros(16_000, np.float32)
    click[100] = 0.5
    assert np.abs(level(click)).max() == pytest.approx(0.95)
    assert not level(np.zeros(10, np.float32)).any() and not len(level(np.zeros(0, np.float32)))
    for rate, kept in ((22_050, 22_050), (20_000, 16_000)):
        found = soundfile.info(BytesIO(mp3(make_tone(0.5, rate=rate), rate)))
        assert (found.samplerate, found.format) == (kept, "MP3") and found.duration == pytest.approx(
            0.5, abs=0.1
        )
    from PIL import Image

    for waveform in (tone, tone[:320]):
        image = Image.open(BytesIO(draw_sound(waveform, 16_000, 1.0)))
        assert (image.format, image.size) == ("WEBP", (WIDTH, HEIGHT))


def test_silence_and_markup_have_a_place_on_the_page():
    item = Item("a & b", [Line("heard", "<script>\n'\"", False, "1 < 2")], [Clip("spoken 'answer'")])
    page = Page(render("<t>", {"model": "<m>"}, [Section("Turns", "x < y", [item])], "Recordings & more"))
    assert "<script> '\"" in page.texts and "1 < 2" in page.texts and not page.media
    assert "spoken 'answer' · nothing was said" in page.texts and "wrong" in page.texts
