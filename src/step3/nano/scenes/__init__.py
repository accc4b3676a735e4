"""Pictures with known content, and questions about them with answers: what the bundled model learns from."""
