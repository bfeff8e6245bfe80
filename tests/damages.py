"""Ways in which a file on a disk is damaged, for tests and a campaign of benchmarks."""


def cut(file, moments):
    content = file.read_bytes()
    file.write_bytes(content[: moments.randrange(len(content))])


def flip(file, moments):
    content = bytearray(file.read_bytes())
    content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    file.write_bytes(bytes(content))


def replace(file, moments):
    file.write_bytes(moments.randbytes(moments.randint(1, 200)))


DAMAGES = {
    "missing": lambda file, moments: file.unlink(),
    "emptied": lambda file, moments: file.write_bytes(b""),
    "cut": cut,
    "flipped": flip,
    "foreign": replace,
}
"""Name -> what does it to a file, with what chance is left to drawn from `moments`."""
