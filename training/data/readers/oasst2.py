"""OpenAssistant Conversations 2 (arXiv 2304.07327): trees of messages, with ranks among the replies to one message."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from tinyrm.chat import Message, read_turn, to_message
from training.data.cleaning import Raw, Reason, tie_of
from training.data.readers.dialogue import render
from training.data.rows import Published, Row, rows
from training.data.source import Source

PUBLISHED = Published(
    "OpenAssistant/oasst2",
    ("message_id", "parent_id", "text", "role", "lang", "review_result", "deleted", "rank"),
)


class Forest:
    """All messages of a source that were not deleted and did not fail review, linked to the replies to them."""

    def __init__(self, source: Source, data_dir: Path) -> None:
        self.by_id = {
            row["message_id"]: row | {"text": row["text"] or ""}
            for row in rows(PUBLISHED, source, data_dir)
            if source.part in (None, row["lang"])
            and not row["deleted"]
            and row["review_result"] is not False
            and row["role"]
        }
        self.replies: dict[str | None, list[Row]] = defaultdict(list)
        for row in self.by_id.values():
            self.replies[row["parent_id"]].append(row)

    def thread(self, row: Row) -> list[Message] | None:
        """Return the messages from the root of the tree to this one; None if one is missing or blank."""
        turns: list[Message] = []
        current: Row | None = row
        while current is not None:
            speaker, text = read_turn({"role": current["role"], "content": current["text"]})
            if not text.strip():
                return None
            turns.append(to_message(speaker, text))
            parent = current["parent_id"]
            if parent is None:
                return turns[::-1]
            current = self.by_id.get(parent)
        return None


def read(source: Source, data_dir: Path) -> Iterator[Raw | Reason]:
    """Each two ranked replies of the assistant to one message are a pair; the lower rank is the better one."""
    forest = Forest(source, data_dir)
    for parent_id, replies in forest.replies.items():
        ranked = [row for row in replies if row["role"] == "assistant" and row["rank"] is not None]
        if parent_id is None or len(ranked) < 2:
            continue
        thread = forest.thread(forest.by_id[parent_id]) if parent_id in forest.by_id else None
        for better, worse in combinations(sorted(ranked, key=lambda row: row["rank"]), 2):
            if thread is None:
                yield "unlinked"
                continue
            raw = Raw(render(thread), better["text"], worse["text"], domain="chat", origin=f"oasst2:{better['lang']}")
            yield tie_of(raw, source.ties) if better["rank"] == worse["rank"] else raw


def conversations(source: Source, data_dir: Path) -> Iterator[list[Message]]:
    """Yield every thread from a root to a reply of the assistant after which the assistant does not speak again.

    A thread in which it does is contained in a longer one. Threads of one tree share their first messages.
    """
    forest = Forest(source, data_dir)
    for row in forest.by_id.values():
        questions = [reply for reply in forest.replies.get(row["message_id"], []) if reply["text"].strip()]
        goes_on = any(reply["text"].strip() for q in questions for reply in forest.replies.get(q["message_id"], []))
        if row["role"] == "assistant" and not goes_on and (thread := forest.thread(row)):
            yield thread
