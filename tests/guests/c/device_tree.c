/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Looks one node up in the flattened device tree (Devicetree Specification, chapter 5). */
#include <stddef.h>

#include "aarch64.h"

#define MAGIC 0xd00dfeed
#define OFFSET_STRUCTURE 8
#define OFFSET_STRINGS 12
#define BEGIN_NODE 1
#define END_NODE 2
#define PROPERTY 3
#define NOP 4

uint32_t read_be32(const void *bytes)
{
    const uint8_t *b = bytes;

    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

static bool equal(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b)
        a++, b++;
    return *a == *b;
}

/* Bytes of a text and its end, in whole words. */
static uint32_t padded_text(const uint8_t *text)
{
    uint32_t bytes = 1;

    while (*text++ != '\0')
        bytes++;
    return (bytes + 3) & ~3u;
}

const void *device_tree_service(const void *tree, const char *property, uint32_t *bytes)
{
    const uint8_t *start = tree;
    const uint8_t *next = start + read_be32(start + OFFSET_STRUCTURE);
    const char *strings = (const char *)start + read_be32(start + OFFSET_STRINGS);
    unsigned depth = 0;
    bool inside = false;

    if (read_be32(start) != MAGIC)
        return NULL;
    for (;;) {
        const uint32_t token = read_be32(next);

        next += 4;
        if (token == BEGIN_NODE) {
            depth++;
            inside = depth == 2 && equal((const char *)next, "pv-msi");
            next += padded_text(next);
        } else if (token == END_NODE) {
            depth--;
            inside = false;
        } else if (token == PROPERTY) {
            const uint32_t length = read_be32(next);

            if (inside && equal(strings + read_be32(next + 4), property)) {
                *bytes = length;
                return next + 8;
            }
            next += 8 + ((length + 3) & ~3u);
        } else if (token != NOP) {
            return NULL;
        }
    }
}
