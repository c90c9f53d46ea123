"""Score whole files of pairs: `tinyrm score`. With a bundle it needs the extra `bulk`.

rows         a row of a file: a pair, or the reason why it is not one
progress     counts, and what is shown of them
service      scored by a service into JSON lines (jsonl)
sources      files, folders and addresses, split into shards
bundle       a shard scored by a bundle's engine
parquet      the folder of tables, which is its own checkpoint
job          all shards, one after another, in this process
ray_runner   all shards, on the machines of a Ray cluster
"""
