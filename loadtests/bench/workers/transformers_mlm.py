"""transformers as it comes: masked LM over the whole vocabulary at every token, SDPA. The reference for the logits."""

import sys

from loadtests.bench.workers.protocol import Call, Prepare, Request, arguments, mask_positions, serve


def load() -> tuple[Prepare, str]:
    import torch
    import transformers

    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    model = transformers.AutoModelForMaskedLM.from_pretrained(
        options.model, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    ).eval()
    labels = torch.tensor(options.labels)

    def prepare(request: Request) -> Call:
        ids = request["input_ids"]
        inputs = {name: torch.tensor(request[name]) for name in ("input_ids", "attention_mask")}
        rows, positions = torch.arange(len(ids)), torch.tensor(mask_positions(ids, options.mask))

        def call() -> list[list[float]]:
            with torch.inference_mode():
                logits = model(**inputs).logits
            found: list[list[float]] = logits[rows, positions][:, labels].float().tolist()
            return found

        return call

    return prepare, f"transformers {transformers.__version__}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(serve("transformers", load))
