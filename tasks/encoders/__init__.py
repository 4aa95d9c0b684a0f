"""CLIP-like encoders: configuration, model, tokenizer."""
