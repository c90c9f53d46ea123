"""TinyRM's own endpoints."""
