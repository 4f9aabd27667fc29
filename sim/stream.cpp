// Streams against the DRAM model alone (dram.hpp): what each port gets of the memory when every port moves its own region in
// long bursts, and nothing computes. A shared library of one function, which sim/stream.py calls.

#include <cstdint>
#include <vector>

#include "dram.hpp"

namespace {

struct Stream {
    uint64_t at, end, ask;         // next byte to take or give, end of the region, next byte to ask for
    uint32_t first[dram::kBursts]; // a read in flight: number of its first block; a write: of its last
    uint64_t from[dram::kBursts];  // a read in flight: its address
    uint32_t head = 0, tail = 0;
};

}  // namespace

// settings : as Settings::parse reads it. count : ports. address, bytes : the region of each, kind : 0 read, 1 write,
// start : its first cycle. burst : bytes of a burst, which begins at a multiple of that. width : bytes of a beat.
// fifo : bytes that a port has room for, from the asking until all reading ports have their part of a beat (hw/memory/reader.py);
// 0: each port is on its own, and takes its beats as they come. ahead : bursts that a port may have asked for before the last
// port did (the queue of bursts there); 0: any number. limit : of cycles.
// finished : cycles until the last beat, or response, of each port.
// log, logged : place for that many commands of the DRAM (four words each: clock, kind, bank, row), and how many there
// were; log may be null. Gives 0, or 1 for settings that are wrong, 2 for a limit that was reached.
extern "C" int tellme_stream(const char* settings, int count, const uint64_t* address, const uint64_t* bytes,
                             const int* kind, const uint64_t* start, uint32_t burst, uint32_t width, uint64_t fifo,
                             uint64_t ahead, uint64_t limit, uint64_t* finished, uint64_t* log, uint64_t* logged) {
    dram::Memory memory;
    if (!memory.s.parse(settings).empty() || count < 1 || count > dram::kPorts) return 1;
    const dram::Settings& s = memory.s;
    std::vector<dram::Command> commands;
    if (log) memory.log = &commands;
    std::vector<Stream> streams(count);
    for (int i = 0; i < count; i++) {
        streams[i].at = streams[i].ask = address[i];
        streams[i].end = address[i] + bytes[i];
        finished[i] = 0;
    }
    int going = count;
    for (uint64_t cycle = 0; going; cycle++) {
        if (cycle == limit) return 2;
        memory.cycle();
        uint64_t used = ~0ULL, asked = ~0ULL;  // beats that all reading ports had a cycle ago; bursts that all have asked for
        for (int i = 0; i < count; i++) {
            if (kind[i] != 0) continue;
            used = std::min(used, streams[i].at - address[i]);
            asked = std::min<uint64_t>(asked, streams[i].ask >= streams[i].end ? ~0ULL : streams[i].head);
        }
        for (int i = 0; i < count; i++) {
            Stream& p = streams[i];
            if (finished[i] || cycle < start[i]) continue;
            if (kind[i] == 0) {
                if (p.at < p.end && p.head != p.tail) {
                    const uint64_t from = p.from[p.tail % dram::kBursts];
                    const auto number = static_cast<uint32_t>(p.first[p.tail % dram::kBursts] + p.at / s.block -
                                                              from / s.block);
                    if (memory.arrived(i, number)) {
                        p.at += width;
                        const bool done = p.at % burst == 0 || p.at >= p.end;
                        if (done || p.at % s.block == 0) memory.take(i);
                        if (done) p.tail++;
                    }
                }
                const uint64_t to = std::min(p.end, p.ask / burst * burst + burst);
                if (p.ask < p.end && static_cast<int>(p.head - p.tail) < s.bursts &&
                    (!fifo || p.ask - address[i] + burst <= used + fifo) && (!ahead || p.head < asked + ahead)) {
                    p.from[p.head % dram::kBursts] = p.ask;
                    p.first[p.head++ % dram::kBursts] = memory.read(i, p.ask, to - p.ask);
                    p.ask = to;
                }
            } else {
                while (p.tail != p.head && memory.answered(i, p.first[p.tail % dram::kBursts])) p.tail++;
                if (p.at < p.end && memory.room(i) && static_cast<int>(p.head - p.tail) < s.bursts) {
                    p.at += width;
                    const bool done = p.at % burst == 0 || p.at >= p.end;
                    if (done || p.at % s.block == 0) {
                        const uint32_t number = memory.write(i, p.at - width);
                        if (done) p.first[p.head++ % dram::kBursts] = number;
                    }
                }
            }
            if (p.at >= p.end && p.head == p.tail) {
                finished[i] = cycle + 1;
                going--;
            }
        }
    }
    if (log) {
        for (uint64_t n = 0; n < std::min<uint64_t>(*logged, commands.size()); n++) {
            const dram::Command& c = commands[n];
            const uint64_t words[4] = {c.clock, static_cast<uint64_t>(c.kind), static_cast<uint64_t>(c.bank), c.row};
            std::copy(words, words + 4, log + 4 * n);
        }
        *logged = commands.size();
    }
    return 0;
}
