#!/bin/sh
# Builds the sample repository: make-sample.sh DIRECTORY
# Authors and dates are fixed, so the commit ids are the same in every build.
set -eu
mkdir -p "$1"
cd "$1"

export GIT_CONFIG_NOSYSTEM=1 HOME=/nonexistent
export GIT_COMMITTER_NAME='Ada Lovelace' GIT_COMMITTER_EMAIL=ada@example.org
git -c init.defaultBranch=main init -q
git config user.name "$GIT_COMMITTER_NAME"
git config user.email "$GIT_COMMITTER_EMAIL"

# commit DATE AUTHOR MAIL MESSAGE
commit() {
  git add -A
  GIT_COMMITTER_DATE=$1 git commit -q --date="$1" --author="$2 <$3>" -m "$4"
}

cat > README.md <<'TEXT'
# engine

Notes on the analytical engine and a program for it.
TEXT
commit 2026-01-05T09:00:00Z 'Charles Babbage' charles@example.org 'Describe the engine'

cat > bernoulli.py <<'TEXT'
"""Bernoulli numbers, after note G."""
from fractions import Fraction


def bernoulli(n: int) -> Fraction:
    row = [Fraction(0)] * (n + 1)
    for m in range(n + 1):
        row[m] = Fraction(1, m + 1)
        for j in range(m, 0, -1):
            row[j - 1] = j * (row[j - 1] - row[j])
    return row[0]
TEXT
commit 2026-01-12T10:30:00Z 'Ada Lovelace' ada@example.org 'Compute Bernoulli numbers'

cat > test_bernoulli.py <<'TEXT'
from fractions import Fraction

from bernoulli import bernoulli


def test_small_numbers() -> None:
    assert [bernoulli(n) for n in (0, 2, 4)] == [1, Fraction(1, 6), Fraction(-1, 30)]
TEXT
commit 2026-01-19T11:15:00Z 'Ada Lovelace' ada@example.org 'Test the first even numbers'

cat >> README.md <<'TEXT'

    python3 -c 'from bernoulli import bernoulli; print(bernoulli(8))'
TEXT
commit 2026-02-02T08:45:00Z 'Mary Somerville' mary@example.org 'Show how to run the program'
git tag v1.0

cat >> bernoulli.py <<'TEXT'


def table(n: int) -> list[Fraction]:
    """The first n numbers."""
    return [bernoulli(k) for k in range(n)]
TEXT
commit 2026-02-16T16:20:00Z 'Ada Lovelace' ada@example.org 'Print a table of numbers'

printf '__pycache__/\n' > .gitignore
commit 2026-03-02T14:00:00Z 'Charles Babbage' charles@example.org 'Ignore byte code'

# A branch to look at or to switch to.
git checkout -q -b faster
sed -i 's/^from fractions/from functools import cache\nfrom fractions/; s/^def bernoulli/@cache\ndef bernoulli/' bernoulli.py
commit 2026-03-09T12:00:00Z 'Ada Lovelace' ada@example.org 'Remember computed numbers'
git checkout -q main
