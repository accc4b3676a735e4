"""The bundled model: a small real Step3, its training data, its training and its weights."""
