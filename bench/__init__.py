"""Speed and cost beside what people would use instead: `python -m bench --help`."""


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Lines of columns as wide as they need to be, the first and the last one flush left"""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    sides = ["", *[">"] * (len(titles) - 2), ""]
    lines = ([f"{cell:{side}{w}}" for cell, side, w in zip(row, sides, widths, strict=True)] for row in (titles, *rows))
    return "\n".join("  ".join(line).rstrip() for line in lines)
