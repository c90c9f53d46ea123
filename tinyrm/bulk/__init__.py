"""Whole preference sets from files into Parquet, without a service: `tinyrm score --bundle`. Needs the `bulk` extra.

sources     files, folders and addresses, split into parts
rows        a row of a file -> what the model reads, or why it cannot
scoring     a part -> a table
output      the folder of tables, which is its own checkpoint
job         all parts, one after another, in this process
on_ray      all parts, on the machines of a Ray cluster
"""
