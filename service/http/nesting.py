"""How deep a JSON text nests, before anything parses it."""

import numpy as np

# A batch of dialogues nests five deep.
MAX_NESTING = 32

NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
STEP_OF = np.zeros(256, dtype=np.int8)
STEP_OF[list(b"[{")], STEP_OF[list(b"]}")] = 1, -1


def is_too_deep(text: bytes) -> bool:
    """Whether brackets outside of strings open deeper than MAX_NESTING, in valid JSON or not. Linear, no recursion."""
    if text.count(b"[") + text.count(b"{") <= MAX_NESTING:
        return False
    # Without escapes every quote that is left begins or ends a string.
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    structure = np.frombuffer(unescaped.translate(None, NOT_STRUCTURE), dtype=np.uint8)
    in_string = np.cumsum(structure == ord('"'), dtype=np.uint32) % 2 == 1
    steps = np.where(in_string, np.int8(0), STEP_OF[structure])
    return bool(np.cumsum(steps, dtype=np.int32).max(initial=0) > MAX_NESTING)
