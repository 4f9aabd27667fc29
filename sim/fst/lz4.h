// Stands in for the LZ4 library, which Verilator's FST writer asks for and not every machine has: a valid LZ4 block
// that holds everything as literals. Wave files grow; nothing has to be installed.
// Format: https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md
#pragma once

#include <cstring>

static inline int LZ4_compressBound(int size) { return size + size / 255 + 16; }

static inline int LZ4_compress_default(const char* source, char* target, int size, int) {
    char* out = target;
    *out++ = static_cast<char>((size < 15 ? size : 15) << 4);
    if (size >= 15) {
        int rest = size - 15;
        for (; rest >= 255; rest -= 255) *out++ = static_cast<char>(255);
        *out++ = static_cast<char>(rest);
    }
    if (size) std::memcpy(out, source, size);
    return static_cast<int>(out - target) + size;
}
