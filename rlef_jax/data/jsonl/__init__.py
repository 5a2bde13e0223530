"""Problems of one's own: JSON lines in a documented form, checked line by line, then read in random order.

`schema` is the form of a line, `values` that of a function's arguments and results, `index` checks a file once and
remembers where its lines begin, `reader` gives the problems by position. See docs/own_problems.md.
"""
