// Behaviour of sim/memory.sv: AXI4 slaves over one memory-mapped file, with the timing of a board's memory: that of
// dram.hpp, or a plain latency and rate. Called once each clock edge with what all ports drive; gives what all ports see
// after the edge. Data is read when a beat leaves and written when its response does, whatever the order in the DRAM.
// Settings come as key=value words in the environment variable TELLME_MEMORY (see sim/timing.py).

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <sstream>
#include <string>
#include <vector>

#include "dram.hpp"
#include "svdpi.h"

namespace {

constexpr int kInWords = 11, kOutWords = 5;  // 32-bit words of a port, as packed by memory.sv
enum : int { kOkay = 0, kSlverr = 2, kDecerr = 3 };

struct Range {
    uint64_t low, high;
    int response;
};
struct Share {
    uint32_t ports;
    double rate, tokens;
};

struct Settings {
    std::string file;
    uint64_t region = 0, seed = 1;
    std::vector<uint64_t> bases;  // where each port finds its `region` bytes, which lie one behind the other in the file
    int latency = 1, jitter = 0, outstanding = 16, pause = 0, period = 0, stall_max = 1, reorder = 0, hazard = 0;
    double bandwidth = 0, stall = 0, error_rate = 0;
    std::vector<Share> shares;
    std::vector<Range> errors, hangs;
    std::string odd;          // what the burst `odd_burst` gets that AXI4 does not allow: "id", "twice", "swap"
    uint64_t odd_burst = ~0ULL;
};

struct Input {
    bool awvalid, wvalid, bready, arvalid, rready, wlast;
    uint32_t awlen, arlen, awsize, arsize, awburst, arburst, awid, arid, wstrb;
    uint64_t awaddr, araddr;
    uint8_t wdata[16];
};

struct Burst {
    uint64_t address, bus, ready;  // of the first byte: in the file, and as the port said it
    uint32_t beats, done, id;
    int response;
    bool hang, dram, odd;
    uint32_t block;  // number in the DRAM model: of a read's first block, of the last block written so far
    std::vector<uint8_t> data;
    std::vector<uint32_t> strobe;
};

struct WBeat {
    uint8_t data[16];
    uint32_t strobe;
    bool last;
};

struct Port {
    uint32_t previous[kInWords] = {};
    bool fresh = true;
    bool took_aw = false, took_w = false, took_ar = false;  // what was ready when `previous` was driven
    // what the port sees now
    bool awready = false, wready = false, bvalid = false, arready = false, rvalid = false, rlast = false;
    int bresp = 0, rresp = 0;
    uint32_t bid = 0, rid = 0;
    uint8_t rdata[16] = {};
    std::deque<Burst> reads, writes;  // accepted, not completed; in order of acceptance
    std::deque<WBeat> w;              // data without a completed burst yet
    int stalled[5] = {};
};

Settings S;
dram::Memory memory;
bool with_dram = false;
std::vector<Port> ports;
uint8_t* file_bytes = nullptr;
uint64_t now = 0, random_state = 1, accepted = 0;
double tokens = 0;
int width = 16;
bool failed = false;

int fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "memory model, cycle %llu: ", static_cast<unsigned long long>(now));
    std::vfprintf(stderr, format, arguments);
    std::fprintf(stderr, "\n");
    va_end(arguments);
    std::fflush(stderr);
    failed = true;
    return 1;
}

double uniform() {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return static_cast<double>((random_state * 0x2545F4914F6CDD1DULL) >> 11) * (1.0 / 9007199254740992.0);
}

bool stalls(Port& p, int channel) {
    if (S.stall <= 0) return false;
    if (p.stalled[channel] > 0) {
        p.stalled[channel]--;
        return true;
    }
    if (uniform() < S.stall) {
        p.stalled[channel] = static_cast<int>(uniform() * S.stall_max);
        return true;
    }
    return false;
}

