"""Many runs of one recipe: expansion, running, results."""
