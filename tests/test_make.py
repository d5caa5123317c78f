"""The Makefile: its goals, and its promises. Real files in a folder whose name has a space: a second run does
nothing, a mere touch changes nothing, and what was killed goes on and ends with the same rows.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PRESETS = ("toy", "mini", "own", "speechgpt-7b")
PIPELINE = "data encoder codebook units instruct stage1 stage2 stage3 vocoder model eval".split()
GOALS = ["help", "setup", "demo", "test", "lint", "talk", "listen", "toy", "mini", "bench", *PIPELINE]
OWN = ["PRESET=own", "CORPUS=own", "READER=librispeech", "ROOT=/a b/LibriSpeech"]
# The toy, smaller still: file -> setting -> value. Long enough that a kill lands in the middle.
TINY = {
    "corpus": {"sentences": 60, "held_out": 4},
    "encoder": {"training": {"steps": 20, "checkpoint_steps": 5, "evaluation_batches": 1}},
    "codebook": {"frames": 4000, "n_init": 1},
    # Stage 1 starts beside it: both are under way when stage 1's first checkpoint says that it is time.
    "vocoder": {"steps": 240, "warmup_steps": 230, "log_every": 20, "checkpoint_seconds": 0.3},
    "stage1": {"trainer": {"max_steps": 16, "save_steps": 4}},
    "stage2": {"trainer": {"max_steps": 8, "save_steps": 4}},
    "stage3": {"trainer": {"max_steps": 8, "save_steps": 4}},
    "eval": {"asr_rows": 2, "tts_rows": 1, "resynthesis_rows": 1, "unit_rows": 4, "turn_rows": 1},
}
# Every command of the rows' making once more, without make and without a kill; folder and data/tasks follow.
REFERENCE = """
import sys
from speechgpt.cli import main
config, out = sys.argv[1], sys.argv[2]
for line in f'''
toy-corpus --config {config}/corpus.yaml --out {out}/data
pretrain --config {config}/encoder.yaml --manifest {out}/data/manifest.jsonl --out {out}/encoder
codebook --config {config}/codebook.yaml --encoder {out}/encoder --manifest {out}/data/manifest.jsonl --out {out}/codebook.safetensors
units --encoder {out}/encoder --codebook {out}/codebook.safetensors --manifest {out}/data/manifest.jsonl --out {out}/units.jsonl
instruct --config {config}/instruct.yaml --units {out}/units.jsonl --chat {out}/data/qa.jsonl --out {out}/instruct.jsonl
chain --config {config}/chain.yaml --qa {out}/data/qa.jsonl --units {out}/units.jsonl --out {out}/chain.jsonl
'''.strip().splitlines():
    if code := main(line.split()):
        sys.exit(code)
