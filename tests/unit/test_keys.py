"""Keys in what others say, and in the wrong place of a recipe."""

import base64
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hostile_server import FORMS, odd_json

from crosspref.errors import RecipeError
from crosspref.keys import without_key, without_secrets, without_what_looks_like_a_key
from crosspref.recipe.files import load_recipe, load_settings
from crosspref.recipe.sections import ServerSettings
from crosspref.suites.settings import EvaluationSettings

KEY = "sk-live-aB3dE/fG+hIjK_0123456789"


@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_taken_out_in_every_form(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    said = odd_json({"text": f"the key {FORMS[form](KEY)} is wrong"})
    text = said.decode()
    for hidden in (without_key(said, KEY), without_key(text, KEY).encode(), without_secrets(text).encode()):
        assert b"***" in hidden
        assert hidden.startswith(b'{"text": "the key ')
        assert hidden.endswith(b' is wrong"}')
        for known in (KEY, quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode()[:-4], KEY.encode().hex()):
            assert known.encode() not in hidden


def test_a_key_that_was_escaped_twice_or_in_part() -> None:
    assert without_key(r"a \\u0073k-live-aB3dE\/fG+hIjK_0123456789 b", KEY) == "a *** b"
    assert without_key("sk%252Dlive-aB3dE%2ffG%2BhIjK_&#48;123456789", KEY) == "***"
    encoded = base64.urlsafe_b64encode(f"Bearer {KEY}?".encode()).decode()
    assert "***" in without_key(encoded, KEY)


@pytest.mark.parametrize("key", ["", "none", "EMPTY", "dummy", "ollama", "not-needed", "no-key-required"])
def test_a_placeholder_is_no_secret(key: str) -> None:
    assert without_key(f"not-needed: EMPTY or none, {key}", key) == f"not-needed: EMPTY or none, {key}"


@pytest.mark.parametrize("piece", ["\\", "%25", "&#0", "sk-live-aB3dE", "s"])
def test_a_text_that_almost_holds_it_many_times_takes_no_longer(piece: str) -> None:
    """Reading each place to the end of the text would take hours."""
    text = piece * 300_000
    assert without_key(text, KEY) == text


@pytest.mark.parametrize(
    "key",
    ["sk-proj-SECRET0123456789abc", "hf_AbCdEfGhIjKlMnOpQ1", "0123456789abcdef0123456789abcdef"],
)
def test_what_looks_like_a_key(key: str) -> None:
    assert key not in without_what_looks_like_a_key(f"it is {key!r} (str)")


@pytest.mark.parametrize(
    "text", ["Meta-Llama-3.1-8B-Instruct-GPTQ-Int4", "data/prompts-2024-10-31.jsonl", "internationalisation", "1" * 40]
)
def test_what_does_not(text: str) -> None:
    assert without_what_looks_like_a_key(f"it is {text}") == f"it is {text}"


PLACES = {
    "unknown setting": ("server.api_key", "server: {{api_key: {key}}}"),
    "variable": ("server.key_variable", "server: {{key_variable: {key}}}"),
    "query": ("server.url", "server: {{url: 'https://host/v1?api_key={key}'}}"),
    "fragment": ("server.url", "server: {{url: 'https://host/v1#{key}'}}"),
    "user": ("server.urls.pi_I", "server: {{urls: {{pi_I: 'https://{key}@host/v1'}}}}"),
    "no address": ("server.url", "server: {{url: {key}}}"),
    "number": ("server.concurrency", "server: {{concurrency: {key}}}"),
    "choice": ("server.protocol", "server: {{protocol: {key}}}"),
    "section": ("server", "server: {key}"),
    "no YAML": ("", "server: {{url: [{key}"),
}


@pytest.mark.parametrize("key", ["sk-proj-SECRET0123456789abc", "0123456789abcdef0123456789abcdef"])
@pytest.mark.parametrize("place", PLACES)
def test_a_key_in_the_wrong_place_of_a_recipe_is_refused_and_not_repeated(place: str, key: str, tmp_path: Path) -> None:
    setting, line = PLACES[place]
    file = tmp_path / "recipe.yaml"
    head = "models: {initial: a, policy: b}\nlanguages: [en, es]\nprompts: {source: p.jsonl}\n"
    file.write_text(head + line.format(key=key), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert caught.value.keys == ((setting,) if setting else ())
    assert key not in "".join(traceback.format_exception(caught.value))
    if setting:
        file.write_text(head, encoding="utf-8")
        change = line.format(key=key).replace("server: ", "server=", 1)
        with pytest.raises(RecipeError) as caught:
            load_recipe(file, [change])
        assert caught.value.keys == (setting,)
        assert key not in "".join(traceback.format_exception(caught.value))


def test_secrets_of_the_environment_and_of_addresses_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "DB_PASSWORD": "correcthorse",
        "GOOGLE_CREDENTIALS": "x1/" * 2000,
        "ODD_KEY": "ab\udcffcdefgh",
    }
    for name, secret in secrets.items():
        monkeypatch.setenv(name, secret)
    for secret in secrets.values():
        assert without_secrets(f"a {secret} b") == "a *** b"
    address = "https://me:pass@host/v1?api_key=x&b=1 judge.key_variable=sesame"
    assert without_secrets(address) == "https://***@host/v1?api_key=***&b=1 judge.key_variable=***"


def test_a_short_key_in_an_unknown_setting_is_not_repeated_either() -> None:
    for change in ("judge.api_key=sesame", "judge.key_variable=sesame", "judge.url=http://host/v1?key=sesame"):
        with pytest.raises(RecipeError) as caught:
            load_settings(EvaluationSettings, None, [change])
        assert "sesame" not in str(caught.value)


def test_pydantic_does_not_repeat_it_where_settings_are_made_in_python() -> None:
    with pytest.raises(ValueError, match="capitals") as caught:
        ServerSettings(key_variable=KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", ["sk", "9KEY", "MY-KEY", "hf_secret", "", "A" * 65, "KEY\n"])
def test_what_is_no_variables_name(name: str) -> None:
    with pytest.raises(ValueError, match="environment variable"):
        ServerSettings(key_variable=name)


@pytest.mark.parametrize("request_", ["{api_key: x}", "{Authorization: x}", '{user: "0123456789abcdefghij"}'])
def test_a_judges_key_is_no_field_of_a_request_since_those_are_stored(request_: str) -> None:
    with pytest.raises(RecipeError, match=r"judge\.key_variable") as caught:
        load_settings(EvaluationSettings, None, [f"judge.request={request_}"])
    assert caught.value.keys == ("judge.request",)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://host:99999/v1",
            "https://host:port/v1",
            "https://ho st/v1",
            "https:///v1",
            "ftp://host/v1",
            "host/v1",
        ),
        *("http://[::1/v1", "http://host/\nv1", "http://host\\@other/v1"),
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        ServerSettings(url=url)


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "https://[::1]:8000/v1", "https://api.example.org/openai/v1/"]
)
def test_addresses(url: str) -> None:
    assert ServerSettings(url=url).url == url
