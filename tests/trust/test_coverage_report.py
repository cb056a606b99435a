"""The list of what no test covers: everything on it has a reason, and what is not on it is told."""

import coverage_report
import pytest
from coverage_report import Gap, complaints, gaps, read_list, write_list

SOURCE = """def sign(x):
    if x > 0:
        return 1
    for _ in range(x):
        print("never")
        print("nor this")
    return -1
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sign.py").write_text(SOURCE)
    return tmp_path


def report(lines=(), branches=(), share=99.0):
    function = {"missing_lines": list(lines), "missing_branches": [list(branch) for branch in branches]}
    return {"files": {"sign.py": {"functions": {"sign": function}}}, "totals": {"percent_covered": share}}


RANGE = Gap("sign.py", "sign", 'print("never")')
BRANCH = Gap("sign.py", "sign", "if x > 0: → return 1")
LEFT = Gap("sign.py", "sign", "for _ in range(x): → end")


def test_gaps_are_ranges_of_lines_and_branches_between_lines_that_run(root):
    assert list(gaps(report(), root)) == []
    assert list(gaps(report([5, 6], [(4, 5), (6, 4)]), root)) == [RANGE]
    assert list(gaps(report([], [(2, 3), (4, -1)]), root)) == [BRANCH, LEFT]


def test_what_has_no_reason_is_told_and_a_share_that_is_too_small(root):
    found = report([5, 6], [(2, 3)], share=94.99)
    assert complaints(found, {RANGE: "never", BRANCH: "so it is"}, root) == ["94.99 % are covered, and 95 % must be"]
    told = ["sign.py: sign: not covered: if x > 0: → return 1"]
    assert complaints(report([5, 6], [(2, 3)]), {RANGE: "never", BRANCH: ""}, root) == told
    assert complaints(report([5, 6], [(2, 3)]), {RANGE: "never"}, root) == told
    assert complaints(report([], []), {RANGE: "never"}, root) == []


def test_the_list_is_written_and_read(tmp_path):
    path = tmp_path / "list.tsv"
    write_list([RANGE, BRANCH, LEFT, RANGE], {RANGE: "why", LEFT: "why"}, path)
    assert path.read_text().count("\n") == 3  # one reason, one line
    assert read_list(path) == {RANGE: "why", LEFT: "why", BRANCH: ""}


def test_everything_on_the_list_is_there_and_has_a_reason():
    reasons = read_list()
    for gap, reason in reasons.items():
        lines = {line.strip() for line in (coverage_report.ROOT / gap.file).read_text(encoding="utf-8").splitlines()}
        start, _, stop = gap.what.partition(" → ")
        assert start in lines, gap
        assert stop in lines | {"", "end"}, gap
        assert len(reason) > 10, gap
