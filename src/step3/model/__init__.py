"""The network as Transformers sees it: configuration, vision tower, decoder, processor."""
