"""Networks that others trained: reading their files, and taking their weights to a network of jaxseg's.

`readers` reads tensors by name, `rules` hold what is known about the names and layouts of others, and `conversion`
applies such rules and checks what they give.
"""
