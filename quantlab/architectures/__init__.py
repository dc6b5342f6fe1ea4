"""One file a model family, named after its ``model_type`` in transformers: the table of its sites, as ``FAMILY``."""
