"""What is read of the installed transformers' source, whatever other threads do."""

import ast
import gc

from deepspec.families import installed


def test_source_is_read_though_another_thread_would_parse_meanwhile() -> None:
    """Other threads have their turn where garbage is collected; Python before 3.11.8 takes no second parse there."""

    def parse(phase: str, _: object) -> None:
        ast.parse("1 + 2")

    file = installed._folder() / "auto" / "modeling_auto.py"
    gc.callbacks.append(parse)
    try:
        found = installed._parsed.__wrapped__(file)
    finally:
        gc.callbacks.remove(parse)
    assert len(found.body) > 100
    assert gc.isenabled()
