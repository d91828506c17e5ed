"""`foretell chat` against a server: answers, history, commands, Ctrl-C, and servers that refuse or fail."""

import io
import json
import signal
import threading
import time

import pytest

from foretell.cli.chat import Talk
from foretell.cli.chat_server import ChatServer
from foretell.core.errors import ForetellError, InvalidInput, NotFound, NotReady
from foretell.server.http import HttpSettings
from foretell.testing import FakeGenerator, FakeModel
from tests.server.conftest import Live


@pytest.fixture(scope="module")
def live():
    one = Live(HttpSettings())
    one.plane.served.append(FakeModel("escapes", generator=FakeGenerator(("a\x1b[2J", "\x07b\n", "\tc"))))
    yield one
    one.close()


@pytest.fixture
def talk(live):
    def begin(model: str = "chat", **options) -> Talk:
        return Talk(ChatServer(live.url, model), options)

    return begin


@pytest.fixture
def piped(cli, live, monkeypatch):
    def run(text: str, *arguments: object):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return cli("chat", live.url, *arguments)

    return run


def asked(live) -> list[dict]:
    return live.plane.generations[-1].prompt.messages


def test_lines_are_asked_one_after_the_other_with_their_history(piped, live):
    ran = piped("hi there\n\nand now?\n", "--model", "chat", "--system", "Be brief.", "--max-tokens", 9)
    assert (ran.code, ran.out) == (0, "Hello world!\nHello world!\n")
    assert asked(live) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi there"},
        {"role": "assistant", "content": "Hello world!"},
        {"role": "user", "content": "and now?"},
    ]
    assert live.plane.generations[-1].stops.max_tokens == 9
    assert "4 tokens" in ran.err
    assert "first after" in ran.err


def test_an_error_ends_piped_questions_with_a_code(piped):
    ran = piped("hi\nhi again\n", "--model", "refuses")
    assert ran.code == 1
    assert "9,000 tokens" in ran.err


def test_speed_and_first_token_are_told(talk, capsys):
    talk("slow-chat", max_tokens=10).say("hi")
    printed = capsys.readouterr()
    assert printed.out == "a" * 10 + "\n"
    assert "10 tokens" in printed.err
    assert "tokens/s" in printed.err


def test_ctrl_c_stops_the_answer_on_both_sides_and_not_the_talk(talk, live, capsys):
    one = talk("slow-chat")
    before = live.plane.cancelled
    main = threading.main_thread().ident
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    one.say("hi")
    assert "(stopped)" in capsys.readouterr().err
    assert one.messages[-1]["role"] == "assistant"
    assert set(one.messages[-1]["content"]) == {"a"}
    until = time.monotonic() + 5
    while live.plane.cancelled == before:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_ctrl_c_at_the_prompt_is_no_end_and_ctrl_d_is(talk, monkeypatch):
    ends = iter([KeyboardInterrupt(), EOFError()])

    def read(prompt):
        raise next(ends)

    monkeypatch.setattr("builtins.input", read)
    one = talk()
    assert one.turn() is True
    assert one.turn() is False


def test_a_text_cannot_play_with_the_terminal(talk, capsys):
    one = talk("escapes")
    one.say("hi")
    assert capsys.readouterr().out == "a[2Jb\n\tc\n"
    assert one.messages[-1]["content"] == "a\x1b[2J\x07b\n\tc"


def test_commands_reset_set_and_save_the_conversation(talk, live, tmp_path, capsys):
    one = talk()
    one.say("hi")
    assert one.command("/system Speak French.")
    assert one.messages == [{"role": "system", "content": "Speak French."}]
    one.command("/system")
    assert "Speak French." in capsys.readouterr().err
    one.say("hi")
    one.command(f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert (saved["model"], [m["role"] for m in saved["messages"]]) == ("chat", ["system", "user", "assistant"])
    one.command("/reset")
    assert one.messages == [{"role": "system", "content": "Speak French."}]
    one.command("/help")
    assert "/save FILE" in capsys.readouterr().err
    assert one.command("/exit") is False


def test_two_slashes_say_a_line_that_begins_with_one(talk, monkeypatch):
    lines = iter(["//etc/hosts says what?", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    one = talk()
    assert one.turn() is True
    assert one.messages[0]["content"] == "/etc/hosts says what?"
    assert one.turn() is False
    with pytest.raises(InvalidInput, match="begins with /, double it"):
        one.command("/etc/hosts")


@pytest.mark.parametrize(
    ("line", "words"), [("/rest", 'Did you mean "/reset"'), ("/save", "where"), ("/save /no/such/place", "written")]
)
def test_commands_that_make_no_sense_say_so(talk, line, words):
    with pytest.raises(InvalidInput, match=words):
        talk().command(line)


@pytest.mark.parametrize(("model", "words"), [("refuses", "9,000 tokens"), ("breaks", "the replica died")])
def test_failures_have_the_servers_words_and_leave_no_trace(talk, model, words):
    one = talk(model)
    with pytest.raises(ForetellError, match=words):
        one.say("hi")
    assert one.messages == []


def test_the_model_must_be_there_and_chosen(live):
    with pytest.raises(NotFound, match="choose one with --model"):
        ChatServer(live.url)
    with pytest.raises(NotFound, match=r'Did you mean .*"chat"'):
        ChatServer(live.url + "/v1/", "chatt")
    assert ChatServer(live.url + "/v1", "chat@1").model == "chat@1"


def test_what_is_no_server_is_said_so():
    with pytest.raises(NotReady, match="foretell serve"):
        ChatServer("http://127.0.0.1:9")
    with pytest.raises(InvalidInput, match="expected http"):
        ChatServer("ftp://here")
