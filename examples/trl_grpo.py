"""GRPO with TRL, rewards from TinyRM: one step of a toy policy made on the spot, on a CPU. Needs `trl`.

    python examples/trl_grpo.py --url http://127.0.0.1:8000 --out runs/grpo

For a real run take a real model, tokenizer and dataset; `reward_funcs` stays as it is. The step's prompts, completions,
rewards and advantages go to OUT/completions/.
"""

import argparse

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from tinyrm.integrations.trl import reward_func

PROMPTS = ["What is 2 + 2?", "Say hello to my grandmother.", "Name a colour of the sky.", "What do bees make?"]
NUM_GENERATIONS = 4


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few words of the prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(PROMPTS * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")  # noqa: S106


def toy_policy(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", default="runs/grpo")
    parser.add_argument("--steps", type=int, default=1)
    arguments = parser.parse_args()
    tokenizer = toy_tokenizer()
    settings = GRPOConfig(
        output_dir=arguments.out,
        max_steps=arguments.steps,
        num_generations=NUM_GENERATIONS,
        per_device_train_batch_size=2 * NUM_GENERATIONS,
        max_completion_length=16,
        learning_rate=1e-3,
        logging_steps=1,
        log_completions=True,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=toy_policy(tokenizer),
        processing_class=tokenizer,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        reward_funcs=reward_func(arguments.url, domain="general", on_failure="raise"),
    )
    trainer.train()
    step = trainer.state.log_history[0]
    print(f"step {step['step']}: reward_std {step['reward_std']:.4f}, grad_norm {step['grad_norm']:.4f}")


if __name__ == "__main__":
    main()
