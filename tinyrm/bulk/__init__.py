"""Score whole files of pairs: `tinyrm score`. With a bundle it needs the extra `bulk`.

rows         validates the rows of files
progress     counts rows and shows the progress
service      scores a file with a service
jsonl        the output of a service: JSON lines, which are their own checkpoint
sources      finds files, folders and addresses, and splits them into shards
bundle       scores a shard with a bundle's engine
parquet      the output of a bundle: a folder of tables, which is its own checkpoint
job          scores all shards, one after another, in this process
ray_runner   scores all shards on the machines of a Ray cluster
"""
