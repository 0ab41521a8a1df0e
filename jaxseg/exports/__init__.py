"""The way out: networks that jaxseg trained, for programs without it.

`state_dict` lays parameters out for the networks of `torch_network`, which is a file of its own that needs PyTorch
alone; `program` lowers a network with its weights to a program that JAX runs without jaxseg.
"""
