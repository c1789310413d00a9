"""The remote engine over HTTP: the local engine's tokens, and every fault of a server or a network said in one line."""

import json
import logging
import math
import socket
import threading
import time
from email.utils import formatdate

import pytest

import regear
from regear.cli.main import run
from regear.core.errors import BackendError, RecipeError
from regear.engine import http
from regear.engine.remote import RemoteEngine
from regear.engine.types import Request
from regear.models.load import load_model, load_tokenizer
from tests.engine.openai_server import SharedEngine, serving

KEY = "sk-very-secret-4711"
END = 256


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(tiny("llama"))


@pytest.fixture(scope="module")
def local(tiny, tokenizer):
    return SharedEngine(load_model(tiny("llama")), tokenizer)


@pytest.fixture
def endpoint(local, tokenizer):
    """A server of its own; keyword arguments are `Endpoint`'s."""
    stacks = []

    def start(**settings):
        stack = serving(local, tokenizer, **settings)
        stacks.append(stack)
        return stack.__enter__()

    yield start
    for stack in stacks:
        stack.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No key from outside, and short waits between attempts."""
    monkeypatch.delenv("REGEAR_API_KEY", raising=False)
    monkeypatch.setattr(http, "FIRST", 0.01)


def requests():
    """One of every way to sample, all of different lengths."""
    return [
        Request([5, 6, 7], 9),
        Request([1], 12, temperature=1.0, seed=3),
        Request(list(range(40)), 7, temperature=0.7, seed=(1 << 64) - 5, top_p=0.8, logprobs=True),
        Request([9, 9], 20, temperature=1.3, seed=8, top_k=5, min_p=0.05),
        Request([8, 4], 16, repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.2, logprobs=True),
        Request([2, 3], 30, temperature=1.0, seed=4, stop_tokens=range(0, 256, 9)),
        Request([2, 3], 30, temperature=1.0, seed=4, stop=["e", "\ufffd"]),
    ]


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        assert (one.logprobs is None) == (other.logprobs is None)
        assert one.logprobs is None or one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("streamed", [False, True])
def test_tokens_are_the_local_engines(endpoint, local, streamed):
    wanted = local.generate(requests())
    assert {done.finish_reason for done in wanted} == {"stop", "length"}
    heard = [[] for _ in wanted]
    listener = (lambda place, new: heard[place].extend(new)) if streamed else None
    found = RemoteEngine(endpoint().url).generate(requests(), listener)
    assert_same(found, wanted)
    assert all(math.isnan(done.acceptance_length) for done in found)
    if streamed:
        assert heard == [done.token_ids for done in wanted]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_addresses(endpoint, local, suffix):
    assert_same(RemoteEngine(endpoint().url + suffix).generate(requests()[:1]), local.generate(requests()[:1]))


def test_every_field_is_sent_where_it_is_known_and_only_the_needed_ones_elsewhere(endpoint, tokenizer):
    wide, plain = endpoint(owner="vllm"), endpoint(owner="openai")
    RemoteEngine(wide.url).generate([Request([5], 2)])
    RemoteEngine(plain.url, tokenizer=tokenizer).generate([Request([5], 2)])
    neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True, "stop_token_ids": []}
    assert neutral.items() <= wide.seen[0].items()
    assert not {*neutral, "return_token_ids", "seed"} & set(plain.seen[0])
    with pytest.raises(RecipeError, match=r"refused the request \(400\): Unrecognized request arguments: \['top_k'\]"):
        RemoteEngine(plain.url, tokenizer=tokenizer).generate([Request([5], 2, temperature=1.0, top_k=3)])


def test_sglang_hears_of_stop_tokens_only_if_it_may_end_texts(endpoint):
    server = endpoint(owner="sglang")
    engine = RemoteEngine(server.url)
    engine.generate([Request([5], 2)])
    engine.generate([Request([5], 2, stop_tokens=(7,))])
    assert [(body["ignore_eos"], body["stop_token_ids"]) for body in server.seen] == [(True, []), (False, [7])]
    with pytest.raises(RecipeError, match="temperature 0 or 1"):
        engine.generate([Request([5], 2, temperature=0.5, logprobs=True)])


def test_stop_tokens_hold_where_the_server_knows_none(endpoint, local, tokenizer):
    request = Request([2, 3], 30, temperature=1.0, seed=4, stop_tokens=(END, *range(0, 256, 9)))
    server = endpoint(owner="someone")
    (found,) = RemoteEngine(server.url).generate([request])
    assert "stop_token_ids" not in server.seen[0]
    assert_same([found], local.generate([request]))
    assert found.finish_reason == "stop"


def test_two_failures_are_mended(endpoint, local):
    server = endpoint()
    server.faults += [("status", (500, {}, "oops"))] * 2
    assert_same(RemoteEngine(server.url).generate(requests()[:1]), local.generate(requests()[:1]))
    assert len(server.seen) == 3


def test_failures_without_end_are_said(endpoint):
    server = endpoint()
    server.faults += [("status", (503, {}, "still loading"))] * 3
    with pytest.raises(BackendError, match=r"answered 503: still loading; gave up after 3 attempts"):
        RemoteEngine(server.url, retries=2).generate([Request([1], 2)])


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_how_long_to_wait(endpoint, form):
    server = endpoint()
    wanted = 1 if form == "seconds" else formatdate(time.time() + 2, usegmt=True)  # dates are whole seconds
    server.faults.append(("status", (429, {"Retry-After": wanted}, "too many")))
    RemoteEngine(server.url).generate([Request([1], 2)])
    assert 0.95 <= server.times[1] - server.times[0] < 5


def test_nobody_waits_for_hours(endpoint):
    server = endpoint()
    server.faults.append(("status", (429, {"Retry-After": 7200}, "quota")))
    with pytest.raises(BackendError, match="429: quota; it asks to wait 7200 s"):
        RemoteEngine(server.url).generate([Request([1], 2)])


@pytest.mark.parametrize("fault", ["drop", "error"])
def test_a_stream_that_breaks_is_asked_for_again_and_heard_once(endpoint, local, fault):
    server = endpoint()
    server.faults += [(fault, 4), (fault, 6), (fault, 0)]
    heard = []
    found = RemoteEngine(server.url).generate(requests()[1:2], lambda place, new: heard.extend(new))
    assert_same(found, local.generate(requests()[1:2]))
    assert heard == found[0].token_ids
    assert len(server.seen) == 4


def test_another_answer_after_a_broken_one_is_not_passed_off_as_the_same(endpoint):
    server = endpoint()
    server.faults += [("drop", 4), ("change", 99)]
    with pytest.raises(BackendError, match="answered differently"):
        RemoteEngine(server.url).generate(requests()[1:2], lambda place, new: None)


@pytest.mark.parametrize("body", [b"<html>a proxy's page</html>", b"[1, 2", b'"text"'])
def test_garbage_is_shown(endpoint, body):
    server = endpoint()
    server.faults.append(("garbage", body))
    with pytest.raises(BackendError, match="what is not a JSON object: ") as caught:
        RemoteEngine(server.url).generate([Request([1], 2)])
    assert body.decode() in str(caught.value)
    assert len(server.seen) == 1


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [3]}, {"choices": [{"token_ids": ["x"]}]}])
def test_json_that_is_no_completion(endpoint, body):
    server = endpoint()
    server.faults.append(("garbage", body))
    with pytest.raises(BackendError, match="without"):
        RemoteEngine(server.url).generate([Request([1], 2)])


@pytest.mark.parametrize("scores", [None, {}, {"token_logprobs": [-1.0]}, {"token_logprobs": [-1.0, None]}])
def test_log_probabilities_that_are_not_there(endpoint, scores):
    server = endpoint()
    choice = {"text": "ab", "token_ids": [97, 98], "finish_reason": "length", "logprobs": scores}
    server.faults.append(("garbage", {"choices": [choice]}))
    with pytest.raises(BackendError, match=r"gave [01] log-probabilities for 2 tokens"):
        RemoteEngine(server.url).generate([Request([1], 2, logprobs=True)])


def test_an_end_that_is_none_of_ours(endpoint):
    server = endpoint()
    server.faults.append(("garbage", {"choices": [{"text": "a", "token_ids": [97], "finish_reason": "abort"}]}))
    with pytest.raises(BackendError, match="ended the answer with 'abort'"):
        RemoteEngine(server.url).generate([Request([1], 2)])


def test_garbage_in_a_stream(endpoint):
    server = endpoint()
    server.faults += [("noise", 1), ("garbage", b"<html>")]
    for message in ("not a JSON object: {not json", "not a stream of events: <html>"):
        with pytest.raises(BackendError, match=message):
            RemoteEngine(server.url).generate([Request([1], 4)], lambda place, new: None)


@pytest.mark.parametrize("listener", [None, lambda place, new: None])
def test_silence_is_a_failure(endpoint, listener):
    server = endpoint()
    server.faults.append(("slow", 1.5) if listener is None else ("stall", (2, 1.5)))
    start = time.monotonic()
    with pytest.raises(BackendError, match=r"was silent for 0\.3 s"):
        RemoteEngine(server.url, timeout=0.3).generate([Request([1], 8)], listener)
    assert time.monotonic() - start < 1.2
    assert len(server.seen) == 1


def test_a_request_whose_time_is_up_has_what_has_come(endpoint, local):
    server = endpoint()
    server.faults.append(("stall", (3, 1.5)))
    wanted = local.generate([Request([1], 8)])[0].token_ids
    late, whole = RemoteEngine(server.url, connections=1).generate([Request([1], 8, timeout=0.5), Request([1], 8)])
    assert (late.token_ids, late.finish_reason) == (wanted[:3], "timeout")
    assert (whole.token_ids, whole.finish_reason) == (wanted, "length")


def test_time_runs_while_a_server_asks_to_wait(endpoint):
    server = endpoint()
    server.faults.append(("status", (429, {"Retry-After": 60}, "too many")))
    (found,) = RemoteEngine(server.url).generate([Request([1], 8, timeout=0.3)])
    assert (found.token_ids, found.finish_reason) == ([], "timeout")


def test_cancelling_one_ends_it_with_what_has_come_and_hangs_up(endpoint, local):
    server = endpoint()
    server.pause = 0.05
    engine, halfway = RemoteEngine(server.url), threading.Event()
    heard = []
    number = engine.submit(Request([1], 60), lambda new: (heard.extend(new), len(heard) > 4 and halfway.set()))
    other = engine.submit(Request([5, 6, 7], 5))
    assert halfway.wait(20)
    engine.cancel(number)
    start = time.monotonic()
    found = engine.wait(number)
    assert time.monotonic() - start < 1
    assert found.finish_reason == "cancelled"
    assert found.token_ids == heard == local.generate([Request([1], 60)])[0].token_ids[: len(heard)]
    assert engine.wait(other).token_ids == local.generate([Request([5, 6, 7], 5)])[0].token_ids
    engine.cancel(number)  # it has ended: nothing happens
    for _ in range(100):
        if server.left:
            break
        time.sleep(0.02)
    assert server.left == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_listener_that_fails_ends_every_request(endpoint, error):
    server = endpoint()
    server.pause = 0.1
    raised = []

    def listener(place, new):
        raised.append(time.monotonic())
        raise error("enough")

    with pytest.raises(error, match="enough"):
        RemoteEngine(server.url).generate([Request([i], 40) for i in range(4)], listener)
    assert len(raised) == 1
    assert time.monotonic() - raised[0] < 2  # four seconds each, were they heard out


def test_one_request_refused_ends_the_others(endpoint):
    server = endpoint()
    server.pause = 0.1
    server.faults += [("status", (400, {}, "prompt too long"))]
    start = time.monotonic()
    with pytest.raises(RecipeError, match=r"\(400\): prompt too long"):
        RemoteEngine(server.url).generate([Request([i], 40) for i in range(3)], lambda place, new: None)
    assert time.monotonic() - start < 3


def test_connections_are_limited(endpoint, local):
    server = endpoint()
    server.pause = 0.05
    many = [Request([i + 1], 2) for i in range(12)]
    found = RemoteEngine(server.url, connections=3).generate(many)
    assert server.most == 3
    assert_same(found, local.generate(many))


def test_the_key_opens_the_server_and_is_shown_nowhere(endpoint, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    server = endpoint(key=KEY)
    with pytest.raises(RecipeError, match=r"wants an API key; set REGEAR_API_KEY \(401\)"):
        RemoteEngine(server.url)
    RemoteEngine(server.url, key=KEY).generate([Request([1], 2)])
    monkeypatch.setenv("REGEAR_API_KEY", KEY)
    engine = RemoteEngine(server.url)
    engine.generate([Request([1], 2)])
    server.faults.append(("status", (400, {}, f"bad key {KEY}")))
    with pytest.raises(RecipeError, match="bad key …") as refused:
        engine.generate([Request([1], 2)])
    server.key = "another"
    with pytest.raises(RecipeError, match=r"refuses the API key in REGEAR_API_KEY \(401\)") as caught:
        engine.generate([Request([1], 2)])
    for said in (str(refused.value), str(caught.value), repr(engine), repr(engine.server), caplog.text):
        assert KEY not in said
    with pytest.raises(RecipeError, match="no HTTP header can carry") as caught:
        RemoteEngine(server.url, key=f"{KEY}\nX-Evil: 1")
    assert KEY not in str(caught.value)


def test_models_are_named(endpoint):
    server = endpoint(names=("one", "two"))
    with pytest.raises(RecipeError, match="serves one, two; name one"):
        RemoteEngine(server.url)
    with pytest.raises(RecipeError, match="serves no model 'three'; it serves one, two"):
        RemoteEngine(server.url, "three")
    RemoteEngine(server.url, "two").generate([Request([1], 2)])
    assert server.seen[0]["model"] == "two"


def test_a_server_that_returns_text_only(endpoint, local, tokenizer):
    server = endpoint(owner="someone", ids=False)
    with pytest.raises(BackendError, match=r"returns no token ids: .* give the engine a tokenizer"):
        RemoteEngine(server.url).generate([Request([1], 2)])
    engine = RemoteEngine(server.url, tokenizer=tokenizer)
    with pytest.raises(BackendError, match=r"returns no token ids: .* ask for no log-probabilities"):
        engine.generate([Request([1], 2, logprobs=True)])
    heard = []
    for listener in (None, lambda place, new: heard.extend(new)):
        (found,) = engine.generate([Request([5, 6, 7], 9)], listener)
        text = tokenizer.decode(local.generate([Request([5, 6, 7], 9)])[0].token_ids, skip_special_tokens=True)
        assert tokenizer.decode(found.token_ids) == text
    assert heard == found.token_ids


def test_nothing_listens():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(RecipeError, match=f"nothing listens at http://127.0.0.1:{port} .*start the server"):
        RemoteEngine(f"http://127.0.0.1:{port}")
    assert time.monotonic() - start < 5


def test_a_server_that_goes_away(endpoint):
    server = endpoint()
    engine = RemoteEngine(server.url, retries=1)
    server.shutdown()
    server.server_close()
    with pytest.raises(BackendError, match="gave up after 2 attempts"):
        engine.generate([Request([1], 2)])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host", "wanted http://host:port"),
        ("http://", "wanted http://host:port"),
        ("http://host:99999", "cannot be read"),
        ("http://me:hunter2@host", "holds a name or a password"),
        ("http://host/v1?x=1", "wanted http://host:port"),
    ],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises(RecipeError, match=message) as caught:
        RemoteEngine(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("bad", [{"connections": 0}, {"retries": -1}, {"timeout": 0}, {"dialect": "tgi"}])
def test_settings_out_of_range(bad):
    with pytest.raises(RecipeError, match=next(iter(bad))):
        RemoteEngine("http://127.0.0.1:9", **bad)


def test_bad_requests_never_leave(endpoint):
    server = endpoint()
    with pytest.raises(RecipeError, match="the prompt is empty"):
        RemoteEngine(server.url).generate([Request([1], 2), Request([], 2)])
    assert not server.seen


def call(capsys, *words):
    code = run([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_verb_asks_a_server(endpoint, local, tokenizer, capsys):
    server = endpoint()
    words = ["generate", server.url, "the fox", "--max-tokens", 6, "--temperature", 0.9, "--seed", 5, "--json"]
    for more, prompt in (["--raw"], "the fox"), ([], "[the fox]"):
        code, out, _ = call(capsys, *words, *more)
        found = json.loads(out)
        ids = tokenizer(prompt)["input_ids"]
        (wanted,) = local.generate([Request(ids, 6, temperature=0.9, seed=5, stop_tokens=(END,))])
        assert code == 0
        assert found["token_ids"] == wanted.token_ids
        assert found["text"] == tokenizer.decode(wanted.token_ids, skip_special_tokens=True)
        assert (found["tokens"], found["finish_reason"]) == (len(wanted.token_ids), wanted.finish_reason)
        assert found["acceptance_length"] is None
        assert found["tokens_per_second"] > 0
    assert call(capsys, *words[:-1]) == (0, found["text"] + "\n", "")


def test_the_verb_asks_a_server_that_knows_only_the_standard(endpoint, capsys):
    server = endpoint(owner="openai", names=("one", "two"))
    code, out, _ = call(capsys, "generate", server.url, "hi", "--served-model", "two", "--max-tokens", 3, "--json")
    assert code == 0
    assert json.loads(out)["token_ids"] is None
    assert json.loads(out)["tokens"] == 3
    assert server.seen[0]["model"] == "two"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["URL", "hi", "--served-model", "other"], "serves no model 'other'; it serves tiny"),
        (["URL", ""], "prompt is empty"),
        (["URL", "hi", "--device", "cpu"], "the server has its own"),
        (["URL", "--prompts", "x.txt", "-o", "y.jsonl"], "wants a model on this machine"),
        (["MODEL", "hi", "--served-model", "x"], "needs a model given as an address"),
        (["http://127.0.0.1:9", "hi"], "nothing listens at http://127.0.0.1:9"),
    ],
)
def test_mistakes_with_servers_are_one_line_and_code_two(words, message, endpoint, tiny, capsys):
    url = endpoint().url
    code, out, err = call(
        capsys, "generate", *(tiny("llama") if w == "MODEL" else url if w == "URL" else w for w in words)
    )
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_server_that_answers_no_chat(endpoint):
    server = endpoint()
    server.faults.append(("garbage", {"choices": []}))
    with pytest.raises(BackendError, match="without the text"):
        regear.generate(server.url, "hi")
