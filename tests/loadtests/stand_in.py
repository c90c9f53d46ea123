"""A worker that follows the protocol and computes nothing. Its argument is its behaviour."""

import json
import sys
import time


def main(behaviour: str) -> None:
    if behaviour == "refuses":
        write({"ready": False, "reason": "no such engine here"})
        return
    sys.stdout.write("a library says hello\n")
    write({"ready": True, "name": behaviour, "detail": "stand-in"})
    for count, line in enumerate(sys.stdin):
        request = json.loads(line)
        if behaviour == "dies" and count == 1:
            sys.exit(3)
        if behaviour == "stumbles" and len(request["input_ids"][0]) > 64:
            write({"error": "too long for me"})
            continue
        if behaviour == "hangs":
            time.sleep(60)
        logit = 0.25 if behaviour == "differs" else 0.5
        seconds = [2.0 if behaviour == "slow" else 0.01] * request["repeat"]
        write({"seconds": seconds, "logits": [[logit, 0.0]] * len(request["input_ids"])})


def write(message: dict) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