"""  # noqa: E501


def copied(folder: Path) -> Path:
    """The repository's files in `folder`, and this test's own environment as its .venv."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    if shutil.which("make") is None or not (Path(sys.prefix) / "bin" / "speechgpt").exists():
        pytest.skip("needs make, and the package installed in a virtual environment")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("speechgpt/models/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    venv = folder / ".venv"
    venv.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".setup":
            (venv / entry.name).symlink_to(entry)
    (venv / ".setup").touch()  # newer than pyproject.toml: nothing is installed
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    return copied(tmp_path_factory.mktemp("make") / "a clone")


def environment() -> dict[str, str]:
    """Without what a `make test` around this test would pass on."""
    ours = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PRESET", "PARITY", "SPEECHGPT_PARITY")
    return {k: v for k, v in os.environ.items() if k not in ours}


def make(house: Path, *arguments: str, code: int | None = 0) -> str:
    """Standard output of make; its exit code is checked."""
    found = subprocess.run(
        ["make", *arguments], cwd=house, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert code is None or found.returncode == code, f"{found.stdout[-2000:]}\n{found.stderr[-4000:]}"
    return found.stdout if code == 0 else found.stderr


def planned(house: Path, *arguments: str) -> list[str]:
    """The commands that make would run, without .venv/bin/ and continued lines joined."""
    lines = make(house, "-n", *arguments).replace("\\\n", "").splitlines()
    return [" ".join(line.split()).replace(".venv/bin/", "") for line in lines if "cmp -s" not in line]


def test_help_lists_every_goal(house):
    listed = {line.split()[1] for line in make(house, "help").splitlines() if line.startswith("  make ")}
    assert listed == set(GOALS)


def test_the_judge_is_installed_and_required_on_request_alone(house):
    plain, judged = planned(house, "test"), planned(house, "test", "PARITY=1")
    assert not [line for line in plain if "fairseq" in line or "PARITY" in line]
    assert [line for line in judged if "-c constraints.txt -e '.[train,judge,dev,fairseq]'" in line]
    assert judged[-1].startswith("SPEECHGPT_PARITY=1 ") and "-rfEs" in plain[-1].split()
    (house / ".venv" / ".setup-parity").touch()
    assert not [line for line in planned(house, "test", "PARITY=1") if "install" in line]  # once is enough


@pytest.mark.parametrize("preset", PRESETS)
def test_every_goal_has_a_plan(house, preset):
    for goal in GOALS:
        plan = planned(house, goal, f"PRESET={preset}", "IN=question.wav")
        assert plan, goal
        assert not [line for line in plan if "work//" in line or "km/" in line], goal


@pytest.mark.parametrize("goal", PIPELINE)
def test_every_stage_of_an_own_corpus_has_a_plan(house, goal):
    plan = planned(house, goal, *OWN, "QA=data/CORPORA.md")
    read = 'speechgpt manifest --reader librispeech --root "/a b/LibriSpeech"'
    assert [line for line in plan if line.startswith(read)]
    assert all("work/own/own" in line for line in plan)
    asked = [line for line in plan if line.startswith("speechgpt qa-sentences")]
    assert len(asked) == (goal not in ("data", "encoder", "codebook", "units", "vocoder"))


def test_the_settings_reach_the_commands(house):
    toy = "\n".join(planned(house, "units", "PRESET=toy", "K=7"))
    assert "s/^k:.*/k: 7/" in toy and "work/toy/toy/km7/units.jsonl" in toy
    (house / "hubert").mkdir()
    (house / "hubert" / "config.json").touch()
    plan = planned(house, "stage3", *OWN, "ENCODER=hubert", "LLAMA=/l l/llama", "QA=data/CORPORA.md",
                   "TORCHRUN=torchrun --nproc_per_node 2")  # fmt: skip
    assert not [line for line in plan if "pretrain" in line]
    assert [line for line in plan if line.startswith('speechgpt units --encoder "hubert"')]
    assert [line for line in plan if "init-lm" in line and '--base "/l l/llama"' in line]
    stages = [line for line in plan if " train --config" in line]
    assert len(stages) == 3
    assert all(s.startswith("torchrun --nproc_per_node 2 -m speechgpt.cli train") for s in stages)
    # Fresh weights see text in stage 1, a LLaMA has seen it.
    assert not [line for line in stages if "/manifest.jsonl" in line]
    assert [line for line in planned(house, "stage1", "PRESET=toy") if "train" in line and "--mix" in line]


def test_prose_reaches_the_texts_the_tokenizer_and_stage_1(house):
    for name in ("recordings/manifest.tsv", "books/whale.txt"):
        (house / name).parent.mkdir(exist_ok=True)
        (house / name).touch()
    where = ("PRESET=mini", "SPEECH=recordings", "CORPUS=read")
    config = house / "speechgpt" / "presets" / "mini" / "corpus.yaml"
    shipped = config.read_text()
    try:
        config.write_text(shipped.replace("prose_text: 0", "prose_text: 7"))
        plan = planned(house, "eval", *where, "PROSE=books")
    finally:
        config.write_text(shipped)
    (corpus,) = [line for line in plan if line.startswith("speechgpt mini-corpus")]
    assert "perturbed/manifest.jsonl --prose books --out work/mini/read/texts" in corpus
    reading = [line for line in plan if "work/mini/read/texts/text.jsonl" in line]
    assert [line.split()[1] for line in reading] == ["tokenizer", "train"] and "stage1.yaml" in reading[1]
    plan = planned(house, "data", *where)
    usual = "--prose data/text/prose /usr/share/wordnet books --out"
    assert [line for line in plan if usual in line and "text.jsonl" not in line]
    novels = planned(house, "data", *where, "BOOKS=novels")
    assert [line for line in novels if "/usr/share/wordnet novels --out" in line]


def test_mini_hears_no_disturbed_copies_and_trains_its_encoder_three_times_and_once_a_fold(house):
    (house / "recordings").mkdir(exist_ok=True)
    (house / "recordings" / "manifest.tsv").touch()
    plan = planned(house, "mini", "SPEECH=recordings", "GPUS=4", "CORPUS=all")
    heard, whole = (f"work/mini/all/{name}.jsonl" for name in ("heard", "data/manifest"))
    (merged,) = {
        line for line in plan if line.startswith("speechgpt merge") and line.endswith(f"--out {heard}")
    }
    assert "perturbed" not in merged
    fold = "work/mini/all/km256/folds"
    encoders = [line for line in plan if " pretrain " in line and fold not in line]
    assert encoders and all(heard in line and whole not in line for line in encoders)
    assert encoders[0].startswith("torchrun --nproc_per_node 4")
    last = plan[-1]
    assert last.startswith("speechgpt eval") and "km256/model" in last
    first, second, third = dict.fromkeys(line.split(" --out ")[1] for line in encoders)
    assert (first, second) == ("work/mini/all/encoder", "work/mini/all/km256/refined")
    assert third == "work/mini/all/km256/encoder"
    refined = next(line for line in encoders if line.endswith(second))  # a plan repeats what is not made yet
    assert refined.startswith("speechgpt") and "--init work/mini/all/encoder" in refined
    assert "--teacher-codebook work/mini/all/km256/fitted.safetensors" in refined
    later = [
        line
        for line in plan
        if line.startswith(("speechgpt units", "speechgpt assemble")) and fold not in line
    ]
    assert later and all(f'--encoder "{third}"' in line for line in later)
    voices = next(line for line in encoders if line.endswith(third))
    assert voices.startswith("torchrun --nproc_per_node 4") and f"--init {second}" in voices
    assert "--steps" not in refined + voices  # the presets' own, with four GPUs
    alone = planned(house, "mini", "SPEECH=recordings", "CORPUS=all")
    assert refined in alone and not [line for line in alone if "torchrun" in line]
    slow = next(line for line in alone if " pretrain " in line and line.endswith(third))
    recipe = yaml.safe_load((ROOT / "speechgpt" / "presets" / "mini" / "voices.yaml").read_text())["training"]
    assert f"--init {second}" in slow and f"--steps {4 * recipe['steps']} " in slow
    (copies,) = {line for line in plan if "perturb-spoken.yaml --manifest" in line}
    assert "--manifest work/mini/all/spoken/manifest.jsonl --out work/mini/all/spoken/perturbed" in copies
    rows = "work/mini/all/km256"
    rounds = list(dict.fromkeys(line for line in plan if f"train --config {rows}/round-" in line))
    for number, (line, before) in enumerate(zip(rounds, ("llm", "round-1", "round-2"), strict=True), 1):
        # In one process, whose packs fill a GPU.
        assert line.startswith(
            f"speechgpt train --config {rows}/round-{number}.yaml --model {rows}/{before} "
        )
        assert line.endswith(f"--mix {rows}/instruct.jsonl --out {rows}/round-{number}")
        config = f"work/mini/all/config/round.yaml > {rows}/round-{number}.yaml"
        assert f"mkdir -p {rows}; sed 's/^seed:.*/seed: {number}/' {config}" in plan
    three = " ".join(f"{rows}/round-{number}" for number in (1, 2, 3))
    assert f"speechgpt average {three} --out {rows}/round" in plan
    assert any("assemble" in line and f"--llm {rows}/round " in line for line in later)
    stage3 = next(line for line in plan if "stage3.yaml --model" in line)
    assert "km256/chain.jsonl work/mini/all/km256/chain-typed.jsonl --mix" in stage3


def test_the_language_model_of_mini_learns_from_units_of_what_their_encoder_has_not_heard(house):
    (house / "recordings").mkdir(exist_ok=True)
    (house / "recordings" / "manifest.tsv").touch()
    mini = ("PRESET=mini", "SPEECH=recordings", "CORPUS=parted")
    corpus, rows = "work/mini/parted", "work/mini/parted/km256"
    plan = planned(house, "mini", *mini[1:], "GPUS=4")
    step = plan.index("make --no-print-directory folds PRESET=mini TORCHRUN=")
    trained = [line for line in plan[step : step + 60] if f"--out {rows}/folds/encoder-" in line][:4]
    for number, line in enumerate(trained):
        assert line == (
            f"speechgpt pretrain --config {corpus}/config/fold-encoder.yaml "
            f"--manifest {corpus}/folds/heard-{number}.jsonl --teacher {rows}/encoder "
            f"--teacher-codebook {rows}/codebook.safetensors --device auto "
            f"--out {rows}/folds/encoder-{number}"
        )  # in one process, and from fresh weights
    assert len(trained) == 4
    plan = planned(house, "stage2", *mini)
    (folds,) = [line for line in plan if line.startswith("speechgpt folds")]
    assert (
        f"--heard {corpus}/heard.jsonl --manifest {corpus}/data/manifest.jsonl --out {corpus}/folds" in folds
    )
    units = [line for line in plan if line.startswith("speechgpt units") and "/folds/" in line]
    assert len(units) == 4
    for number, line in enumerate(units):
        own = f"{rows}/folds/encoder-{number}"
        assert f"--encoder {own} --codebook {own}/codebook.safetensors " in line
        assert f"--manifest {corpus}/folds/unheard-{number}.jsonl " in line
    (joined,) = [line for line in plan if line.startswith("speechgpt merge --first")]
    unheard = " ".join(f"{rows}/folds/units-{n}.jsonl" for n in range(4))
    parts = f"{unheard} {rows}/units.jsonl {rows}/selected.jsonl"
    assert joined == f"speechgpt merge --first {parts} --out {rows}/lm-units.jsonl"
    (selection,) = [line for line in plan if line.startswith("speechgpt unit-selection")]
    assert f"--donors {unheard} {rows}/units.jsonl --manifest {corpus}/data/manifest.jsonl " in selection
    (chain,) = [line for line in planned(house, f"{rows}/chain.jsonl", *mini) if "config/chain.yaml" in line][
        -1:
    ]
    (instruct,) = [line for line in plan if line.startswith("speechgpt instruct")]
    assert all(f"--units {rows}/lm-units.jsonl " in line for line in (instruct, chain))
    (stage1,) = [line for line in plan if "config/stage1.yaml --model" in line]
    (vocoder,) = [line for line in planned(house, "vocoder", *mini) if line.startswith("speechgpt vocoder")]
    assert f"--data {rows}/units.jsonl " in stage1 and f"--units {rows}/units.jsonl " in vocoder
    # Without folds.yaml, or with an encoder that is given, there are none.
    config = house / "speechgpt" / "presets" / "mini" / "folds.yaml"
    shipped = config.read_text()
    config.unlink()
    try:
        plain = planned(house, "stage2", *mini)
    finally:
        config.write_text(shipped)
    (house / "given").mkdir()
    (house / "given" / "config.json").touch()
    for found in (plain, planned(house, "stage2", *mini, "ENCODER=given")):
        assert not [line for line in found if "folds" in line or "lm-units" in line]
        assert [line for line in found if f"instruct.yaml --units {rows}/units.jsonl " in line]


def test_the_recipe_of_the_last_encoder_step_is_what_made_the_shipped_one():
    package = ROOT / "speechgpt"
    made = json.loads((package / "models" / "mini" / "encoder" / "encoder.json").read_text())["provenance"]
    recipe = yaml.safe_load((package / "presets" / "mini" / "voices.yaml").read_text())["training"]
    assert (made["metrics"]["steps"], made["metrics"]["processes"]) == (recipe["steps"], 4)


def test_stages_1_and_2_need_no_questions(house):
    plan = planned(house, "stage2", *OWN)
    assert [line for line in plan if line.startswith("speechgpt instruct")]
    assert [line for line in planned(house, "stage3", *OWN) if "give QA=" in line]


def test_listening_needs_recordings_and_no_corpus(house):
    speech = house / "speech"
    speech.mkdir()
    (speech / "manifest.tsv").touch()
    plan = planned(house, "listen", "PRESET=mini", "CORPUS=heard", "SPEECH=speech", "TALKER=a model")
    assert plan[-1].startswith(
        'speechgpt listen --model "a model" --manifest work/mini/heard/speech/split.jsonl'
    )
    assert not [line for line in plan if "align" in line or "mini-corpus" in line]
    made = house / "work" / "own" / "heard" / "data" / "manifest.jsonl"
    made.parent.mkdir(parents=True)
    made.touch()
    [line] = planned(house, "listen", "PRESET=own", "CORPUS=heard")
    assert line.endswith(
        " --manifest work/own/heard/data/manifest.jsonl --device auto --out work/listen/index.html"
    )
    assert "give SPEECH=folder" in make(house, "listen", "PRESET=own", "CORPUS=unheard", code=2)


def test_what_people_say_is_no_question_of_the_presets(house):
    """The toy has a question-answer file of its own; --qa is for those of the recordings."""
    own = house / "work" / "toy" / "asked" / "data"
    own.mkdir(parents=True)
    for path in (own / "qa.jsonl", own / "manifest.jsonl", house / "mine.jsonl"):
        path.touch()
    toy = ["listen", "PRESET=toy", "CORPUS=asked"]
    assert "--qa work/toy/asked/data/qa.jsonl" in planned(house, *toy)[-1]
    (house / "people").mkdir()
    (house / "people" / "manifest.tsv").touch()
    assert "--qa" not in planned(house, *toy, "SPEECH=people")[-1]
    assert "--qa mine.jsonl" in planned(house, *toy, "SPEECH=people", "QA=mine.jsonl")[-1]


SPLIT_OF_MINI = [
    "coffee --seed 1 --dev 0.05 --test 0.2 --unknown text",
    "digits --seed 1 --dev 0 --test 0.25 --share-text digits",
    "kathleen --seed 1 --dev 0.04 --test 0.06",
    "speechocean762 --seed 1 --dev 0.04 --test 0.08",
]


@pytest.mark.parametrize(
    ("named", "split"),
    [
        ("digits librispeech kathleen speechocean762 coffee kathleen", SPLIT_OF_MINI),
        ("kathleen librispeech digits", SPLIT_OF_MINI[1:3]),
        ("friends", ["friends --seed 1 --unknown text"]),
    ],
)
def test_recordings_are_split_by_the_corpora_that_are_there(house, named, split):
    folder = house / f"some {len(split)}".replace(" ", "")
    folder.mkdir()
    rows = [f"{n}\t{n}.wav\t{corpus}\r\n" for n, corpus in enumerate(named.split())]
    (folder / "manifest.tsv").write_text("id\tpath\tcorpus\r\n" + "".join(rows))
    plan = planned(house, "listen", "PRESET=toy", f"CORPUS={folder.name}", f"SPEECH={folder.name}")
    found = [line for line in plan if line.startswith("speechgpt split")]
    assert [line.partition("--only ")[2].partition(" --out")[0] for line in found] == split
    (merged,) = [line for line in plan if line.startswith("speechgpt merge")]
    parts = [f"work/toy/{folder.name}/speech/{each.split()[0]}.split.jsonl" for each in split]
    assert merged == f"speechgpt merge {' '.join(parts)} --out work/toy/{folder.name}/speech/split.jsonl"


def test_what_is_missing_is_said(house):
    assert "give READER= and ROOT=" in make(house, "data", "PRESET=speechgpt-7b", "CORPUS=none", code=2)
    assert "give QA=file.jsonl" in make(house, "work/toy/own/qa.jsonl", "CORPUS=own", "READER=tsv", code=2)
    assert "paths with spaces" in make(house, "data", "QA=my questions.jsonl", code=2)


# ---- the toy, run for real ---------------------------------------------------------------------------------


def merged(settings: dict, changes: dict) -> dict:
    return {
        **settings,
        **{k: merged(settings[k], v) if isinstance(v, dict) else v for k, v in changes.items()},
    }


def shrink(presets: Path) -> None:
    for name, changes in TINY.items():
        path = presets / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes), sort_keys=False))


