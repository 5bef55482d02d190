"""Finding models, tokenizers and adapters on disk, without reading a weight. Imports only errors and data; no torch."""
