"""Prints the version of this Python as one number, as the interpreter itself keeps it."""

import sys

print(sys.hexversion)
