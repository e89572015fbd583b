"""`mtbi serve`: the speech LLM behind the OpenAI chat API, and a page to talk to it."""
