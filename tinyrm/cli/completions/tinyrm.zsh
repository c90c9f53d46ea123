#compdef tinyrm
# Completion of tinyrm for zsh. In ~/.zshrc, below compinit: source <(tinyrm completion zsh)

_tinyrm() {
    local curcontext="$curcontext" state line name
    local recipes="author/base-chat author/base-reasoning author/base-safety author/large-all-at-once author/large-chat author/large-reasoning author/large-safety author/large-sft author/large-sft-chat experiments/cloze experiments/consistency experiments/distilled experiments/dora experiments/frozen-2 experiments/frozen-4 experiments/frozen-6 experiments/generalist experiments/lora experiments/merged-mean experiments/merged-task-arithmetic experiments/merged-ties experiments/one-order experiments/one-order-half experiments/pair-cls experiments/pair-mean experiments/pointwise experiments/size-128 experiments/size-192 experiments/specialist-chat experiments/specialist-reasoning experiments/specialist-safety experiments/tokens experiments/ways/cloze experiments/ways/pointwise experiments/ways/scratch-cloze experiments/ways/scratch-pointwise experiments/ways/scratch-set-last experiments/ways/scratch-set-none experiments/ways/set-all experiments/ways/set-last experiments/ways/set-last-distractors experiments/ways/set-masks experiments/ways/set-none experiments/ways/set-none-distractors experiments/ways/set-none-mask finetune from_scratch/1-tokenizer from_scratch/2-pretrain from_scratch/3-short from_scratch/4-cloze paper/base-chat paper/base-reasoning paper/base-safety paper/large-all-at-once paper/large-chat paper/large-reasoning paper/large-safety paper/large-sft paper/large-sft-chat sizes/pretrain-128 sizes/pretrain-192 starter/pairs tinyrm/base-all-at-once tinyrm/base-all-at-once-open tinyrm/base-chat tinyrm/base-pointwise tinyrm/base-reasoning tinyrm/base-safety tinyrm/ettin-150m tinyrm/ettin-17m tinyrm/ettin-1b tinyrm/ettin-32m tinyrm/ettin-400m tinyrm/ettin-68m tinyrm/large-all-at-once tinyrm/large-all-at-once-open tinyrm/large-chat tinyrm/large-distilled tinyrm/large-merged tinyrm/large-reasoning tinyrm/large-safety tinyrm/large-sft tinyrm/large-sft-chat"
    local -a verbs
    verbs=(
        'serve:serve a bundle over HTTP; settings are environment variables, TINYRM_*'
        'train:train on your pairs, from a file to a bundle, or run a recipe'
        'export:turn a trained model into a bundle'
        'evaluate:measure how good a bundle, a checkpoint or a service is'
        'compare:compare two responses with a service'
        'rank:rank several responses with a service, best first'
        'score:score files of pairs, with a service or with a bundle'
        'models:list the models of a service'
        'bench:measure the latency of a bundle on this machine'
        'keys:make, list and revoke API keys of a service'
        'completion:print the completion of a shell\: bash, zsh or fish'
    )
    _arguments -C '1: :->verb' '*:: :->rest'
    case $state in
        verb) _describe command verbs ;;
        rest)
            name=$words[1]
            case "$words[1] $words[2]" in
                'train plan'|'train curves'|'train compare'|'train sweep'|'train data'|'keys new'|'keys list'|'keys revoke')
                    if ((CURRENT > 2)); then
                        name="$words[1] $words[2]"
                        shift words
                        ((CURRENT--))
                    fi ;;
            esac
            case $name in
                'serve')
                    _arguments '--settings[Print the settings with their defaults, and exit]' ;;
                'train')
                    _arguments '--data[Folder of a recipe'\''s data files]:PATH:_files' \
                        '--resume[Continue an interrupted run from its newest checkpoint]' \
                        '--fresh[Replace the run and the bundle that are there]' \
                        '--dry-run[Print what would be done and what it would cost, and stop]' \
                        '--json[Print the plan, or what came out, as JSON on standard output, and nothing else there]' \
                        '--hardware[For the dry run\: cost it on these (laptop, rtx4090, a100-80, h100, 8xh100, ...) instead...]:NAME ...: ' \
                        '--price-per-hour[For the dry run\: dollars an hour of the one hardware that is named]:DOLLARS: ' \
                        '--revision[Branch, tag or commit of a data set on the hub]:COMMIT: ' \
                        '--domain[Domain of all pairs]:NAME: ' \
                        '--instruction[Instruction for pairs of --domain, or of the default domain, such as "Which response is...]:TEXT: ' \
                        '--source[How PAIRS are read, such as columns.prompt=question (ours=theirs), ties=learn,...]:KEY=VALUE: ' \
                        '--validation[Pairs to measure the result on]:FILE:_files' \
                        '--base[Folder or hub id of an encoder (ModernBERT, Ettin, BERT, MiniLM), or the folder of an...]:MODEL:_files' \
                        '--out[Bundle to write]:FOLDER:_files' \
                        '--reads[Both responses in one sequence, each by itself, or all beside each other]:pair|response|set:(pair response set)' \
                        '--recipe[A recipe in place of the default one, or a file with some of its keys, which change the...]:RECIPE:_files' \
                        '--set[A key of the recipe, such as optimization.peak_lr=1e-4]:KEY=VALUE: ' \
                        '--epochs[Passes over the pairs]:N: ' \
                        '--max-tokens[Tokens of a sequence, in training and in serving]:N: ' \
                        '--seed[Of the split, the order of the pairs and a new head]:N: ' \
                        "*: :{_alternative 'words:word:(plan curves compare sweep data $recipes)' 'files:file:_files'}" ;;
                'train plan')
                    _arguments '--data[Folder of the recipe'\''s data files]:PATH:_files' \
                        '--hardware[Cost it on these (laptop, rtx4090, a100-80, h100, 8xh100, ...) instead of on all that...]:NAME ...: ' \
                        '--price-per-hour[Dollars an hour of the one hardware that is named]:DOLLARS: ' \
                        '--json[Print the plan as JSON]' \
                        "*: :{_alternative 'words:word:($recipes)' 'files:file:_files'}" ;;
                'train curves')
                    _arguments '--out[Picture to write, .svg or .png]:FILE:_files' \
                        '--json[Print the points of the curves, and what they show, as JSON]' \
                        "*: :{_alternative 'files:file:_files'}" ;;
                'train compare')
                    _arguments '--data[Folder of the recipes'\'' data files]:PATH:_files' \
                        '--out[Folder for the results, with one folder per recipe and seed]:PATH:_files' \
                        '--seeds[Seeds of each recipe]:\[INT \[INT ...\]\]: ' \
                        '--peak-lrs[Train each recipe at each of these learning rates instead of its own]:RATE ...: ' \
                        '--max-steps[Stop every run after this many steps, to try a grid out]:N: ' \
                        '--json[Print the metrics of every seed as JSON]' \
                        "*: :{_alternative 'words:word:($recipes)' 'files:file:_files'}" ;;
                'train sweep')
                    _arguments '--trials[Finished trials that the study has in the end]:INT: ' \
                        '--storage[Where the study is kept, such as sqlite\:///sweep.db]:URL: ' \
                        '--space[Ranges to search, as in training/spaces/]:FILE:_files' \
                        '--data[Folder of the recipe'\''s data files]:PATH:_files' \
                        '--sampler[Tree-structured Parzen estimator, or a Gaussian process]:{tpe,gp}:(tpe gp)' \
                        '--seed[Seed of the sampler]:INT: ' \
                        '--paper-protocol[Select on these evaluation pairs, as the paper did]:PAIRS:_files' \
                        '--json[Print the best trial as JSON]' \
                        "*: :{_alternative 'words:word:($recipes)' 'files:file:_files'}" ;;
                'train data')
                    _arguments '--data[Folder with local copies and your own files]:PATH:_files' \
                        '--held-out[Share of prompts kept for validation]:FLOAT: ' \
                        '--seed[Seed of the split, as in the recipe]:INT: ' \
                        '--decontaminate[Evaluation sets, Parquet or JSON\: count the pairs whose prompts overlap with theirs]:FILE ...:_files' \
                        '--drop[Leave out the pairs that share this many words in a row with an evaluation set]:8|13:(8 13)' \
                        '--max-characters[Leave out pairs whose prompt and responses have more characters together]:N: ' \
                        '--write[Write the remaining pairs as JSON lines]:FILE:_files' \
                        '--conversations[Write conversations for the masked-LM stage instead of pairs (oasst2)]' \
                        '--json[Print the counts as JSON]' \
                        "*: :{_alternative 'files:file:_files'}" ;;
                'export')
                    _arguments '--model[Folder or hub id\: a masked LM, a reward model or a cross-encoder]:MODEL:_files' \
                        '--out[Bundle folder to write, such as models/mine]:FOLDER:_files' \
                        '--revision[Branch, tag or commit of model, if it is a hub id]:COMMIT: ' \
                        '--adapter[Folder of a DoRA or LoRA adapter trained on the model]:FOLDER:_files' \
                        '--calibration[Pairs that fit the temperature]:FILE:_files' \
                        '--demo[Mark the bundle as a demonstration that is too weak for real work]' \
                        '--card[Model card]:FILE:_files' \
                        '--template[For a model trained elsewhere]:figure2|answer-colon|bert-pair|roberta-pair|pairrm|chatml|llama-3|human-assistant:(figure2 answer-colon bert-pair roberta-pair pairrm chatml llama-3 human-assistant)' \
                        '--max-tokens[For a model trained elsewhere]:N: ' \
                        '--graph[auto\: optimised for ModernBERT, BERT, RoBERTa and ELECTRA, else plain, as transformers...]:{auto,plain,optimised}:(auto plain optimised)' \
                        '--max-calibration-pairs[Calibrate on at most this many pairs, spread over domains and lengths]:INT: ' \
                        '--precision[A precision to write beside fp32 if it passes the gate]:{fp32,bf16,int8}:(fp32 bf16 int8)' \
                        '--max-weighted-flips[Share of the calibration preferences, each weighted by the size of its margin, that a...]:FLOAT: ' \
                        '--max-flips[The same share unweighted, if it is to be limited, too]:FLOAT: ' \
                        '--stored[Weights in the files\: fp16 is half the size, int8 a quarter]:{fp32,fp16,mixed,int8}:(fp32 fp16 mixed int8)' \
                        '--weights[Also write weights for the torch-cuda engine, which runs no graph]' \
                        '--json[Print the manifest as JSON on standard output, and what was checked on standard error]' ;;
                'evaluate')
                    _arguments '--bundle[Folder of the bundle, hf\://ORG/NAME@COMMIT, or https\://HOST/NAME.tar.gz#sha256=HEX]:BUNDLE:_files' \
                        '--checkpoint[Output folder of a training, before export]:FOLDER:_files' \
                        '--service[URL of a running service]:URL: ' \
                        '--pairs[Preference pairs\: JSON lines, a JSON array (.json), .csv or .parquet, plain or packed...]:FILE:_files' \
                        '--pairs-per-kind[sanity\: made-up pairs of each kind, at most]:INT: ' \
                        '--seed[sanity\: seed of what is drawn and made]:INT: ' \
                        '--data[Hub id, folder or file of a benchmark in its published schema]:ID|PATH:_files' \
                        '--revision[Branch, tag or commit of a benchmark on the hub]:COMMIT: ' \
                        '--split[judge-bench\: the model that wrote the responses]:gpt|claude:(gpt claude)' \
                        '--engine[Engine to score a bundle with]:STR: ' \
                        '--domain[Use this domain'\''s instruction for every row]:NAME: ' \
                        '--fit-temperature[Held-out pairs to fit the temperature on first]:FILE:_files' \
                        '--write-temperature[Write the fitted temperature into the bundle]' \
                        '--record[Write the results into the bundle'\''s manifest]' \
                        '--card[Write the tables into the bundle'\''s README.md, in a section of this benchmark]' \
                        '--against[Evaluate another model on the same items, and show the differences of the two with...]:FOLDER|URL:_files' \
                        '--out[Folder for report.md, results.json, reliability.png and compute.png]:FOLDER:_files' \
                        '--json[Print the JSON alone on standard output, and the tables on standard error]' \
                        "*: :{_alternative 'words:word:(pairs sanity obvious reward-bench reward-bench-2 rm-bench judge-bench)'}" ;;
                'compare')
                    _arguments '--url[Address of the service]:URL: ' \
                        '--api-key-file[File with the API key, if the service requires one]:FILE:_files' \
                        '--timeout-s[Limit of one call, with its repetitions]:SECONDS: ' \
                        '--domain[One of the model'\''s domains]:NAME: ' \
                        '--instruction[Replaces the domain'\''s instruction]:TEXT: ' \
                        '--swap[on\: score both orders]:on|off|auto:(on off auto)' \
                        '--model[Name or name@revision]:NAME: ' \
                        '--reasoning[drop\: reasoning before a response, between tags such as <think>, is not judged]:keep|drop:(keep drop)' \
                        '--json[Print the reply as JSON]' \
                        "*: :{_alternative 'files:file:_files'}" ;;
                'rank')
                    _arguments '--url[Address of the service]:URL: ' \
                        '--api-key-file[File with the API key, if the service requires one]:FILE:_files' \
                        '--timeout-s[Limit of one call, with its repetitions]:SECONDS: ' \
                        '--domain[One of the model'\''s domains]:NAME: ' \
                        '--instruction[Replaces the domain'\''s instruction]:TEXT: ' \
                        '--swap[on\: score both orders]:on|off|auto:(on off auto)' \
                        '--model[Name or name@revision]:NAME: ' \
                        '--reasoning[drop\: reasoning before a response, between tags such as <think>, is not judged]:keep|drop:(keep drop)' \
                        '--strategy[Which pairs are compared]:round_robin|swiss|knockout|reference|cascade:(round_robin swiss knockout reference cascade)' \
                        '--top[How many of the best --strategy cascade compares]:N: ' \
                        '--reference[The response that --strategy reference compares with]:TEXT: ' \
                        '--empty[Whether empty responses are last, the default, or judged as a blank]:last|judge:(last judge)' \
                        '--json[Print the reply as JSON]' \
                        "*: :{_alternative 'files:file:_files'}" ;;
                'score')
                    _arguments '--out[File to write or to continue, or - for standard output]:OUT:_files' \
                        '--domain[One of the model'\''s domains]:NAME: ' \
                        '--instruction[Replaces the domain'\''s instruction]:TEXT: ' \
                        '--reasoning[drop\: reasoning before a response, between tags such as <think>, is not judged]:keep|drop:(keep drop)' \
                        '--json[Print the counts as JSON on standard output at the end]' \
                        '--url[Address of the service]:URL: ' \
                        '--api-key-file[File with the API key, if the service requires one]:FILE:_files' \
                        '--timeout-s[Limit of one call, with its repetitions]:SECONDS: ' \
                        '--swap[on\: score both orders]:on|off|auto:(on off auto)' \
                        '--model[Name or name@revision]:NAME: ' \
                        '--batch-items[Pairs in one call]:INT: ' \
                        '--concurrency[Calls at the same time]:INT: ' \
                        '--bundle[Folder of the bundle, on a cluster the same path on every machine]:BUNDLE:_files' \
                        '--engine[Engine that runs the model]:STR: ' \
                        '--precision[One of the bundle'\''s precisions]:STR: ' \
                        '--threads[Threads of the engine]:INT: ' \
                        '--rows-per-part[Rows of one Parquet file]:INT: ' \
                        '--ray[Use a Ray cluster\: auto, or host\:6379]:\[ADDRESS\]: ' \
                        '--cpus-per-engine[Processors and threads of one engine on a cluster]:INT: ' \
                        '--gpus-per-engine[GPUs of one engine on a cluster]:FLOAT: ' \
                        '--engines[Engines on a cluster]:N: ' \
                        "*: :{_alternative 'files:file:_files'}" ;;
                'models')
                    _arguments '--url[Address of the service]:URL: ' \
                        '--api-key-file[File with the API key, if the service requires one]:FILE:_files' \
                        '--timeout-s[Limit of one call, with its repetitions]:SECONDS: ' \
                        '--json[Print the reply as JSON]' ;;
                'bench')
                    _arguments '--engine[Engine that runs the model]:STR: ' \
                        '--precision[One of the bundle'\''s precisions]:STR: ' \
                        '--threads[Threads of one run]:INT: ' \
                        '--streams[Runs at the same time, on a CPU]:INT: ' \
                        '--tokens[Lengths of the sequence]:N ...: ' \
                        '--repeat[Runs of each length]:INT: ' \
                        '--json[Print the figures as JSON]' \
                        "*: :{_alternative 'files:file:_files'}" ;;
                'keys')
                    _arguments "*: :{_alternative 'words:word:(new list revoke)'}" ;;
                'keys new')
                    _arguments '--name[Name of the client, as the access log shows it]:NAME: ' \
                        '--scopes[One or more of score, metrics and admin, separated by commas]:SCOPES: ' \
                        '--file[File of the keys]:FILE:_files' \
                        '--json[Print the result as JSON]' ;;
                'keys list')
                    _arguments '--file[File of the keys]:FILE:_files' \
                        '--json[Print the result as JSON]' ;;
                'keys revoke')
                    _arguments '--name[Name of the key]:NAME: ' \
                        '--file[File of the keys]:FILE:_files' \
                        '--json[Print the result as JSON]' ;;
                'completion')
                    _arguments "*: :{_alternative 'words:word:(bash zsh fish)'}" ;;
            esac ;;
    esac
}

if [[ $funcstack[1] == _tinyrm ]]; then _tinyrm "$@"; else compdef _tinyrm tinyrm; fi
