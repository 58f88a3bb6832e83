"""What a person sees on the terminal, and what ends up in a file."""

import io

from gm.runtime.progress import Line, bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_line_is_written_over_and_the_last_one_stays() -> None:
    terminal = Terminal()
    line = Line(terminal)
    line.show("a long first text")
    line.show("too soon")
    line.show("end", last=True)
    line.say("next")
    assert terminal.getvalue() == "\ra long first text\rend              \nnext\n"


def test_a_line_of_its_own_leaves_the_progress_line_complete() -> None:
    terminal = Terminal()
    line = Line(terminal)
    line.show("half")
    line.say("wrote a file")
    assert terminal.getvalue() == "\rhalf\nwrote a file\n"


def test_a_file_gets_whole_lines() -> None:
    file = io.StringIO()
    line = Line(file)
    line.show("one")
    line.show("too soon")
    line.show("last", last=True)
    assert file.getvalue() == "one\nlast\n"


def test_bar() -> None:
    assert bar(1, 8, 0.0, width=4) == "[....] 1/8  …"
    assert bar(6, 8, 30.0, width=4) == "[###.] 6/8  12 s left"
    assert bar(8, 8, 40.0, width=4) == "[####] 8/8  0 s left"
