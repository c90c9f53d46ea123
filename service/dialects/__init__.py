"""The APIs of trainers, rerankers and other servers, in their own request and reply formats."""
