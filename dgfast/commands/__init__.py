"""The commands of `dgfast`: each module is one command with a `main(argv)`; cli.py lists them."""
