"""The loops: what is done with a trajectory at once, what is done with all of them every hour, and the gate between."""

# A host agent may have a `loops` of its own. With this repository's root on sys.path ours would be taken for it,
# or the same modules would be loaded twice under two names, with two copies of every class.
if __name__ != "sona.loops":
    raise ImportError(
        f"this package is sona.loops and was imported as {__name__!r}: write `import sona.loops`; "
        "if another package of that name was meant, take sona's repository root off sys.path",
        name=__name__,
        path=__file__,
    )
