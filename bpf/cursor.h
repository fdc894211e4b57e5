/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* The only place where packet bounds are checked. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

struct cursor {
	void *at;
	void *end;
};

ALWAYS_INLINE struct cursor cursor_at(const struct xdp_md *ctx, __u32 offset)
{
	return (struct cursor){
		.at = (void *)(long)ctx->data + offset,
		.end = (void *)(long)ctx->data_end,
	};
}

/* The next `size` bytes without stepping over them, or NULL. */
ALWAYS_INLINE void *cursor_peek(const struct cursor *cursor, __u32 size)
{
	return cursor->at + size <= cursor->end ? cursor->at : NULL;
}

/* The next `size` bytes, stepping over them, or NULL. */
ALWAYS_INLINE void *cursor_take(struct cursor *cursor, __u32 size)
{
	void *at = cursor_peek(cursor, size);

	cursor->at += size;
	return at;
}

/* `size` bytes at `offset` of the frame, or NULL; for use after a helper moved its start. */
ALWAYS_INLINE void *frame_at(const struct xdp_md *ctx, __u32 offset, __u32 size)
{
	struct cursor cursor = cursor_at(ctx, offset);

	return cursor_peek(&cursor, size);
}
