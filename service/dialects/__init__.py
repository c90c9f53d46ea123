"""The ways in which trainers and rerankers ask, each in a file: a body of theirs in, an answer of theirs out."""
