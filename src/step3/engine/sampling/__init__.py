"""From logits to tokens: parameters, random numbers, filters, stop strings, grammars and speculation.

Names are imported from their modules, so that the parameters can be had without torch.
"""
