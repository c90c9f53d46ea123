# Completion of tinyrm for bash. In ~/.bashrc: source <(tinyrm completion bash)

# Offer these words, and no files.
_tinyrm_words() {
    compopt +o default 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "${COMP_WORDS[COMP_CWORD]}")
}

_tinyrm() {
    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"
    local name="${COMP_WORDS[1]}" options="" words=""
    local recipes="author/base-chat author/base-reasoning author/base-safety author/large-all-at-once author/large-chat author/large-reasoning author/large-safety author/large-sft author/large-sft-chat experiments/cloze experiments/consistency experiments/distilled experiments/dora experiments/frozen-2 experiments/frozen-4 experiments/frozen-6 experiments/generalist experiments/lora experiments/merged-mean experiments/merged-task-arithmetic experiments/merged-ties experiments/one-order experiments/one-order-half experiments/pair-cls experiments/pair-mean experiments/pointwise experiments/size-128 experiments/size-192 experiments/specialist-chat experiments/specialist-reasoning experiments/specialist-safety experiments/tokens experiments/ways/cloze experiments/ways/pointwise experiments/ways/scratch-cloze experiments/ways/scratch-pointwise experiments/ways/scratch-set-last experiments/ways/scratch-set-none experiments/ways/set-all experiments/ways/set-last experiments/ways/set-last-distractors experiments/ways/set-masks experiments/ways/set-none experiments/ways/set-none-distractors experiments/ways/set-none-mask finetune from_scratch/1-tokenizer from_scratch/2-pretrain from_scratch/3-short from_scratch/4-cloze paper/base-chat paper/base-reasoning paper/base-safety paper/large-all-at-once paper/large-chat paper/large-reasoning paper/large-safety paper/large-sft paper/large-sft-chat sizes/pretrain-128 sizes/pretrain-192 starter/pairs tinyrm/base-all-at-once tinyrm/base-all-at-once-open tinyrm/base-chat tinyrm/base-pointwise tinyrm/base-reasoning tinyrm/base-safety tinyrm/ettin-150m tinyrm/ettin-17m tinyrm/ettin-1b tinyrm/ettin-32m tinyrm/ettin-400m tinyrm/ettin-68m tinyrm/large-all-at-once tinyrm/large-all-at-once-open tinyrm/large-chat tinyrm/large-distilled tinyrm/large-merged tinyrm/large-reasoning tinyrm/large-safety tinyrm/large-sft tinyrm/large-sft-chat"
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then _tinyrm_words "serve train export evaluate compare rank score models bench keys completion --help --version"; return; fi
    if ((COMP_CWORD > 2)); then
        case "$name ${COMP_WORDS[2]}" in
        "train plan" | "train curves" | "train compare" | "train sweep" | "train data" | "keys new" | "keys list" | "keys revoke") name="$name ${COMP_WORDS[2]}" ;;
        esac
    fi
    case "$name $prev" in
        "train --data" | "train --validation" | "train --base" | "train --out" | "train --recipe" | "train plan --data" | "train curves --out" | "train compare --data" | "train compare --out" | "train sweep --space" | "train sweep --data" | "train sweep --paper-protocol" | "train data --data" | "train data --decontaminate" | "train data --write" | "export --model" | "export --out" | "export --adapter" | "export --calibration" | "export --card" | "evaluate --bundle" | "evaluate --checkpoint" | "evaluate --pairs" | "evaluate --data" | "evaluate --fit-temperature" | "evaluate --against" | "evaluate --out" | "compare --api-key-file" | "rank --api-key-file" | "score --out" | "score --api-key-file" | "score --bundle" | "models --api-key-file" | "keys new --file" | "keys list --file" | "keys revoke --file") :; return ;;
        "train --hardware" | "train --price-per-hour" | "train --revision" | "train --domain" | "train --instruction" | "train --source" | "train --set" | "train --epochs" | "train --max-tokens" | "train --seed" | "train plan --hardware" | "train plan --price-per-hour" | "train compare --seeds" | "train compare --peak-lrs" | "train compare --max-steps" | "train sweep --trials" | "train sweep --storage" | "train sweep --seed" | "train data --held-out" | "train data --seed" | "train data --max-characters" | "export --revision" | "export --max-tokens" | "export --max-calibration-pairs" | "export --max-weighted-flips" | "export --max-flips" | "evaluate --service" | "evaluate --pairs-per-kind" | "evaluate --seed" | "evaluate --revision" | "evaluate --engine" | "evaluate --domain" | "compare --url" | "compare --timeout-s" | "compare --domain" | "compare --instruction" | "compare --model" | "rank --url" | "rank --timeout-s" | "rank --domain" | "rank --instruction" | "rank --model" | "rank --top" | "rank --reference" | "score --domain" | "score --instruction" | "score --url" | "score --timeout-s" | "score --model" | "score --batch-items" | "score --concurrency" | "score --engine" | "score --precision" | "score --threads" | "score --rows-per-part" | "score --ray" | "score --cpus-per-engine" | "score --gpus-per-engine" | "score --engines" | "models --url" | "models --timeout-s" | "bench --engine" | "bench --precision" | "bench --threads" | "bench --streams" | "bench --tokens" | "bench --repeat" | "keys new --name" | "keys new --scopes" | "keys revoke --name") _tinyrm_words; return ;;
        "train --reads") _tinyrm_words "pair response set"; return ;;
        "train sweep --sampler") _tinyrm_words "tpe gp"; return ;;
        "train data --drop") _tinyrm_words "8 13"; return ;;
        "export --template") _tinyrm_words "figure2 answer-colon bert-pair roberta-pair pairrm chatml llama-3 human-assistant"; return ;;
        "export --graph") _tinyrm_words "auto plain optimised"; return ;;
        "export --precision") _tinyrm_words "fp32 bf16 int8"; return ;;
        "export --stored") _tinyrm_words "fp32 fp16 mixed int8"; return ;;
        "evaluate --split") _tinyrm_words "gpt claude"; return ;;
        "compare --swap" | "rank --swap" | "score --swap") _tinyrm_words "on off auto"; return ;;
        "compare --reasoning" | "rank --reasoning" | "score --reasoning") _tinyrm_words "keep drop"; return ;;
        "rank --strategy") _tinyrm_words "round_robin swiss knockout reference cascade"; return ;;
        "rank --empty") _tinyrm_words "last judge"; return ;;
    esac
    case "$name" in
        "serve") options="--settings" words="" ;;
        "train") options="--data --resume --fresh --dry-run --json --hardware --price-per-hour --revision --domain --instruction --source --validation --base --out --reads --recipe --set --epochs --max-tokens --seed" words="plan curves compare sweep data $recipes" ;;
        "train plan") options="--data --hardware --price-per-hour --json" words="$recipes" ;;
        "train curves") options="--out --json" words="" ;;
        "train compare") options="--data --out --seeds --peak-lrs --max-steps --json" words="$recipes" ;;
        "train sweep") options="--trials --storage --space --data --sampler --seed --paper-protocol --json" words="$recipes" ;;
        "train data") options="--data --held-out --seed --decontaminate --drop --max-characters --write --conversations --json" words="" ;;
        "export") options="--model --out --revision --adapter --calibration --demo --card --template --max-tokens --graph --max-calibration-pairs --precision --max-weighted-flips --max-flips --stored --weights --json" words="" ;;
        "evaluate") options="--bundle --checkpoint --service --pairs --pairs-per-kind --seed --data --revision --split --engine --domain --fit-temperature --write-temperature --record --card --against --out --json" words="pairs sanity obvious reward-bench reward-bench-2 rm-bench judge-bench" ;;
        "compare") options="--url --api-key-file --timeout-s --domain --instruction --swap --model --reasoning --json" words="" ;;
        "rank") options="--url --api-key-file --timeout-s --domain --instruction --swap --model --reasoning --strategy --top --reference --empty --json" words="" ;;
        "score") options="--out --domain --instruction --reasoning --json --url --api-key-file --timeout-s --swap --model --batch-items --concurrency --bundle --engine --precision --threads --rows-per-part --ray --cpus-per-engine --gpus-per-engine --engines" words="" ;;
        "models") options="--url --api-key-file --timeout-s --json" words="" ;;
        "bench") options="--engine --precision --threads --streams --tokens --repeat --json" words="" ;;
        "keys") options="" words="new list revoke" ;;
        "keys new") options="--name --scopes --file --json" words="" ;;
        "keys list") options="--file --json" words="" ;;
        "keys revoke") options="--name --file --json" words="" ;;
        "completion") options="" words="bash zsh fish" ;;
    esac
    if [[ $cur == -* ]]; then
        _tinyrm_words "$options --help"
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")  # and files, if none fits
    fi
}

complete -o default -F _tinyrm tinyrm
