/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What a fuzzer is: libFuzzer's entry point, called by libFuzzer's main
 * program or by replay.c.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A property that does not hold is a finding. */
#define FUZZ_ASSERT(property)                                                  \
    do {                                                                       \
        if (!(property)) {                                                     \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #property);     \
            abort();                                                           \
        }                                                                      \
    } while (0)

#endif /* FUZZ_H */
