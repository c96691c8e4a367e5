"""Pictures for many: a plugin for vLLM, and an HTTP server."""
