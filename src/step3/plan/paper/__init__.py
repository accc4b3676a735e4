"""The Step-3 system paper (arXiv 2507.19427) recomputed: tables, figures and the numbers of its text.

Every number is computed at full precision from model sizes and hardware and only then compared with the
printed one; no printed number enters another, but for the paper's inputs, which are marked so.
"""
