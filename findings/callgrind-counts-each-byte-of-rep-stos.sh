#!/usr/bin/env bash
# valgrind 3.19.0 (Debian 12), x86_64: callgrind counts "rep stosb" once for each byte that it writes.
#
# glibc clears and copies by one "rep" instruction where a block is larger than a threshold (2 KiB
# or so on processors with ERMS), and by a loop over vector registers below it. The processor retires
# the first as one instruction. Callgrind counts an instruction for each repetition, so the count of the
# same program grows by thousands where a buffer crosses the threshold, and a program that does less
# can seem to do more. The instruction written out shows it whatever glibc has chosen on a processor.
# Found while the instructions of a call were counted: a buffer of 34 KiB that was zeroed showed as a
# thirtieth of the whole, and in no time that could be measured.
# Needs: gcc and valgrind; installs Debian's where they are missing (root). Runs in a temporary folder.
set -euo pipefail

if [ "$(uname -m)" != x86_64 ]; then
    echo "the instruction is x86's" >&2
    exit 1
fi
version=3.19.0
if ! command -v valgrind > /dev/null || ! command -v gcc > /dev/null; then
    apt-get install --yes --quiet --no-install-recommends gcc libc6-dev "valgrind=1:$version*" > /dev/null
fi
here=$(valgrind --version)
if [ "$here" != "valgrind-$version" ]; then
    echo "this is $here; found with valgrind-$version" >&2
    exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > clear.c <<'C'
#include <stdlib.h>

static char block[1 << 16];

__attribute__((noinline)) static void clear(unsigned long length)
{
	void *to = block;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(0) : "memory");
}

int main(int count, char **words)
{
	clear(count > 1 ? strtoul(words[1], 0, 10) : 0);
	return 0;
}
C
gcc -O2 -o clear clear.c
counted() {
    valgrind --tool=callgrind --callgrind-out-file=out --toggle-collect=clear ./clear "$1" > /dev/null 2>&1
    sed -n 's/^\(summary\|totals\): //p' out | head -n 1
}
one=$(counted 1)
for length in 1 1000 60000; do
    count=$(counted "$length")
    echo "$length bytes: $((count - one + 1)) instructions"
    if [ $((count - one + 1)) -ne "$length" ]; then
        echo "it is another now" >&2
        exit 1
    fi
done
echo "as found: one instruction of the processor, one count for each byte"