int open_memory() {
    const char* text = std::getenv("TELLME_MEMORY");
    if (!text) return fail("TELLME_MEMORY is not set");
    std::istringstream words(text);
    std::string word;
    while (words >> word) {
        const auto cut = word.find('=');
        if (cut == std::string::npos) return fail("'%s' in TELLME_MEMORY is not key=value", word.c_str());
        const std::string key = word.substr(0, cut), value = word.substr(cut + 1);
        const auto number = [&] { return std::strtoull(value.c_str(), nullptr, 0); };
        const auto real = [&] { return std::strtod(value.c_str(), nullptr); };
        const auto range = [&] {
            Range r{};
            char* end = nullptr;
            r.low = std::strtoull(value.c_str(), &end, 0);
            if (*end == ':') r.high = std::strtoull(end + 1, &end, 0);
            if (*end == ':') r.response = static_cast<int>(std::strtoull(end + 1, &end, 0));
            return r;
        };
        if (key == "file") S.file = value;
        else if (key == "base") S.bases.push_back(number());
        else if (key == "region") S.region = number();
        else if (key == "seed") S.seed = number();
        else if (key == "latency") S.latency = static_cast<int>(number());
        else if (key == "jitter") S.jitter = static_cast<int>(number());
        else if (key == "outstanding") S.outstanding = static_cast<int>(number());
        else if (key == "pause") S.pause = static_cast<int>(number());
        else if (key == "period") S.period = static_cast<int>(number());
        else if (key == "bandwidth") S.bandwidth = real();
        else if (key == "stall") S.stall = real();
        else if (key == "stall_max") S.stall_max = static_cast<int>(number());
        else if (key == "reorder") S.reorder = static_cast<int>(number());
        else if (key == "hazard") S.hazard = static_cast<int>(number());
        else if (key == "error_rate") S.error_rate = real();
        else if (key == "error") S.errors.push_back(range());
        else if (key == "hang") S.hangs.push_back(range());
        else if (key == "odd") {
            const auto cut = value.find(':');
            S.odd = value.substr(0, cut);
            S.odd_burst = cut == std::string::npos ? 0 : std::strtoull(value.c_str() + cut + 1, nullptr, 0);
            if (S.odd != "id" && S.odd != "twice" && S.odd != "swap") return fail("no odd answer '%s'", S.odd.c_str());
        } else if (key == "dram") {
            const std::string wrong = memory.s.parse(value);
            if (!wrong.empty()) return fail("'%s' is wrong in the DRAM's settings", wrong.c_str());
            with_dram = memory.s.clock_khz > 0;
        } else if (key == "shared") {
            char* end = nullptr;
            Share s{};
            s.ports = static_cast<uint32_t>(std::strtoul(value.c_str(), &end, 0));
            s.rate = *end == ':' ? std::strtod(end + 1, nullptr) : 0;
            S.shares.push_back(s);
        } else return fail("unknown key '%s' in TELLME_MEMORY", key.c_str());
    }
    if (with_dram && !S.odd.empty()) return fail("the DRAM model makes no odd answers");
    if (with_dram && S.outstanding > 31) return fail("a port of the DRAM model holds at most 31 bursts");
    random_state = S.seed * 0x9E3779B97F4A7C15ULL + 1;
    const int fd = ::open(S.file.c_str(), O_RDWR);
    if (fd < 0) return fail("cannot open %s", S.file.c_str());
    const uint64_t size = S.region * S.bases.size();
    void* map = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ::close(fd);
    if (map == MAP_FAILED) return fail("cannot map %llu bytes of %s", static_cast<unsigned long long>(size),
                                       S.file.c_str());
    file_bytes = static_cast<uint8_t*>(map);
    return 0;
}

Input unpack(const uint32_t* w) {
    Input in;
    in.awvalid = w[0] & 1;
    in.wvalid = w[0] >> 1 & 1;
    in.bready = w[0] >> 2 & 1;
    in.arvalid = w[0] >> 3 & 1;
    in.rready = w[0] >> 4 & 1;
    in.wlast = w[0] >> 5 & 1;
    in.awlen = w[0] >> 8 & 0xFF;
    in.arlen = w[0] >> 16 & 0xFF;
    in.awaddr = w[1] | static_cast<uint64_t>(w[2]) << 32;
    in.araddr = w[3] | static_cast<uint64_t>(w[4]) << 32;
    in.awid = w[5] & 0xFF;
    in.arid = w[5] >> 8 & 0xFF;
    in.awsize = w[5] >> 16 & 7;
    in.arsize = w[5] >> 19 & 7;
    in.awburst = w[5] >> 22 & 3;
    in.arburst = w[5] >> 24 & 3;
    in.wstrb = w[6];
    std::memcpy(in.wdata, w + 7, 16);
    return in;
}

