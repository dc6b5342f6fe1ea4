"""quantlab: which quantization keeps a transformer's answers, what does it cost, and why did the others fail?"""
