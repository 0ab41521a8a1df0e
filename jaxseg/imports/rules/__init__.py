"""Rules by name: each module here defines `convert`, as `jaxseg.imports.kinds.Convert` describes it."""