// Once valid, a channel's valid and payload stay until ready (AXI A3.2.1).
int check_stable(int i, const Port& p, const Input& in) {
    if (p.fresh) return 0;
    const Input old = unpack(p.previous);
    if (old.awvalid && !p.took_aw &&
        !(in.awvalid && in.awaddr == old.awaddr && in.awlen == old.awlen && in.awid == old.awid &&
          in.awsize == old.awsize && in.awburst == old.awburst))
        return fail("port %d: AW changed or fell before AWREADY", i);
    if (old.arvalid && !p.took_ar &&
        !(in.arvalid && in.araddr == old.araddr && in.arlen == old.arlen && in.arid == old.arid &&
          in.arsize == old.arsize && in.arburst == old.arburst))
        return fail("port %d: AR changed or fell before ARREADY", i);
    if (old.wvalid && !p.took_w &&
        !(in.wvalid && in.wstrb == old.wstrb && in.wlast == old.wlast && !std::memcmp(in.wdata, old.wdata, width)))
        return fail("port %d: W changed or fell before WREADY", i);
    return 0;
}

int check_burst(int i, const char* channel, uint64_t address, uint32_t len, uint32_t size, uint32_t burst) {
    const auto a = static_cast<unsigned long long>(address);
    if (burst != 1) return fail("port %d: %s burst type %u at 0x%llx, only INCR is known", i, channel, burst, a);
    if ((1u << size) != static_cast<uint32_t>(width))
        return fail("port %d: %s size %u at 0x%llx is not the port's width", i, channel, size, a);
    if (address % width) return fail("port %d: %s address 0x%llx is not aligned", i, channel, a);
    if (address / 4096 != (address + static_cast<uint64_t>(len + 1) * width - 1) / 4096)
        return fail("port %d: %s burst of %u beats at 0x%llx crosses 4 KiB", i, channel, len + 1, a);
    return 0;
}

// Response for a burst: DECERR outside the port's region, and what the settings inject.
Burst make_burst(int i, uint64_t address, uint32_t beats, uint32_t id) {
    Burst b{};
    const uint64_t bytes = static_cast<uint64_t>(beats) * width, base = S.bases[i];
    const uint64_t offset = i * S.region + (address - base);
    b.address = offset;
    b.bus = address;
    b.beats = beats;
    b.id = id;
    b.ready = now + S.latency + (S.jitter ? static_cast<uint64_t>(uniform() * S.jitter) : 0);
    b.response = kOkay;
    b.odd = accepted++ == S.odd_burst;
    if (address < base || address - base + bytes > S.region) b.response = kDecerr;
    if (S.error_rate > 0 && uniform() < S.error_rate) b.response = uniform() < 0.5 ? kSlverr : kDecerr;
    for (const Range& h : S.hangs)
        if (offset < h.high && offset + bytes > h.low) b.hang = true;
    b.dram = with_dram && !b.hang && b.response != kDecerr;  // other bursts never get to the DRAM
    return b;
}

int response_at(const Burst& b, uint64_t offset) {
    if (b.response) return b.response;
    for (const Range& e : S.errors)
        if (offset < e.high && offset + width > e.low) return e.response;
    return kOkay;
}

bool overlap(const Burst& a, const Burst& b) {
    return a.address < b.address + static_cast<uint64_t>(b.beats) * width &&
           b.address < a.address + static_cast<uint64_t>(a.beats) * width;
}

void charge(int i) {
    tokens -= width;
    for (Share& s : S.shares)
        if (s.ports >> i & 1) s.tokens -= width;
}

// Takes a beat's worth of bandwidth, if there is any.
bool spend(int i) {
    if (S.bandwidth > 0 && tokens < width) return false;
    for (const Share& s : S.shares)
        if (s.ports >> i & 1 && s.tokens < width) return false;
    charge(i);
    return true;
}

// Number of the DRAM block that holds the next beat of a read.
uint32_t block_of(const Burst& b) {
    return b.block + static_cast<uint32_t>((b.bus + static_cast<uint64_t>(b.done) * width) / memory.s.block -
                                           b.bus / memory.s.block);
}