class Killed:
    """`make toy`, killed with all its processes as soon as `seen()`; `log` gathers what they print."""

    def __init__(self, house: Path):
        self.house, self.log = house, house / "killed.log"

    def until(self, seen: Callable[[], bool]) -> None:
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                ["make", "toy"], cwd=self.house, env=environment(), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 300
            while not seen():
                assert process.poll() is None, self.log.read_text()[-4000:]
                assert time.monotonic() < deadline, self.log.read_text()[-4000:]
                time.sleep(0.005)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # until the last of the group is gone
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.02)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_and_run_again_the_toy_ends_with_the_same_rows(house, tmp_path):
    presets, reference = house / "speechgpt" / "presets" / "toy", tmp_path / "reference"
    shrink(presets)
    k = yaml.safe_load((presets / "codebook.yaml").read_text())["k"]
    corpus = house / "work" / "toy" / "toy"
    rows = corpus / f"km{k}"
    killed, landed = Killed(house), []
    killed.until(lambda: any((rows / "units.jsonl.parts").glob("*")))
    landed.append(not (rows / "units.jsonl").exists())
    killed.until(lambda: any((rows / "stage1" / "checkpoints").glob("checkpoint-*/complete.json")))
    landed += [not (rows / name / "done.json").exists() for name in ("stage1", "vocoder")]
    assert any(landed), "no kill came before its stage had ended"
    straight = subprocess.Popen(
        [sys.executable, "-c", REFERENCE, str(presets.relative_to(house)), str(reference)],
        cwd=house, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    make(house, "toy")

    report = json.loads((rows / "report" / "report.json").read_text())
    assert {"Questions", "Hearing", "Speaking"} <= {s["title"] for s in report["sections"]}
    assert straight.wait(300) == 0, straight.stderr.read()[-2000:]
    for name in ("encoder/model.safetensors", "data/manifest.jsonl", "data/qa.jsonl"):
        assert (corpus / name).read_bytes() == (reference / name).read_bytes(), name
    for name in ("codebook.safetensors", "units.jsonl", "instruct.jsonl", "chain.jsonl"):
        assert (rows / name).read_bytes() == (reference / name).read_bytes(), name
    assert not (rows / "units.jsonl.parts").exists()

    before = snapshot(house / "work")
    make(house, "-q", "eval", "PRESET=toy")
    assert planned(house, "eval", "PRESET=toy") == []
    for config in presets.iterdir():
        config.touch()
    assert "speechgpt" not in make(house, "eval", "PRESET=toy")
    assert snapshot(house / "work") == before
    (presets / "eval.yaml").write_text((presets / "eval.yaml").read_text() + "\n# looked at\n")
    assert [line.split()[1] for line in planned(house, "eval", "PRESET=toy")] == ["eval"]
