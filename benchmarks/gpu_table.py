"""The findings of benchmarks/gpu.py as Markdown."""

NO_VALUES = ("stage", "what", "ok", "code", "last_lines", "worst_tensor", "said", "losses")
HEAD = ("| stage | what | holds | values |", "| --- | --- | --- | --- |")


def latest(rows: list[dict]) -> list[dict]:
    """The last finding of each kind, in the order of the first; the ends of stages that went well are left
    out."""
    found: dict[tuple[str, str], dict] = {}
    for row in rows:
        found[row["stage"], row["what"]] = row
    return [row for (_, what), row in found.items() if what != "stage" or not row.get("ok", True)]


def as_text(rows: list[dict]) -> str:
    """A heading with the card and the versions, and a row a finding."""
    shown = latest(rows)
    machine = next((row for row in shown if row["what"] == "machine"), {})
    names = ("card", "driver", "torch", "timm", "cores")
    about = ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name) is not None)
    small = "; small models, which say nothing on speed" if machine.get("tiny") else ""
    return "\n".join([f"{about or 'no findings yet'}{small}", "", *HEAD, *map(_line, shown)])


def _line(row: dict) -> str:
    holds = {True: "yes", False: "**no**", None: ""}[row.get("ok")]
    values = ", ".join(f"{name} {_text(value)}" for name, value in row.items()
                       if name not in NO_VALUES and value is not None)
    return f"| {row['stage']} | {row['what']} | {holds} | {values} |"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