bool may_read(int i, const Burst& b) {
    return !b.hang && b.ready <= now && (!b.dram || memory.arrived(i, block_of(b)));
}

bool may_answer(int i, const Burst& b) {
    return !b.hang && b.ready <= now && b.done == b.beats && (!b.dram || memory.answered(i, b.block));
}

// Index of the burst to serve next: the oldest; with reordering, any whose ID has no older burst. -1: none.
int choose(int i, std::deque<Burst>& queue, bool (*may)(int, const Burst&)) {
    if (S.odd == "swap" && !queue.empty() && queue[0].odd && queue[0].done == 0) {  // waits for one to overtake it
        if (queue.size() < 2) return -1;
        std::swap(queue[0], queue[1]);
        queue[1].odd = false;
    }
    std::vector<int> candidates;
    uint32_t seen[8] = {};
    for (int k = 0; k < static_cast<int>(queue.size()); k++) {
        const Burst& b = queue[k];
        const bool first = !(seen[b.id >> 5] >> (b.id & 31) & 1);
        seen[b.id >> 5] |= 1u << (b.id & 31);
        if (first && may(i, b)) {
            if (!S.reorder) return k;
            candidates.push_back(k);
        } else if (!S.reorder) {
            return -1;
        }
    }
    if (candidates.empty()) return -1;
    return candidates[static_cast<size_t>(uniform() * candidates.size())];
}

int accept(int i, Port& p, const Input& in) {
    if (p.rvalid && in.rready) p.rvalid = false;
    if (p.bvalid && in.bready) p.bvalid = false;
    if (in.arvalid && p.arready) {
        if (check_burst(i, "AR", in.araddr, in.arlen, in.arsize, in.arburst)) return 1;
        p.reads.push_back(make_burst(i, in.araddr, in.arlen + 1, in.arid));
        if (Burst& b = p.reads.back(); b.dram)
            b.block = memory.read(i, in.araddr, static_cast<uint64_t>(b.beats) * width);
        if (S.hazard)
            for (const Port& q : ports)
                for (const Burst& w : q.writes)
                    if (overlap(w, p.reads.back())) return fail("port %d: read passes a write without response", i);
    }
    if (in.awvalid && p.awready) {
        if (check_burst(i, "AW", in.awaddr, in.awlen, in.awsize, in.awburst)) return 1;
        p.writes.push_back(make_burst(i, in.awaddr, in.awlen + 1, in.awid));
        if (S.hazard)
            for (const Port& q : ports)
                for (const Burst& r : q.reads)
                    if (overlap(r, p.writes.back())) return fail("port %d: write to what is being read", i);
    }
    if (in.wvalid && p.wready) {
        WBeat beat;
        std::memcpy(beat.data, in.wdata, 16);
        beat.strobe = in.wstrb;
        beat.last = in.wlast;
        p.w.push_back(beat);
        charge(i);  // a write that was ready is taken even if it overdraws: the next reads pay
    }
    // Data belongs to the bursts in the order of their addresses (AXI4 has no write interleaving).
    for (Burst& b : p.writes) {
        while (b.done < b.beats && !p.w.empty()) {
            const WBeat& beat = p.w.front();
            b.done++;
            if (beat.last != (b.done == b.beats))
                return fail("port %d: WLAST is %d in beat %u of %u", i, beat.last, b.done, b.beats);
            b.data.insert(b.data.end(), beat.data, beat.data + width);
            b.strobe.push_back(beat.strobe);
            if (b.done == b.beats && b.ready < now + S.latency) b.ready = now + S.latency;
            if (b.dram) {
                const uint64_t end = b.bus + static_cast<uint64_t>(b.done) * width;
                if (end % memory.s.block == 0 || b.done == b.beats) b.block = memory.write(i, end - width);
            }
            p.w.pop_front();
        }
        if (b.done < b.beats) break;
    }
    return 0;
}

