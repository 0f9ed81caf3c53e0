"""The command line, as a person meets it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sona
from sona.storage.store import Store
from tests.engine.small import WORLD
from tests.processes import run

ROOT = Path(__file__).parents[1]
SETTINGS = """
[train]
batch_size = 16
max_steps = 20
min_steps = 5
[gate]
min_held_out = 4
min_retention = 0.5
[cycle]
min_trajectories = 24
probes = 16
probe_tokens = 16
"""


def command(*words: object, code: int = 0, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", "from sona.__main__ import main; main()", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment},
        input=given,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that `sona learn` has learned in, from a file."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "sona.toml").write_text(SETTINGS)
    rows = [
        {"id": str(n), "source": "bot", "prompt": x.prompt, "response": x.response, "quality": 1}
        for n, x in enumerate(WORLD.sample("tool_call", 60, 1))
    ]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = command(
        *("learn", "--store", folder / "store", "--model", "tiny", "--trajectories", folder / "log.jsonl"),
        *("--config", folder / "sona.toml"),
    )
    assert "published v1" in done.stdout
    assert "gate: gain" in done.stdout
    return folder / "store"


def test_status_tells_what_the_store_holds(learned: Path) -> None:
    shown = command("status", "--store", learned).stdout
    assert "60 trajectories" in shown
    assert "bot" in shown
    told = json.loads(command("status", "--store", learned, "--json").stdout)
    assert told["version"] == "v1"
    assert told["store"]["trained"] + told["store"]["held_out"] == 60
    assert sum(pattern["count"] for pattern in told["patterns"]) == 60


def test_what_the_terminal_has_no_characters_for_is_escaped(tmp_path: Path) -> None:
    name = "J\u00fcrgen \U0001f600"
    (tmp_path / "log.jsonl").write_text(json.dumps({"prompt": "q", "response": "a", "source": name}))
    command("import", tmp_path / "log.jsonl", "--store", tmp_path / "store")
    for words in ((), ("--json",)):
        done = command("status", "--store", tmp_path / "store", *words, PYTHONIOENCODING="ascii", LANG="C")
        assert r"J\u00fcrgen \ud83d\ude00" in done.stdout
    assert json.loads(done.stdout)["sources"][0]["source"] == name


def test_status_works_beside_a_running_agent(learned: Path) -> None:
    with sona.open_sync(learned):
        assert "60 trajectories" in command("status", "--store", learned).stdout
        assert "another process" in command("versions", "rollback", "--store", learned, code=2).stderr


def test_versions_can_be_seen_and_taken_back(learned: Path) -> None:
    listed = json.loads(command("versions", "list", "--store", learned, "--json").stdout)
    assert (listed["current"], [row["id"] for row in listed["versions"]]) == ("v1", ["v0", "v1"])
    shown = json.loads(command("versions", "show", "v1", "--store", learned, "--json").stdout)
    assert shown["report"]["status"] == "published"
    assert shown["settings"]["train"]["batch_size"] == 16
    assert "v0 is in force" in command("versions", "rollback", "--store", learned).stdout
    assert "v1 is in force" in command("versions", "rollback", "v1", "--store", learned).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "--store", "/no/such"), "no store"),
        (("versions", "show", "v9", "--store", "STORE"), "v9"),
        (("versions", "rollback", "v9", "--store", "STORE"), "v9"),
        (("learn", "--store", "STORE", "--model", "/no/such"), "does not exist"),
        (("versions", "rollback", "--store", "/no/such/store"), "no store"),
        (("import", "/no/such.jsonl", "--store", "STORE"), "no file"),
        (("learn", "--store", "STORE", "--model", "tiny", "--config", "/no.toml"), "does not exist"),
        (("status", "--store", "STORE/store.db"), "store.db: a file; a store is a folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(learned: Path, words: tuple[str, ...], message: str) -> None:
    done = command(*(word.replace("STORE", str(learned)) for word in words), code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_one_is_no_plural_and_no_file_makes_no_store(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"prompt": "a", "response": "b", "quality": 1}')
    store = tmp_path / "store"
    for words in (("import", tmp_path / "none.jsonl"), ("learn", "--model", "tiny", "--trajectories", "none.jsonl")):
        assert "is no file" in command(*words, "--store", store, code=2).stderr
    assert "/no/such" in command("serve", "--model", "/no/such", "--store", store, code=2).stderr
    assert "no store; see that the path" in command("learn", "--model", "tiny", "--store", store, code=2).stderr
    assert not store.exists()
    assert (
        "log.jsonl: 1 new trajectory, 1 with a quality"
        in command("import", tmp_path / "log.jsonl", "--store", store).stderr
    )
    assert "1 trajectory, 1 feedback:" in command("status", "--store", store).stdout
    nowhere = command("status", "--store", "", code=2)
    assert "the path of a folder is allowed" in nowhere.stdout + nowhere.stderr


@pytest.mark.parametrize("words", [("/dev/stdin",), ("-",)])
def test_the_standard_input_is_imported(tmp_path: Path, words: tuple[str, ...]) -> None:
    line = '{"prompt": "a", "response": "b", "quality": 1}\n'
    store = tmp_path / "store"
    for known in ("", ", 1 known already"):
        done = command("import", "--store", store, *words, given=line)
        assert f"1 with a quality{known}\n" in done.stderr
    assert "stdin" in command("status", "--store", store).stdout
    assert "line 1: JSON is malformed" in command("import", "--store", store, *words, given="nothing", code=2).stderr


def test_help_names_every_command() -> None:
    shown = command("--help").stdout
    assert all(name in shown for name in ("demo", "learn", "import", "status", "versions"))


STOPPED = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell has put the tests into the background
number = getattr(signal, sys.argv.pop(1))
from sona.cli import main
from sona.cycles import Cycles
from tests.storage.learned import publish

def learn(self, report):
    if "early" in sys.argv[0]:
        os.kill(os.getpid(), number)
        while True:
            report.__self__._check()
    publish(self._parts.store)
    os.kill(os.getpid(), number)
    time.sleep(0.3)

Cycles._learn = learn
sys.argv[:2] = [sys.argv[1]]
main()
"""


