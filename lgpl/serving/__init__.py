"""Images over HTTP, a web page, and a plugin for vLLM."""
