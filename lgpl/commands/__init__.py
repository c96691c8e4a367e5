"""The plain commands of `lgpl`; each module has `main(args)`."""
