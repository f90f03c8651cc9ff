"""How kernels are made: compile options, call closures, hooks put into templates."""