void serve(int i, Port& p, bool paused) {
    if (!p.rvalid && !p.reads.empty() && !paused && !stalls(p, 0)) {
        const int k = choose(i, p.reads, may_read);
        if (k >= 0 && spend(i)) {
            Burst& b = p.reads[k];
            const uint64_t offset = b.address + static_cast<uint64_t>(b.done) * width;
            p.rresp = response_at(b, offset);
            if (p.rresp == kOkay) std::memcpy(p.rdata, file_bytes + offset, width);
            else std::memset(p.rdata, 0xEE, width);
            p.rid = b.id;
            p.rlast = ++b.done == b.beats;
            p.rvalid = true;
            const uint64_t end = b.bus + static_cast<uint64_t>(b.done) * width;
            if (b.dram && (p.rlast || end % memory.s.block == 0)) memory.take(i);
            if (b.odd && S.odd == "id") p.rid ^= 1;
            if (p.rlast && b.odd && S.odd == "twice") {
                b.done--;
                b.odd = false;
            } else if (p.rlast) p.reads.erase(p.reads.begin() + k);
        }
    }
    if (!p.bvalid && !p.writes.empty() && !stalls(p, 1)) {
        const int k = choose(i, p.writes, may_answer);
        if (k >= 0) {
            Burst& b = p.writes[k];
            p.bresp = kOkay;
            for (uint32_t n = 0; n < b.beats; n++) {
                const uint64_t offset = b.address + static_cast<uint64_t>(n) * width;
                const int response = response_at(b, offset);
                if (response) {
                    p.bresp = response;
                    continue;
                }
                for (int j = 0; j < width; j++)
                    if (b.strobe[n] >> j & 1) file_bytes[offset + j] = b.data[n * width + j];
            }
            p.bid = b.odd && S.odd == "id" ? b.id ^ 1 : b.id;
            p.bvalid = true;
            if (b.odd && S.odd == "twice") b.odd = false;
            else p.writes.erase(p.writes.begin() + k);
        }
    }
    // One place is kept back: what is ready now may be taken at the next edge.
    p.arready = static_cast<int>(p.reads.size()) < S.outstanding && !stalls(p, 2);
    p.awready = static_cast<int>(p.writes.size()) < S.outstanding && !stalls(p, 3);
    p.wready = p.w.size() < 16 && !paused && (!with_dram || memory.room(i)) && !stalls(p, 4);
}

}  // namespace

extern "C" int tellme_memory_cycle(int count, int port_bytes, svBit reset, const svBitVecVal* request,
                                   svBitVecVal* response) {
    if (failed) return 1;
    if (!file_bytes) {
        width = port_bytes;
        if (open_memory()) return 1;
        ports.resize(count);
        if (with_dram && count > dram::kPorts) return fail("the DRAM model has at most %d ports", dram::kPorts);
    }
    now++;
    if (with_dram) memory.cycle();
    const bool paused = S.period > 0 && now % S.period < static_cast<uint64_t>(S.pause);
    if (S.bandwidth > 0) {
        // A controller does not save up what nobody asked for, beyond its own few words of buffer.
        tokens += paused ? 0 : S.bandwidth;
        if (tokens > 4 * S.bandwidth) tokens = 4 * S.bandwidth;
    }
    for (Share& s : S.shares) {
        s.tokens += paused ? 0 : s.rate;
        if (s.tokens > 4 * s.rate) s.tokens = 4 * s.rate;
    }
    for (int n = 0; n < count; n++) {
        const int i = (n + now) % count;  // turns, so that no port starves when the sum is capped
        Port& p = ports[i];
        const uint32_t* words = request + i * kInWords;
        if (reset) {
            p = Port();
            if (with_dram) memory.reset(i);
        } else {
            const Input in = unpack(words);
            if (check_stable(i, p, in)) return 1;
            p.took_aw = p.awready;
            p.took_w = p.wready;
            p.took_ar = p.arready;
            if (accept(i, p, in)) return 1;
            serve(i, p, paused);
            std::memcpy(p.previous, words, sizeof p.previous);
            p.fresh = false;
        }
        uint32_t* out = response + i * kOutWords;
        out[0] = p.awready | p.wready << 1 | p.bvalid << 2 | p.arready << 3 | p.rvalid << 4 | p.rlast << 5 |
                 p.bresp << 6 | p.rresp << 8 | p.bid << 16 | p.rid << 24;
        std::memcpy(out + 1, p.rdata, 16);
    }
    return 0;
}
