"""A generated section of a document, between markers that name it."""


def with_section(document: str, name: str, heading: str, text: str) -> str:
    """The document with `text` between the markers; without markers, under a heading of its own at the end."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = f"{begin}\n{text}\n{end}"
    if begin in document and end in document:
        before, _, rest = document.partition(begin)
        return before + block + rest.partition(end)[2]
    return f"{document.rstrip()}\n\n{heading}\n\n{block}\n"
