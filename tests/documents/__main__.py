"""See the package's docstring."""

import sys

from tests.documents import flags_page, weights_table


def main(write: bool) -> int:
    """Write what is not as it would be made, or name it -> exit code: 1 where something is named."""
    code = 0
    for module in (flags_page, weights_table):
        for language, path in module.PAGES.items():
            text = module.page(language)
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            if write:
                path.write_text(text, encoding="utf-8")
            else:
                code = 1
            print(f"{'written' if write else 'not as it would be made'}: {path}")
    return code


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
