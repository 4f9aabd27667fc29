// Stands in for zlib, as lz4.h for LZ4: a valid zlib stream (RFC 1950) of stored blocks (RFC 1951, 3.2.4).
#pragma once

#include <cstdint>
#include <cstring>

typedef unsigned char Bytef;
typedef unsigned long uLong;
typedef unsigned long uLongf;

constexpr int Z_OK = 0;

static inline uLong compressBound(uLong size) { return size + 5 * (size / 65535 + 1) + 6; }

static inline int compress2(Bytef* target, uLongf* length, const Bytef* source, uLong size, int) {
    Bytef* out = target;
    *out++ = 0x78;
    *out++ = 0x01;
    uLong done = 0;
    do {
        const uLong n = size - done < 65535 ? size - done : 65535;
        *out++ = done + n == size;
        *out++ = n & 255;
        *out++ = n >> 8;
        *out++ = ~n & 255;
        *out++ = ~n >> 8 & 255;
        if (n) std::memcpy(out, source + done, n);
        out += n;
        done += n;
    } while (done < size);
    uint32_t a = 1, b = 0;
    for (uLong i = 0; i < size; ++i) {
        a = (a + source[i]) % 65521;
        b = (b + a) % 65521;
    }
    for (uint32_t part : {b, a}) {
        *out++ = part >> 8;
        *out++ = part & 255;
    }
    *length = out - target;
    return Z_OK;
}
