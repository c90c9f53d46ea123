"""The APIs of trainers and rerankers, one file each: their body in, a reply of theirs out."""
