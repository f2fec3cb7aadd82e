#!/bin/sh
# The documents and the code say the same: directives, message ids, declined
# tokens, counters, support matrix, faults, what the security checklist names,
# options of the programs, the version. Run from the root.
#
#   docs.sh [PROGRAM...]    programs whose --help is held against docs/NAME.1
set -u

failed=0
passed=0

# missing WHAT FILE WORD...: every word must stand in the file.
missing() {
    what=$1
    file=$2
    shift 2
    if [ $# -eq 0 ]; then
        echo "docs: no $what found at all" >&2
        failed=$((failed + 1))
    fi
    for word; do
        if grep -qF -- "$word" "$file"; then
            passed=$((passed + 1))
        else
            echo "docs: $what $word is not in $file" >&2
            failed=$((failed + 1))
        fi
    done
}

directives=$(sed -n 's/.*\(AP_INIT_[A-Z0-9]*\|ENGINE[A-Z_]*\)("\(Rdma[A-Za-z]*\)".*/\2/p' \
    rdma_config.c | sort -u)
documented=$(grep -oE '\bRdma[A-Z][A-Za-z]+' conf/rdma.conf README | cut -d: -f2 |
    sort -u)
ids=$(grep -ohE 'RDMA0[0-9]{3}' ./*.c ./*_private.h | sort -u)
known_ids=$(grep -oE '^\| RDMA0[0-9]{3}' docs/MESSAGES.md | cut -c 3- | sort -u)
# shellcheck disable=SC2016 # the backquotes are PROTOCOL.md's
tokens=$(sed -n '/^Reasons:/,/^The framing/s/^| `\([a-z]*\)` |.*/\1/p' \
    docs/PROTOCOL.md)
version=$(sed -n 's/.*MOD_RDMA_VERSION *"\(.*\)"/\1/p' rdma_version.h)

# shellcheck disable=SC2086 # lists of words
{
    missing directive conf/rdma.conf $directives
    missing directive README $directives
    missing directive CHANGES $directives
    missing 'documented directive' rdma_config.c $documented
    missing 'message id' docs/MESSAGES.md $ids
    missing 'declined token' README $tokens
    missing version CHANGES "mod_rdma $version"
}
for id in $known_ids; do
    if ! grep -q "$id" ./*.c ./*_private.h; then
        echo "docs: $id is in docs/MESSAGES.md, and nowhere in the code" >&2
        failed=$((failed + 1))
    fi
done
for id in $(grep -ohE '"RDMA0[0-9]{3}' ./*.c | sort | uniq -d | tr -d '"'); do
    echo "docs: $id has two call sites" >&2
    failed=$((failed + 1))
done
# Each counter with its kind, in the same order.
counters=$(sed -n '/define RDMA_COUNT_TABLE/,/^$/p' rdma_count.h |
    sed -n 's/^ *X(\([A-Za-z]*\), \([A-Z]*\), .*/\1 \2/p' | tr 'A-Z' 'a-z')
explained=$(sed -n 's/^| \([A-Z][A-Za-z]*\) | \([a-z]*\) | .*[a-z].*|$/\1 \2/p' \
    docs/STATUS.md | tr 'A-Z' 'a-z')
if [ -z "$counters" ] || [ "$counters" != "$explained" ]; then
    echo "docs: rdma_count.h and docs/STATUS.md differ in:" >&2
    printf '%s\n%s\n' "$counters" "$explained" | sort | uniq -u >&2
    failed=$((failed + 1))
else
    passed=$((passed + $(echo "$counters" | wc -l)))
fi
# The support matrix is what test_matrix.py asks for, the table of faults what
# test_faults.py brings about.
for pair in SUPPORT:matrix FAULTS:faults; do
    page=docs/${pair%:*}.md
    rows=test/e2e/${pair#*:}.py
    table=$(/usr/bin/python3 -B "$rows")
    head=$(echo "$table" | head -n 1)
    if [ -n "$table" ] &&
        [ "$table" = "$(sed -n "\~^$head~,\$p" "$page" | grep '^|')" ]; then
        passed=$((passed + $(echo "$table" | wc -l)))
    else
        echo "docs: the table of $page is not that of $rows" >&2
        failed=$((failed + 1))
    fi
done
# What docs/SECURITY.md names is there, as FILE:NAME a function, a macro or a test.
# shellcheck disable=SC2016 # the backquotes are SECURITY.md's
named=$(grep -oE '`[a-z0-9_/]+\.(c|h|py):[A-Za-z0-9_]+`' docs/SECURITY.md |
    tr -d '`' | sort -u)
[ -n "$named" ] || failed=$((failed + 1))
for ref in $named; do
    found=
    for file in "${ref%:*}" "test/unit/${ref%:*}" "test/e2e/${ref%:*}"; do
        if [ -f "$file" ] && grep -qE \
            "^( *def |#define |[A-Za-z].*[ *(]|)${ref#*:}([() ]|\$)" "$file"; then
            found=$file
        fi
    done
    if [ "$found" ]; then
        passed=$((passed + 1))
    else
        echo "docs: docs/SECURITY.md names $ref, which is not there" >&2
        failed=$((failed + 1))
    fi
done
# shellcheck disable=SC2016
if grep -nE '\| *\||`test_[a-z_]+`' docs/SECURITY.md >&2; then
    echo "docs: empty cells, or tests without a file, in docs/SECURITY.md" >&2
    failed=$((failed + 1))
fi
for program; do
    page=docs/$(basename "$program").1
    options=$("$program" --help | grep -oE '^ *(-[A-Za-z], )?--[a-z-]+' |
        grep -oE -- '--[a-z-]+' | sort -u)
    # shellcheck disable=SC2086,SC2046 # roff writes - as \-
    plain=$(mktemp) && sed 's/\\-/-/g' "$page" >"$plain" &&
        missing "$(basename "$program") option" "$plain" $options
    rm -f "$plain"
done
echo "docs: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
