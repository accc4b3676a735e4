"""Step3 over HTTP: OpenAI's protocol in one process, the engine in another."""
