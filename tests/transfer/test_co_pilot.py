"""A co-pilot gives what reading everything again at each token by hand gives, alone and in a batch, and refuses what it cannot drive."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from helpers import pairs_of, random_replacement
from tiny_tokenizers import TEXTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from two_models import by_hand

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError
from psr_lens.generation.token_choice import Ending
from psr_lens.prompts.token_text import _byte_alphabet
from psr_lens.transfer.co_pilot import CoPilot
from psr_lens.transfer.driving_coefficients import ReadAgain, ReadOn, coefficients_of_texts, reader, written

HOOK = "blocks.{}.hook_resid_post"
LAYERS = [(1, 0), (1, 2), (4, 5)]
LETTERS = {byte: letter for letter, byte in _byte_alphabet().items()}


@pytest.fixture(scope="module")
def driven(two) -> CoPilot:
    return psr.transfer.copilot(two.source, two.target, two.paired, two.fitted, layers=LAYERS)


@pytest.fixture(scope="module")
def asked(two) -> psr.prompts.PromptPairs:
    return psr.prompt_pairs(two.target, ["what is a fox ?", "how do i bake some bread ?"], instruction="talk like a pirate .")


def drawn_by_hand(two, driven, pair, steps: int, alpha: float) -> list[int]:
    """Greedy decoding: at each token both models read everything again, in plain transformers with hooks written here."""
    sites = {layer: two.fitted.sites[HOOK.format(layer)] for layer in range(6)}
    [own] = psr.prompt_pairs(two.source, [pair.question], instruction="talk like a pirate .")
    ids: list[int] = []
    coefficients: dict[int, list[torch.Tensor]] = {1: [], 4: []}
    blocks = two.target_hf.transformer.h

    def adding(source: int, target: int):
        def hook(module, inputs, output):
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            for step, each in enumerate(coefficients[source]):
                stream[0, len(pair.base_ids) - 1 + step] += alpha * (each.float() @ driven.directions[target])
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    for _ in range(steps):
        text = two.target.tokenizer.decode(ids, skip_special_tokens=True)
        read = tuple(two.source.tokenizer(text, add_special_tokens=False)["input_ids"])
        arriving = by_hand(two.source_hf, [psr.Triplet(own, read, text)], sites=sites)
        for layer, known in coefficients.items():
            known.append(torch.relu(arriving[layer][-1] @ sites[layer].weights.double().T + sites[layer].bias.double()))
        handles = [blocks[target].register_forward_hook(adding(source, target)) for source, target in LAYERS]
        with torch.no_grad():
            logits = two.target_hf(torch.tensor([[*pair.base_ids, *ids]])).logits[0, -1]
        for handle in handles:
            handle.remove()
        ids.append(int(logits.argmax()))
    return ids


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_responses_are_those_of_reading_everything_again_at_each_token(two, driven, asked, alpha) -> None:
    sampling = psr.SamplingConfig(temperature=0, max_new_tokens=8)
    found = driven.generate(asked, alpha=alpha, sampling=sampling)
    for pair, each in zip(asked, found, strict=True):
        assert list(each.ids) == drawn_by_hand(two, driven, pair, len(each.ids), alpha)
    assert [each.ids for each in found] != [each.ids for each in psr.generate(two.target, asked, sampling=sampling)]


@pytest.mark.slow
def test_in_a_batch_as_alone(two, driven) -> None:
    """Prompts of several lengths and responses that end at different times, so that the batch shrinks; strengths of their own."""
    questions = ["what is a fox ?", *psr.organism.questions(3, split="train", seed=2)]
    pairs = psr.prompt_pairs(two.target, questions, instruction="talk like a pirate .")
    sampling, alphas = psr.SamplingConfig(max_new_tokens=30), [0.0, 1.0, 0.5, 1.5]
    together = driven.generate(pairs, alpha=alphas, sampling=sampling)
    assert len({len(each.ids) for each in together}) > 1
    for index in (1, 3):
        [alone] = driven.generate(pairs[index : index + 1], alpha=alphas[index], sampling=sampling, streams=[index])
        assert alone.ids == together[index].ids
    assert together[0].ids == psr.generate(two.target, pairs[:1], sampling=sampling)[0].ids


def test_directions_solve_the_regression_with_the_earlier_ones_in_force(two, driven) -> None:
    sites = {layer: two.fitted.sites[HOOK.format(layer)] for layer in range(6)}
    arriving = by_hand(two.source_hf, two.triplets, sites=sites)
    texts = [each.target for each in two.paired]
    prompted = by_hand(two.target_hf, texts, "prompted")
    x = torch.relu(arriving[1] @ sites[1].weights.double().T + sites[1].bias.double())
    scale = torch.tensor([each.trait / 100 for each in two.triplets])[two.text, None].double()
    x, y = scale * x, prompted[0] - two.x[0]
    ridge = torch.diag(0.003 * x.square().sum(0))
    wanted = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    torch.testing.assert_close(driven.directions[0].double(), wanted, rtol=2e-2, atol=2e-3)
    # Without what layer 0 adds, layer 2 would be fitted to more than is left.
    alone = psr.transfer.copilot(two.source, two.target, two.paired, two.fitted, layers=LAYERS[1:])
    assert not torch.allclose(alone.directions[2], driven.directions[2], rtol=0.05, atol=0.05)


def test_a_model_beside_itself_is_driven_as_its_own_replacement_steers_it(two) -> None:
    """With the same directions: the coefficients are then those that the replacement itself would have."""
    layers = [(layer, layer) for layer in range(6)]
    directions = {layer: two.fitted.sites[HOOK.format(layer)].directions for layer in range(6)}
    same = CoPilot(two.source, two.source, two.fitted, directions, tuple(layers))
    pairs = [each.pair for each in two.triplets[:3]]
    sampling = psr.SamplingConfig(max_new_tokens=12)
    found = [each.ids for each in same.generate(pairs, sampling=sampling)]
    assert found == [each.ids for each in psr.generate(two.source, pairs, two.fitted, sampling=sampling)]


GROWING = [
    ["the", "arr , the bear", ""],
    ["the be", "arr , the bear", "arr"],
    ["the bear .", "arr , the bears are é", "arr , t"],
    ["the bear . arr", "arr , the bears are éx", "arr ,"],
]
"""Three texts, four times: tokens are added, replaced and taken back, at different times in each."""


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of so few tokens that the embedded models have an embedding for each."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False))
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    found.chat_template = "{% for message in messages %}{{ message['content'] }} :{% endfor %}"
    return found


def test_reading_on_is_reading_again(shipped, pieces, monkeypatch) -> None:
    """In both classes of models, where a longer text is encoded otherwise, and with another number of texts at the end."""
    model = shipped.model
    # A bridge would take a tokenizer that is assigned for a new vocabulary.
    monkeypatch.setitem(vars(model), "_tokenizer" if "_tokenizer" in vars(model) else "tokenizer", pieces)
    pairs = psr.prompt_pairs(model, ["what is the bear ?", "the bear", "arr"], instruction="arr .")
    replacement = random_replacement(model, layers=[1, 3], rank=4, seed=3)
    names = list(replacement.sites)
    assert isinstance(reader(model, replacement, pairs, names), ReadOn)
    on, again = (each(model, replacement, pairs, names) for each in (ReadOn, ReadAgain))
    ids = [[each.response_ids for each in psr.with_responses(model, pairs[:2], texts[:2])] for texts in GROWING]
    assert any(later[: len(before)] != before for one, other in pairwise(ids) for before, later in zip(one, other, strict=True))
    with torch.no_grad():
        for index, texts in enumerate(GROWING):
            if index == 3:
                for each in (on, again):
                    each.select(torch.tensor([2, 0]))
                texts = [texts[2], texts[0]]
            found, wanted = on.read(texts), again.read(texts)
            for name in names:
                torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4)
            assert any(bool((each > 0).any()) for each in wanted.values())
    on.close()


def test_rows_of_a_batch_that_need_more_columns_than_the_context_are_read_on(organism, monkeypatch) -> None:
    """A long prompt beside a short one, whose text goes on: each fits, both together do not."""
    model = organism.model
    pairs = psr.prompt_pairs(model, ["the bear " * 48, "the bear"], instruction="arr .")
    long, short = (len(each.base_ids) for each in pairs)
    limit = int(model.cfg.n_ctx)
    words = limit - long + 8
    assert short + words + 3 < limit < long + words
    replacement = random_replacement(model, layers=[1], rank=2, seed=3)
    names = list(replacement.sites)
    on, again = (each(model, replacement, pairs, names) for each in (ReadOn, ReadAgain))
    begun = []
    begin = on._begin
    monkeypatch.setattr(on, "_begin", lambda: (begun.append(1), begin()))
    with torch.no_grad():
        for more in range(3):
            texts = ["arr", " ".join(["bear"] * (words + more))]
            found, wanted = on.read(texts), again.read(texts)
            torch.testing.assert_close(found[names[0]], wanted[names[0]], rtol=1e-3, atol=1e-4)
    assert not begun
    on.close()


def test_a_response_that_has_ended_is_read_no_further(two, driven, asked, monkeypatch) -> None:
    """By an end token or by a text, while another in its batch goes on: what is drawn after it is not read."""
    read = []
    own = ReadOn.read
    monkeypatch.setattr(ReadOn, "read", lambda self, texts: (read.append(list(texts)), own(self, texts))[1])
    tokenizer, prompt = two.target.tokenizer, asked[0].base_ids
    bear, fox = tokenizer.convert_tokens_to_ids(["bear", "fox"])
    ended = Ending(tokenizer, [tokenizer.eos_token_id], ["fox"], torch.device("cpu"))
    [beside] = psr.prompt_pairs(two.source, [asked[0].question], instruction="talk like a pirate .")
    with torch.no_grad(), driven._steps([beside] * 3, torch.ones(3), ended) as (step, select):
        step(torch.tensor([prompt] * 3), torch.ones(3, len(prompt), dtype=torch.long))
        for count, tokens in enumerate([[bear, bear, bear], [tokenizer.eos_token_id, fox, bear], [bear, bear, bear]], 1):
            step(torch.tensor(tokens)[:, None], torch.ones(3, len(prompt) + count, dtype=torch.long))
        select(torch.tensor([2]))
        step(torch.tensor([[bear]]), torch.ones(1, len(prompt) + 4, dtype=torch.long))
    assert read == [
        [""] * 3,
        ["bear"] * 3,
        ["bear", "bear", "bear bear"],
        ["bear", "bear", "bear bear bear"],
        ["bear bear bear bear"],
    ]


@pytest.mark.parametrize("text", ["a é", "€", "👍 b 👍", "\ufffd", "b \ufffd\ufffd", "\ufffdé"])
def test_only_a_character_that_is_not_whole_yet_is_left_out(pieces, text) -> None:
    """Byte by byte, against UTF-8 itself: a sign for lost bytes that the model wrote is text."""
    spelt = text.encode()
    ids = pieces.convert_tokens_to_ids([LETTERS[byte] for byte in spelt])
    for count in range(len(ids) + 1):
        assert written(pieces, ids[:count]) == spelt[:count].decode(errors="ignore")
    # No further bytes make a character of these.
    broken = pieces.convert_tokens_to_ids([LETTERS[byte] for byte in b"a\x80"])
    assert written(pieces, broken) == "a\ufffd"


def test_a_model_that_looks_at_the_last_few_tokens_alone_reads_again(organism, monkeypatch) -> None:
    cfg = organism.model.original_model.config if hasattr(organism.model, "original_model") else organism.model.cfg
    if hasattr(organism.model, "original_model"):
        monkeypatch.setattr(cfg, "sliding_window", 8, raising=False)
        monkeypatch.setattr(cfg, "layer_types", ["sliding_attention"] * 6, raising=False)
    else:
        monkeypatch.setattr(cfg, "use_local_attn", True)
    pairs = pairs_of(organism.model, 1)
    assert isinstance(reader(organism.model, random_replacement(organism.model, layers=[1]), pairs, [HOOK.format(1)]), ReadAgain)


def test_one_reading_of_whole_texts_is_a_reading_after_each_token(two) -> None:
    names = [HOOK.format(layer) for layer in (0, 3)]
    found = coefficients_of_texts(two.source, two.target, two.paired[:2], two.fitted, names, 4_096)
    row = 0
    for each in two.paired[:2]:
        again = ReadAgain(two.source, two.fitted, [each.source.pair], names)
        for count in range(len(each.target.response_ids) + 1):
            text = two.target.tokenizer.decode(each.target.response_ids[:count], skip_special_tokens=True)
            for name, values in again.read([text]).items():
                torch.testing.assert_close(found[name][row], values[0], rtol=1e-4, atol=1e-4)
            row += 1
    assert all(len(values) == row for values in found.values())


def test_what_cannot_be_driven_is_refused(two, driven, asked) -> None:
    def made(replacement=two.fitted, **given):
        return psr.transfer.copilot(two.source, two.target, given.pop("paired", two.paired), replacement, **given)

    with pytest.raises(InputError, match="config: "):
        made(config=psr.Sequential(span="QR"))
    with pytest.raises(InputError, match="paired: got no texts"):
        made(paired=[])
    with pytest.raises(InputError, match=r"replacement: .*span 'R'"):
        made(dataclasses.replace(two.fitted, tokens="last"))
    one = two.fitted.sites[HOOK.format(1)]
    with pytest.raises(InputError, match=r"replacement: .*sites at hook_resid_post"):
        made(dataclasses.replace(two.fitted, sites={"blocks.1.hook_mlp_out": one}))
    with pytest.raises(InputError, match=r"replacement: .*a site at one of the source layers \(1\)"):
        made(dataclasses.replace(two.fitted, sites={HOOK.format(2): one}), layers=[(1, 1)])
    with pytest.raises(ArtifactError, match="made for organism with architecture="):
        psr.transfer.copilot(two.target, two.source, two.paired, two.fitted)
    ready = dataclasses.replace(asked[1], base_ids=asked[1].base_ids[1:])
    with pytest.raises(InputError, match=r"pairs\[1\]: .*ready token ids"):
        driven.generate([asked[0], ready])
    with pytest.raises(InputError, match="alpha"):
        driven.generate(asked, alpha=[1.0])
