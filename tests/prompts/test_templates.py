"""Prompts under the templates of real models: the same response in both contexts, and a span that begins at the question."""

import json

import pytest
from chat_templates import KINDS, TEMPLATES, Stub, stub, tokenizer_for
from helpers import BACKENDS, save_tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

import psr_lens as psr
from psr_lens.activations.batches import context_batch
from psr_lens.activations.store.triplets import pair_from, pair_json
from psr_lens.errors import InputError, PsrLensError
from psr_lens.generation.sampling import stop_ids
from psr_lens.models import end_tokens, tokenizer_of
from psr_lens.prompts import Triplet, remade, rephrase

LETTERS = [
    *"abcxyz?.,!<>{}%[]|",
    " ",
    "\n",
    "é",
    "漢",
    "字",
    "🦊",
    "👩‍🚀",
    "what is",
    " bear",
    "user",
    "assistant",
    "system",
    "model",
]
texts = st.lists(st.sampled_from(LETTERS), min_size=1, max_size=10).map("".join).filter(str.strip)
names, kinds = st.sampled_from(list(TEMPLATES)), st.sampled_from(KINDS)


def decoded(model, ids):
    return model.tokenizer.decode(ids, clean_up_tokenization_spaces=False, skip_special_tokens=False)


def variables(name):
    return dict(TEMPLATES[name].variables)


def rendered(name, kind, messages):
    """A prompt's text by transformers' own rendering."""
    tokenizer = tokenizer_for(name, kind)
    if TEMPLATES[name].text is None:
        return f"{tokenizer.bos_token}" + "".join(f"{message['content']}\n" for message in messages)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables(name))


@given(names, kinds, texts, texts, texts)
@example("qwen", "byte level", "  what is 🦊?\n\n", "be brief .", "\n ok")
@example("gemma 2", "sentencepiece", "\nuser user ", "user", " 👩‍🚀")
@example("no template", "sentencepiece", " a\nb ", "a", "x")
@settings(max_examples=80)
def test_a_response_is_the_same_ids_in_both_contexts_and_the_span_begins_at_the_question(
    name, kind, question, instruction, response
):
    model, template = stub(name, kind), TEMPLATES[name]
    pairs = psr.prompt_pairs(model, [question], instruction, template_kwargs=variables(name))
    [triplet] = psr.with_responses(model, pairs, [response])
    assert decoded(model, triplet.response_ids) == response
    for span in ("R", "QR"):
        base, prompted = (context_batch([triplet], context, span) for context in ("base", "prompted"))
        rows = [batch.tokens[0][batch.span[0]].tolist() for batch in (base, prompted)]
        assert rows[0] == rows[1] or (span == "R" and rows[0][1:] == rows[1][1:])
        assert tuple(rows[0][-len(triplet.response_ids) :]) == triplet.response_ids
    # The prompts are the template's text, tokenised once.
    pair = triplet.pair
    user = {"role": "user", "content": question}
    joined = {"role": "user", "content": f"{instruction}\n\n{question}"}
    system = {"role": "system", "content": instruction}
    told = [system, user] if template.system_role else [joined]
    if name == "no template":
        told = [{"content": instruction}, user]
    for ids, messages in ((pair.base_ids, [user]), (pair.prompted_ids, told)):
        text = rendered(name, kind, messages)
        assert list(ids) == model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if template.bos:
            assert ids.count(model.tokenizer.bos_token_id) == text.count(template.bos) <= 1
    # The span QR is the question and what follows it, and begins with its first token where nothing is glued to that.
    tail = decoded(model, pair.base_ids[-pair.question_length :])
    after = rendered(name, kind, [user])[rendered(name, kind, [{"role": "user", "content": "⁂"}]).rindex("⁂") :].lstrip()
    if not template.glued:
        assert tail.lstrip() == after
        assert decoded(model, pair.base_ids[1 - pair.question_length :]).lstrip() != after or pair.question_length == 1
    else:
        assert after.endswith(tail.lstrip())
        assert tail.endswith("[/INST]")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_a_turn_stops_a_response_even_where_it_is_not_the_end_token(name, kind):
    tokenizer, template = tokenizer_for(name, kind), TEMPLATES[name]
    wanted = {template.eos, template.turn_end or template.eos}
    assert set(tokenizer.convert_ids_to_tokens(stop_ids(stub(name, kind), tokenizer))) == wanted


def test_a_template_that_shows_no_answers_has_no_end_of_turn():
    tokenizer = tokenizer_for("zephyr", "byte level")
    silent = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    silent.chat_template = (
        "{{ bos_token }}{% for message in messages if message['role'] == 'user' %}{{ message['content'] }}\n{% endfor %}"
    )
    assert stop_ids(Stub(silent), silent) == {silent.eos_token_id}


