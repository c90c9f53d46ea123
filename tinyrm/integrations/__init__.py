"""What trainers, harnesses and data tools call by a contract of their own, answered by a TinyRM service over HTTP.

One module for each of them; none imports its trainer, so each imports wherever the client does.
"""
