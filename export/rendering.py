"""Which of our templates writes a sequence as another project's tokenizer does: the same ids, or it is not used.

A chat template is a program. `transformers` runs it, in a sandbox, on a few conversations of our own.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from export.recognition import PAIRRM, Recognised
from tinyrm.chat import Message
from tinyrm.encoding import Encoder, SpecialTokens
from tinyrm.errors import InvalidInput, InvalidTemplate
from tinyrm.modernbert.checkpoint import load_tokenizer
from tinyrm.modernbert.files import input_errors, listed
from tinyrm.template import TEMPLATES, Template

# Words, digits, punctuation, capitals, an accent, a line break inside: tokenizers differ in all of them.
PROMPT = "What is 17 + 25, and why?"
RESPONSE = "It is 42.\nAdd the tens, then the units: naïve, but it works!"
OTHER = "Forty-two"
QUESTION = [Message(role="user", content=PROMPT)]
TURNS = [
    Message(role="user", content="Name a prime above 100."),
    Message(role="assistant", content="101 is one."),
    *QUESTION,
]
SYSTEM = Message(role="system", content="You are terse.")
PROBE_TOKENS = 512
MARKER = re.compile(r"<\|\w+\|>")

log = logging.getLogger(__name__)


class Probe(NamedTuple):
    """A prompt, and the ids that the model's tokenizer makes of it and RESPONSE; for a pair, of it, RESPONSE and OTHER.

    messages: the prompt as a chat; a single message of the user is a text.
    """

    messages: list[Message]
    input_ids: list[int]


def find_template(name: str, folder: str, recognised: Recognised, asked: str | None) -> Template:
    """Return the template that writes sequences as the model was trained on them.

    name: the model, for messages; its tokenizer is in `folder`.
    asked: the template that the user chose; it is taken even if the tokenizer writes something else.

    Raises InvalidInput if the tokenizer lacks what the template needs, or if none of ours is known to be the model's.
    """
    ours = {key: one for key, one in TEMPLATES.items() if one.reads == recognised.reads and not one.label_words}
    if asked and asked not in ours:
        raise InvalidInput(f"{name} reads a {recognised.reads}, and --template {asked} does not; {listed([*ours])} do")
    backend, special = load_tokenizer(folder)
    with input_errors(f"the tokenizer of {name} cannot be loaded"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if asked or recognised.architecture == PAIRRM:
        refuse_missing_tokens(name, backend, ours[asked or "pairrm"], recognised.markers)
    try:
        probes = own_sequences(name, tokenizer, recognised)
    except InvalidInput:
        if asked:
            return ours[asked]
        raise
    same = next((key for key, one in ours.items() if probes and writes(one, backend, special, probes)), None)
    if asked:
        if same not in (None, asked):
            log.warning("%s itself writes sequences as %s does, not as %s", name, same, asked)
        return ours[asked]
    if same:
        return ours[same]
    found = (
        "writes sequences in a way of its own, which no template of ours does"
        if probes
        else "has no chat template and is no known cross-encoder, so it is unknown how it reads prompt and response"
    )
    raise InvalidInput(f"{name} {found}. Name the template that it was trained with: --template {' | '.join(ours)}")


def own_sequences(name: str, tokenizer: Any, recognised: Recognised) -> list[Probe]:
    """Return prompts and the ids that the model's own tokenizer makes; none if it is unknown how it reads them."""
    with input_errors(f"the tokenizer of {name} cannot encode a conversation"):
        if recognised.architecture == PAIRRM:
            texts = zip(recognised.markers, (PROMPT, RESPONSE, OTHER), strict=True)
            return [Probe(QUESTION, [i for marker, text in texts for i in tokenizer.encode(marker + text)])]
        if tokenizer.chat_template and recognised.library == "transformers":
            return list(write_chats(tokenizer))
        if recognised.reads_pair:
            return [Probe(QUESTION, tokenizer(PROMPT, RESPONSE)["input_ids"])]
    return []


def write_chats(tokenizer: Any) -> Iterator[Probe]:
    """Yield conversations as a chat template writes them; a system message only if it accepts one."""
    answer = Message(role="assistant", content=RESPONSE)
    for messages in (QUESTION, TURNS, [SYSTEM, *TURNS]):
        try:
            written = tokenizer.apply_chat_template([*messages, answer], tokenize=True, return_dict=True)
        except TemplateError:
            if messages[0]["role"] == "system":
                continue
            raise
        yield Probe(messages, written["input_ids"])


def writes(template: Template, backend: Tokenizer, special: SpecialTokens, probes: Iterable[Probe]) -> bool:
    """Return whether a template makes the same ids as the model's own tokenizer."""
    try:
        encoder = Encoder(backend, template, special, PROBE_TOKENS)
    except InvalidTemplate:  # this tokenizer lacks what the template needs
        return False
    for messages, input_ids in probes:
        texts = encoder.tokenize("", template.render_messages(messages), (RESPONSE, OTHER))
        (ours, *_) = encoder.assemble(texts, 0, 1, swap=False)
        if ours.input_ids.tolist() != input_ids:
            return False
    return True


def refuse_missing_tokens(name: str, backend: Tokenizer, template: Template, read_at: Mapping[str, int]) -> None:
    """Raise InvalidInput unless each marker of the template is one special token of the tokenizer.

    read_at: the ids that the model gives to some of them.
    """
    special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    turns = (template.turns or {}).values()
    texts = (*template.segments, *(turn.before for turn in turns), *(turn.after for turn in turns))
    markers = dict.fromkeys(marker for text in texts for marker in MARKER.findall(text))
    if lacking := [marker for marker in markers if marker not in special]:
        raise InvalidInput(
            f"the tokenizer of {name} lacks the special tokens {listed(lacking)}, which template {template.name} needs"
        )
    if wrong := [f"{marker} is {special[marker]}, not {i}" for marker, i in read_at.items() if special[marker] != i]:
        raise InvalidInput(f"{name} is read at other tokens than those of its tokenizer: {listed(wrong)}")