CONVERSATION = [
    {"role": "user", "content": "what is a bear ?"},
    {"role": "assistant", "content": "a strong animal ."},
    {"role": "user", "content": "what is a fox ?"},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_the_templates_and_its_last_message_the_question(name, kind):
    model, template = stub(name, kind), TEMPLATES[name]
    [pair] = psr.prompt_pairs(model, [CONVERSATION], "be brief .", template_kwargs=variables(name))
    assert pair.question == "what is a fox ?"
    assert pair.asked == "user: what is a bear ?\nassistant: a strong animal .\nuser: what is a fox ?"
    told = [dict(message) for message in CONVERSATION]
    assert decoded(model, pair.base_ids) == rendered(name, kind, told)
    if template.system_role:
        told.insert(0, {"role": "system", "content": "be brief ."})
    elif name == "no template":
        told.insert(2, {"role": "user", "content": "be brief ."})
    else:
        told[-1]["content"] = "be brief .\n\nwhat is a fox ?"
    assert decoded(model, pair.prompted_ids) == rendered(name, kind, told)
    own = decoded(model, pair.base_ids[-pair.question_length :]).lstrip()
    assert own.startswith("what is a fox ?" if not template.glued else "is a fox ?") or template.glued
    assert "bear" not in own


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_message_stands_in_both_prompts_and_the_instruction_joins_it(name):
    model, template = stub(name, "byte level"), TEMPLATES[name]
    chosen = {"system": "you are a bear .", "template_kwargs": variables(name)}
    [pair] = psr.prompt_pairs(model, ["what is a fox ?"], "be brief .", **chosen)
    base, prompted = decoded(model, pair.base_ids), decoded(model, pair.prompted_ids)
    assert base.count("you are a bear .") == prompted.count("you are a bear .") == 1
    if template.system_role:
        assert "you are a bear .\n\nbe brief ." in prompted
    else:
        assert prompted.index("you are a bear .") < prompted.index("be brief .") < prompted.index("what is a fox ?")
    [own] = psr.prompt_pairs(
        model,
        [[{"role": "system", "content": "you are a bear ."}, {"role": "user", "content": "what is a fox ?"}]],
        "be brief .",
        template_kwargs=variables(name),
    )
    assert own == pair


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prefix_ends_both_prompts_and_is_no_part_of_the_response(name, kind):
    model = stub(name, kind)
    plain, led = (
        psr.prompt_pairs(model, ["what is a fox ?"], "be brief .", prefix=prefix, template_kwargs=variables(name))[0]
        for prefix in ("", "a fox is")
    )
    space = " " if name == "mistral" else ""  # as that template has it before an answer
    for context in ("base", "prompted"):
        assert decoded(model, led.ids(context)) == decoded(model, plain.ids(context)) + space + "a fox is"
    batch = context_batch([Triplet(led, (9, 10), "")], "prompted", "R")
    assert batch.tokens[0][batch.span[0]].tolist() == [led.prompted_ids[-1], 9, 10]


def test_the_instruction_may_stand_after_the_question():
    model = stub("qwen", "byte level")
    [pair] = psr.prompt_pairs(model, ["what is a fox ?"], "be brief .", place="after")
    assert "what is a fox ?\n\nbe brief .<|im_end|>" in decoded(model, pair.prompted_ids)
    assert decoded(model, pair.base_ids[-pair.question_length :]) == "<|im_end|>\n<|im_start|>assistant\n"
    [plain] = psr.prompt_pairs(stub("no template", "byte level"), ["what is a fox ?"], "be brief .", place="after")
    assert decoded(model, plain.prompted_ids[1:]) != decoded(model, plain.base_ids[1:])
    assert decoded(stub("no template", "byte level"), plain.prompted_ids) == "<s>what is a fox ?\nbe brief .\n"


def test_the_templates_variables_reach_it():
    model = stub("llama 3", "byte level")
    [pair] = psr.prompt_pairs(model, ["what is a fox ?"], "be brief .", template_kwargs={"date_string": "2 Feb 2027"})
    assert "Today Date: 2 Feb 2027" in decoded(model, pair.base_ids)


def test_other_words_for_the_instruction_keep_conversation_system_message_and_prefix():
    model = stub("qwen", "byte level")
    chosen = {"system": "you are a bear .", "prefix": "a fox", "template_kwargs": {"enable_thinking": False}}
    [pair] = psr.prompt_pairs(model, [CONVERSATION], "be brief .", **chosen)
    [other] = rephrase(model, [Triplet(pair, (9,), "x")], "keep it short .")
    assert other.pair == psr.prompt_pairs(model, [CONVERSATION], "keep it short .", **chosen)[0]
    assert other.pair.base_ids == pair.base_ids


def test_a_tokenizer_without_offsets_gives_the_same_span():
    for name in TEMPLATES:
        for kind in KINDS:
            fast = stub(name, kind)
            asked = ["  what is a bear ?", "user", "🦊 é ?"]
            wanted = psr.prompt_pairs(fast, asked, "be brief .", template_kwargs=variables(name))
            assert psr.prompt_pairs(Stub(Slow(fast.tokenizer)), asked, "be brief .", template_kwargs=variables(name)) == wanted


class Slow:
    """A tokenizer that cannot tell where its tokens are."""

    is_fast = False

    def __init__(self, fast):
        self._fast = fast

    def __call__(self, text, *, return_offsets_mapping=False, **options):
        assert not return_offsets_mapping
        return self._fast(text, **options)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._fast, name)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (CONVERSATION, r"questions\[0\]: got a dict, expected a text or a list of mappings of names to texts. Put it in brackets"),
        ([[]], r"questions\[0\]: got \[\], expected a text with at least one word, or a list of messages"),
        (
            [CONVERSATION[:2]],
            r"questions\[0\]: got a conversation whose last message is the assistant's, expected one that ends with",
        ),
        ([[{"role": "tool", "content": "x"}]], r"questions\[0\]\[0\]: got .*, expected a message with a role"),
        ([[{"role": "user", "content": " "}]], r"questions\[0\]\[0\]: got .*, expected a message with a role"),
        ([[CONVERSATION[0], {"role": "system", "content": "x"}]], r"questions\[0\]\[1\]: got a system message"),
        ([CONVERSATION[1:]], r"questions\[0\]: got messages that the chat template refuses \(Conversation roles must alternate"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_conversation_is_refused(questions, message):
    with pytest.raises(InputError, match=message):
        psr.prompt_pairs(stub("gemma 2", "byte level"), questions, "be brief .")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"place": "behind"}, "place: got 'behind', expected 'before', 'after' or 'default_system'"),
        ({"system": " "}, "system: got ' ', expected a text"),
        ({"prefix": " "}, "prefix: got ' ', expected words"),
        ({"system_role": True, "place": "after"}, "place: got 'after', expected 'before' with system_role=True"),
        ({"template_kwargs": {"tokenize": True}}, "template_kwargs: got the name 'tokenize', expected a variable"),
        ({"template_kwargs": {"x": {1}}}, "template_kwargs: got .*, expected a mapping of names to JSON values"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(PsrLensError, match=message):
        psr.prompt_pairs(stub("qwen", "byte level"), ["what is a bear ?"], "be brief .", **settings)


def test_another_question_is_asked_in_the_same_conversation():
    model = stub("llama 3", "byte level")
    chosen = {"system": "you are a bear .", "template_kwargs": {"date_string": "2 Feb 2027"}}
    pairs = psr.prompt_pairs(model, [CONVERSATION], "be brief .", **chosen)
    asked = [*CONVERSATION[:2], {"role": "user", "content": "what is tea ?"}]
    assert remade(model, pairs, questions=["what is tea ?"]) == psr.prompt_pairs(model, [asked], "be brief .", **chosen)


def test_a_pair_is_the_same_after_a_file():
    model = stub("qwen", "byte level")
    plain = psr.prompt_pairs(model, ["what is a 🦊 ?"], "be brief .")
    rich = psr.prompt_pairs(model, [CONVERSATION], "be brief .", prefix="a fox", template_kwargs={"enable_thinking": False})
    for pair in (*plain, *rich):
        assert pair_from(json.loads(json.dumps(pair_json(pair)))) == pair
    assert set(pair_json(plain[0])) == {"question", "instruction", "base_ids", "steered_ids", "question_length"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_may_have_several_end_tokens_and_no_bos_and_transformer_lens_changes_neither(tmp_path, backend):
    folder = save_tiny("llama", tmp_path / "model")
    GenerationConfig(eos_token_id=[3, 5], pad_token_id=0).save_pretrained(folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    without_bos = tokenizer_for("qwen", "byte level")
    without_bos.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()  # plain text, which would begin with a BOS
    model = psr.load_model(folder, backend=backend)
    assert end_tokens(model) == {3, 5}
    ours = tokenizer_of(model)
    assert ours.bos_token is None
    assert stop_ids(model, ours) == {3, 5, without_bos.eos_token_id}
    [pair] = psr.prompt_pairs(model, ["what is a bear ?"], "be brief .")
    assert list(pair.base_ids) == without_bos("what is a bear ?\n", add_special_tokens=False)["input_ids"]
