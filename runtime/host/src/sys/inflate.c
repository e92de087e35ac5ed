/* What of ISA-L's inflate is called, with its structure kept on this side. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "igzip_lib.h"

/* The caller reads what stands around a stream, and is the one that asks for no sums: the library refers to these, and calls none. */
uint32_t crc32_gzip_refl(uint32_t sum, const uint8_t *bytes, uint64_t length)
{
    (void)sum, (void)bytes, (void)length;
    abort();
}

uint32_t isal_adler32_bam1(uint32_t sum, const uint8_t *bytes, uint64_t length)
{
    (void)sum, (void)bytes, (void)length;
    abort();
}

void isal_gzip_header_init(struct isal_gzip_header *header)
{
    (void)header;
    abort();
}

void isal_zlib_header_init(struct isal_zlib_header *header)
{
    (void)header;
    abort();
}

struct inflate_state *orlop_inflate_new(void)
{
    struct inflate_state *state = calloc(1, sizeof *state);
    if (state)
        isal_inflate_init(state);
    return state;
}

void orlop_inflate_free(struct inflate_state *state)
{
    free(state);
}

void orlop_inflate_reset(struct inflate_state *state)
{
    isal_inflate_reset(state);
}

/* Goes on with a stream. Returns 0 where it can, 1 at the stream's end, and less than 0 where the stream is damaged; the lengths are then
 * what was read and written. */
int orlop_inflate(struct inflate_state *state, const uint8_t *in, uint32_t *in_length, uint8_t *out, uint32_t *out_length)
{
    state->next_in = (uint8_t *)in;
    state->avail_in = *in_length;
    state->next_out = out;
    state->avail_out = *out_length;
    int result = isal_inflate(state);
    *in_length -= state->avail_in;
    *out_length -= state->avail_out;
    if (result != ISAL_DECOMP_OK)
        return result < 0 ? result : -1;
    return state->block_state == ISAL_BLOCK_FINISH;
}

/* At the end of a stream: the bytes behind it that were read already, up to 8 of them. Returns how many. */
unsigned orlop_inflate_behind(const struct inflate_state *state, uint8_t bytes[8])
{
    /* What is left of the stream's last byte comes first. */
    uint64_t bits = state->read_in >> (state->read_in_length % 8);
    unsigned length = (unsigned)state->read_in_length / 8;
    if (length > 8)
        return 0;
    for (unsigned i = 0; i < length; i++)
        bytes[i] = (uint8_t)(bits >> (8 * i));
    return length;
}
