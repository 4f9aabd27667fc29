// Streams against the memory model alone: what each port gets when all read (or write) their own region in long bursts.
// A shared library of one function, called by sim/stream.py.

#include <cstdint>

#include "dram.hpp"

// Each port moves `bytes` from its address on in bursts of `burst` bytes, the next address each cycle as long as the port
// takes one. Kinds: 0 reads, 1 writes. `start`: cycle at which a port begins. `slack`: how many beats a port may be ahead of
// the slowest (a machine that takes beats of all ports together, with FIFOs of that depth); 0: ports are on their own.
// Gives for each port the cycle of its last beat, and the bytes that it had moved when the first port was done.
extern "C" int tellme_stream(const char* settings, int count, const uint64_t* address, const uint32_t* bytes,
                             const int* kind, const uint32_t* start, uint32_t burst, int width, uint32_t slack,
                             uint64_t limit, uint64_t* finished, uint64_t* moved, uint64_t* counters) {
    static thread_local dram::Memory memory;
    memory = dram::Memory();
    if (!memory.s.parse(settings).empty() || count > dram::kPorts) return 1;
    const dram::Settings& s = memory.s;
    struct {
        uint64_t ask, at, number;
        uint32_t flying, left;
    } p[dram::kPorts] = {};
    uint32_t first[dram::kPorts][64];  // of the bursts in flight: first block
    uint32_t head[dram::kPorts] = {}, tail[dram::kPorts] = {};
    for (int i = 0; i < count; i++) {
        p[i].ask = p[i].at = address[i];
        finished[i] = 0;
        moved[i] = 0;
    }
    int going = count;
    bool all = true;
    uint64_t cycle = 0;
    for (; going && cycle < limit; cycle++) {
        memory.cycle();
        uint64_t slowest = ~0ULL;
        for (int i = 0; i < count; i++) slowest = std::min(slowest, p[i].at - address[i]);
        for (int i = 0; i < count; i++) {
            const uint64_t end = address[i] + bytes[i];
            if (finished[i] || cycle < start[i]) continue;
            if (kind[i] == 0) {
                if (tail[i] != head[i] && (!slack || p[i].at - address[i] < slowest + slack)) {
                    const uint64_t burst_at = p[i].at / burst * burst;
                    const uint64_t from = std::max(burst_at, address[i]);
                    const uint32_t number = first[i][tail[i] % 64] +
                                            static_cast<uint32_t>(p[i].at / s.block - from / s.block);
                    if (memory.arrived(i, number)) {
                        p[i].at += width;
                        if (p[i].at % s.block == 0 || p[i].at % burst == 0 || p[i].at >= end) memory.take(i);
                        if (p[i].at % burst == 0 || p[i].at >= end) tail[i]++;
                    }
                }
                if (p[i].ask < end && static_cast<int>(head[i] - tail[i]) < s.bursts) {
                    const uint64_t to = std::min(end, p[i].ask / burst * burst + burst);
                    first[i][head[i]++ % 64] = memory.read(i, p[i].ask, to - p[i].ask);
                    p[i].ask = to;
                }
            } else {
                // Data a beat a cycle; the response of a burst is that of its last block.
                while (tail[i] != head[i] && memory.answered(i, first[i][tail[i] % 64])) tail[i]++;
                if (p[i].at < end && memory.room(i) && static_cast<int>(head[i] - tail[i]) < s.bursts) {
                    p[i].at += width;
                    if (p[i].at % s.block == 0 || p[i].at % burst == 0 || p[i].at >= end) {
                        const uint32_t number = memory.write(i, (p[i].at - 1) / s.block * s.block);
                        if (p[i].at % burst == 0 || p[i].at >= end) first[i][head[i]++ % 64] = number;
                    }
                }
            }
            if (p[i].at >= end && (kind[i] == 0 || head[i] == tail[i])) {
                finished[i] = cycle + 1;
                going--;
                if (all)
                    for (int k = 0; k < count; k++) moved[k] = p[k].at - address[k];
                all = false;
            }
        }
    }
    counters[0] = cycle;
    counters[1] = memory.reads;
    counters[2] = memory.writes;
    counters[3] = memory.activates;
    counters[4] = memory.refreshes;
    return 0;
}
