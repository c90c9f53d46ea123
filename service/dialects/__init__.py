"""The APIs of trainers and rerankers, one file each, in their own request and reply formats."""
