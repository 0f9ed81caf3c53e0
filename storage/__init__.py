"""Storage: what keeps every acknowledged trajectory and every published version, across crashes."""

# A host agent may have a `storage` of its own. With this repository's root on sys.path ours would be taken for it,
# or the same modules would be loaded twice under two names, with two copies of every class.
if __name__ != "sona.storage":
    raise ImportError(
        f"this package is sona.storage and was imported as {__name__!r}: write `import sona.storage`; "
        "if another package of that name was meant, take sona's repository root off sys.path",
        name=__name__,
        path=__file__,
    )
