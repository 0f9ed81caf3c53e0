"""Model servers elsewhere (vLLM, SGLang) that answer with the adapters of this store."""