@pytest.mark.parametrize(
    ("when", "said", "version"),
    [
        ("late", "sona: stopped, but cycle 1 was at its end by then: published v1, which is in force: ", "v1"),
        (
            "early",
            "sona: stopped; what was recorded is stored, now or at the next start, and nothing else has changed",
            "v0",
        ),
    ],
)
@pytest.mark.parametrize(("by", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stop_says_whether_a_version_was_published_by_then(
    tmp_path: Path, by: str, code: int, when: str, said: str, version: str
) -> None:
    (tmp_path / "log.jsonl").write_text('{"prompt": "q", "response": "r", "quality": 1}\n')
    words = ("learn", "--store", tmp_path / "store", "--model", "tiny", "--trajectories", tmp_path / "log.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, by, when, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    with Store.open(tmp_path / "store", read_only=True) as store:
        assert store.current().id == version


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "cyclopts":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
import runpy
sys.argv = ["sona", "status", "--store", "none"]
runpy.run_module("sona", run_name="__main__")
"""


def test_ctrl_c_while_the_command_is_imported_is_quiet() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


TERMINATED = """
import os, signal, sys
import sona.demo.story
from sona.__main__ import main

def take(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()

sona.demo.story.take = take
sys.argv[0] = "sona"
main()
"""


IN_A_FINALISER = """
import os, signal, time
from sona.terminal import end_in_order, stopped_code

class Loses:
    def __del__(self):
        os.kill(os.getpid(), signal.{by})
        time.sleep(0.2)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background
end_in_order()
try:
    Loses()
    time.sleep(20)
    print("went on")
except KeyboardInterrupt as by:
    print(stopped_code(by))
"""


@pytest.mark.parametrize(("by", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_comes_in_a_finaliser_ends_a_command_too(by: str, code: int) -> None:
    assert run(IN_A_FINALISER.format(by=by)) == str(code)


def test_a_demo_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, "demo", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 143, done.stderr
    assert "Nothing of this run is kept" in done.stdout
    assert list(tmp_path.iterdir()) == []


FORBIDDEN = """
from sona.__main__ import main
from sona.storage.store import Store

def forbidden(path, **_):
    raise PermissionError(13, "Permission denied", f"{path}/store.db")

Store.open = forbidden
main()
"""


def test_what_belongs_to_another_user_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, "status", "--store", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"sona: '{tmp_path}/store.db': Permission denied; see to it that you may use it, or name another place\n"
    )


INSISTENT = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from sona.__main__ import main
from sona.storage.store import Store

def slow(path, **_):
    number = getattr(signal, sys.argv[0])
    try:
        os.kill(os.getpid(), number)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), number)
        time.sleep(60)

Store.open = slow
sys.argv[:2] = [sys.argv[1]]
main()
"""


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM"])
def test_the_second_signal_ends_it_at_once(tmp_path: Path, by: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INSISTENT, by, "status", "--store", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-getattr(signal, by), "")
