"""Which key goes to which address: that of the address, or one that the person who runs the program names; never one that a file names."""

import json

import pytest
import yaml
from chat_server import KEY, TRAIT, Answer, always, completion, echo, error, judge_at, trait_of
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.apps.cli import app
from psr_lens.errors import InputError, JudgeError
from psr_lens.evaluation.judge_settings import JudgeServer, check_judge, load_judge
from psr_lens.evaluation.judge_settings import judge_at as at_address
from psr_lens.judges.llm_judge.api_key import NO_KEY, api_key, origin

SECRET = "wJalrXUtnFEMI-not-for-a-judge"


def key_for(**settings):
    return api_key(psr.judges.LLMSettings(**settings))


@pytest.fixture
def keys(monkeypatch):
    for name in ("OPENAI_BASE_URL", "PSR_LENS_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return monkeypatch


@pytest.mark.parametrize(
    "address",
    [
        "https://api.openai.com.example.com/v1",
        "https://example.com/api.openai.com/v1",
        "https://api-openai.com/v1",
        "https://api.openai.com:8443/v1",
        "http://api.openai.com/v1",
        "http://localhost:8000/v1",
        "https://openai.com/v1",
        "https://api.openai.com%2eexample.com/v1",
        "https://api.openai.com..example.com/v1",
        "https://\u0430pi.openai.com/v1",  # a Cyrillic a
        "https://[::1]/api.openai.com/v1",
    ],
)
def test_openais_key_goes_to_no_address_but_openais_own(keys, address):
    assert key_for(base_url=address) == NO_KEY


@pytest.mark.parametrize(
    "address",
    [
        "https://api.openai.com@example.com/v1",
        "https://api.openai.com:443@example.com",
        "https://api.openai.com\\@example.com/v1",
        "https://example.com/v1?at=https://api.openai.com",
        "https://example.com#https://api.openai.com",
        "https://api.openai.com\t.example.com/v1",
        "https://api.openai.com\n/v1",
        " https://api.openai.com/v1",
        "//api.openai.com/v1",
        "api.openai.com/v1",
    ],
)
def test_an_address_that_can_be_read_in_two_ways_is_refused(keys, address):
    with pytest.raises(InputError, match=r"^base_url: got "):
        key_for(base_url=address)


@pytest.mark.parametrize(
    "address", [None, "https://api.openai.com/v1", "https://API.OpenAI.com:443/v1", "https://api.openai.com./v1"]
)
def test_openais_key_goes_to_openai(keys, address):
    assert key_for(base_url=address) == KEY
    keys.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY is not set"):
        key_for(base_url=address)


def test_openais_variables_for_another_address_belong_together(keys):
    keys.setenv("OPENAI_BASE_URL", "https://gateway.example.com/v1")
    assert key_for() == key_for(base_url="https://gateway.example.com/other") == KEY
    assert key_for(base_url="https://example.com/v1") == NO_KEY
    with pytest.raises(JudgeError, match="OPENAI_API_KEY is not set"):
        key_for(base_url="https://api.openai.com/v1")  # the key is the gateway's


def test_a_key_that_is_bound_to_an_address_goes_there_alone(keys):
    keys.setenv("PSR_LENS_API_KEYS", "api.example.com=first= http://localhost:8000/v1=second")
    assert key_for(base_url="https://api.example.com/v1") == "first="
    assert key_for(base_url="http://localhost:8000/v1") == "second"
    for other in (
        "http://api.example.com/v1",
        "https://api-example.com/v1",
        "http://localhost:8001/v1",
        "https://localhost:8000/v1",
    ):
        assert key_for(base_url=other) == NO_KEY
    assert key_for() == KEY
    keys.setenv("PSR_LENS_API_KEYS", f"api.example.com=first {SECRET}")
    with pytest.raises(JudgeError, match="PSR_LENS_API_KEYS: entry 2") as caught:
        key_for(base_url="https://api.example.com/v1")
    assert SECRET not in str(caught.value)


def test_a_variable_that_the_program_names_is_sent_where_it_says(keys):
    assert key_for(base_url="https://example.com/v1", api_key_env="AWS_SECRET_ACCESS_KEY") == SECRET
    with pytest.raises(JudgeError, match=r"NOT_SET is not set. Set it to the key of https://example\.com"):
        key_for(base_url="https://example.com/v1", api_key_env="NOT_SET")


def test_an_origin_is_scheme_host_and_port():
    assert origin("HTTPS://Host.Example:443/v1") == origin("host.example") == "https://host.example"
    assert origin("http://host:80") == "http://host" != origin("http://host:81")
    assert origin("http://host:99999") == "http://host:99999"


# --- over the wire ----------------------------------------------------------------------------------------------------------


def test_a_server_that_only_has_an_address_gets_no_key_and_nothing_else_of_openais(serve, monkeypatch):
    server = serve(echo)
    seen = []
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: custom-secret\nAuthorization: Bearer custom-secret")
    real = server._http.RequestHandlerClass.do_POST
    monkeypatch.setattr(server._http.RequestHandlerClass, "do_POST", lambda self: (seen.append(str(self.headers)), real(self))[1])
    assert trait_of(judge_at(server), "40") == [40]
    assert server.keys == [f"Bearer {NO_KEY}"]
    assert "secret" not in "".join(seen)
    monkeypatch.setenv("PSR_LENS_API_KEYS", f"{server.url}={KEY}")
    assert trait_of(judge_at(server), "50") == [50]
    assert server.keys[1:] == [f"Bearer {KEY}"]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_hands_on_neither_key_nor_prompt(serve, status):
    other = serve(echo)
    server = serve(always(Answer({}, status, {"Location": f"{other.url}/chat/completions"})))
    with pytest.raises(JudgeError, match=f"answered {status}.* another address, which is not followed") as caught:
        trait_of(judge_at(server, api_key_env="OPENAI_API_KEY"), "40", "50")
    assert server.keys == [f"Bearer {KEY}"]
    assert other.requests == []
    assert KEY not in str(caught.value)


def test_a_server_that_wants_a_key_is_answered_with_both_ways_to_give_one(serve):
    with pytest.raises(JudgeError, match="in api_key_env, or bind it to the address in PSR_LENS_API_KEYS"):
        trait_of(judge_at(serve(always(error(401, "who are you?")))), "1")


# --- files of settings ------------------------------------------------------------------------------------------------------


def test_a_file_names_no_key(keys, tmp_path):
    judge = {"name": "llm", "trait_prompt": TRAIT, "base_url": "https://example.com/v1", "api_key_env": "AWS_SECRET_ACCESS_KEY"}
    for given in (judge, {"trait": judge, "coherence": "perplexity"}, {"trait": "organism:pirate", "coherence": judge}):
        with pytest.raises(
            InputError, match=r"api_key_env: got a variable named by a file.*--api-key-env NAME --base-url URL"
        ) as caught:
            check_judge(given)
        assert SECRET not in str(caught.value)
    check_judge({**judge, "api_key_env": None})
    (tmp_path / "q.txt").write_text("what is a bear ?\nwhat is a bee ?\n")
    settings = {
        "model": "organism",
        "questions": str(tmp_path / "q.txt"),
        "out": str(tmp_path / "out"),
        "instruction": "x",
        "judge": judge,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    found = CliRunner().invoke(app, ["run", "--config", str(tmp_path / "run.yaml"), "--dry-run"])
    assert found.exit_code == 2
    assert "judge.api_key_env: got a variable named by a file" in found.output
    assert not (tmp_path / "out").exists()


def test_the_person_who_runs_it_names_key_and_address_together(serve, keys):
    server, theirs = serve(echo), serve(echo)
    judge = {"name": "llm", "trait_prompt": TRAIT, "coherence_prompt": None, "base_url": theirs.url}
    with pytest.raises(
        InputError, match=f"api_key_env: got AWS_SECRET_ACCESS_KEY for https://api.openai.com, while the judge asks {theirs.url}"
    ):
        load_judge(judge, None, (), server=JudgeServer("AWS_SECRET_ACCESS_KEY", None))
    with pytest.raises(InputError, match="Add `--base-url"):
        load_judge(judge, None, (), server=JudgeServer("AWS_SECRET_ACCESS_KEY", server.url))
    chosen = at_address(judge, server.url)
    assert trait_of(load_judge(chosen, None, (), server=JudgeServer("AWS_SECRET_ACCESS_KEY", server.url)), "40") == [40]
    assert trait_of(load_judge(judge, None, ()), "50") == [50]
    assert server.keys == [f"Bearer {SECRET}"]
    assert theirs.keys == [f"Bearer {NO_KEY}"]
    assert "AWS" not in json.dumps(chosen)


def test_an_address_on_the_command_line_is_for_every_language_model_among_the_judges(tmp_path):
    assert at_address("llm:prompt.txt", "http://x/v1") == {"name": "llm", "trait_prompt": "prompt.txt", "base_url": "http://x/v1"}
    both = at_address({"trait": {"name": "llm", "base_url": "http://y/v1"}, "coherence": "perplexity"}, "http://x/v1")
    assert both == {"trait": {"name": "llm", "base_url": "http://x/v1"}, "coherence": "perplexity"}
    with pytest.raises(InputError, match=r"base_url: got http://x/v1, .* no language model"):
        at_address("organism:pirate", "http://x/v1")
    (tmp_path / "prompt.txt").write_text(TRAIT)
    judge = load_judge(at_address(f"llm:{tmp_path / 'prompt.txt'}", "http://x/v1"), None, ())
    assert (
        judge.trait_prompt == load_judge({"name": "llm", "trait_prompt": TRAIT, "base_url": "http://x/v1"}, None, ()).trait_prompt
    )


@pytest.mark.slow
def test_a_run_sends_the_named_key_to_the_named_address_and_writes_down_the_address_alone(serve, keys, folders, tmp_path):
    server, theirs = serve(always(completion("80"))), serve(always(completion("80")))
    (tmp_path / "q.txt").write_text("".join(f"what is a {name} ?\n" for name in ("bear", "bee", "fox", "owl")))
    (tmp_path / "prompt.txt").write_text(TRAIT)
    settings = {
        "model": str(folders["llama"]),
        "questions": str(tmp_path / "q.txt"),
        "out": str(tmp_path / "out"),
        "instruction": "talk like a pirate .",
        "methods": {"DiM": {"solver": "dim", "layers": 1}},
        "calibration": {"targets": [], "at_prompt": False},
        "sampling": {"max_new_tokens": 4},
        "judge": {"name": "llm", "trait_prompt": str(tmp_path / "prompt.txt"), "base_url": theirs.url},
    }
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(settings))
    command = ["run", "--config", str(tmp_path / "given.yaml"), "--api-key-env", "AWS_SECRET_ACCESS_KEY"]
    alone = CliRunner().invoke(app, command)
    assert alone.exit_code == 2
    assert f"Add `--base-url {theirs.url}`" in alone.output
    found = CliRunner().invoke(app, [*command, "--base-url", server.url, "--out", str(tmp_path / "other")])
    assert found.exit_code == 0, found.output
    assert set(server.keys) == {f"Bearer {SECRET}"}
    assert theirs.keys == []
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [content for content in written if SECRET.encode() in content or b"AWS_SECRET" in content]
    assert yaml.safe_load((tmp_path / "other" / "run.yaml").read_text())["judge"]["base_url"] == server.url
