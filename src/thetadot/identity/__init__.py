"""What a function computes, as a number: two functions with the same number compute the same, however they are written.

| module | knows |
|---|---|
| `program` | a function of arrays: the program that JAX traces, and that of its derivatives |
| `jaxpr` | a traced program without the names in it |
| `code` | a function that cannot be traced: its instructions, and what they use |
| `writer` | any value of Python, followed to its numbers |
| `library` | which code is a library's, known by its version |

What has no content that could be read (a callback, a lock, a handle of a foreign library) is known by its name alone,
and said to be, in `Fingerprint.trusted`.
"""

from .program import of_program as of_program
from .program import of_tree as of_tree
from .program import shapes_of as shapes_of
from .writer import Fingerprint as Fingerprint
from .writer import of_value as of_value
