"""DeiT: a pre-norm encoder of the patches of an image."""

from quantlab.network.builders import vision

FAMILY = vision("deit", "layers", ("layernorm_before", "layernorm_after"))
