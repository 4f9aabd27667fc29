// The memory behind the fabric's ports, in time only (no data): the AXI FIFOs of the ports, the controller's arbiter and
// reordering window, and the DRAM's banks. Used by memory.cpp (cycle by cycle) and stream.cpp (streams alone).
//
// What is modelled, in the order a read passes it (UG1085, chapters 17 and 35; registers by UG1087):
// - the AXI FIFO of a fabric port holds `bursts` bursts a direction, splits them into AXI3 transactions of `split` blocks
//   and sends one on only when its data has room in the FIFO of `fifo` blocks: what is on its way and what lies there;
// - a controller port takes transactions of its fabric ports in turn, and gives its blocks to the arbiter one by one;
// - the arbiter takes one block a clock, from the ports in turn, as long as the window of `window` blocks has room;
// - the scheduler gives the DRAM one column and one row command a clock: the oldest block whose row is open and whose
//   timing allows it; else precharges and activates for the oldest block of a bank that has nothing in its open row;
// - reads come first: writes are served when no read is there, or when they waited `starve` clocks, then `run` of them;
// - data goes back in the order of the requests, a block in `beat` clocks of the controller port;
// - a refresh closes all banks.
// A block is what one DRAM burst carries. Time is counted in clocks of the controller. All is integer arithmetic: equal
// inputs give equal results.

#ifndef TELLME_DRAM_HPP
#define TELLME_DRAM_HPP

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace dram {

constexpr int kPorts = 8, kBanks = 16, kGroups = 4, kWindow = 64, kBursts = 64, kRing = 1024;

struct Settings {
    uint32_t clock_khz = 0;   // of the controller; 0: there is no DRAM model
    uint32_t fabric_khz = 0;  // of the ports
    // Geometry: bytes of a block; the address bits of column, bank group and bank follow the block's, in `map`.
    int block = 64, group_low = 6, group_bits = 1, bank_low = 14, bank_bits = 2, row_low = 16;
    // DRAM timing, clocks of the controller.
    int rcd = 0, rp = 0, ras = 0, rc = 0, rrd_s = 0, rrd_l = 0, faw = 0, ccd_s = 0, ccd_l = 0, rtp = 0, wtp = 0;
    int rtw = 0, wtr_s = 0, wtr_l = 0, cl = 0, refi = 0, rfc = 0;
    // Controller.
    int window = 32, starve = 64, run = 8;
    // Ports: bursts a direction, blocks of a transaction, blocks of a FIFO, clocks of a block on a controller port.
    int bursts = 8, split = 4, fifo = 32, beat = 4;
    int path = 0;   // clocks from port to controller and back, besides what is modelled
    int hold = 0;   // clocks that a row's last hits are waited for before it is closed
    int bubble = 0; // clocks lost when ...
    int order = 0;
    int xpi[kPorts] = {0, 1, 2, 3, 4, 5, 6, 7};  // controller port of each fabric port

    // Reads "name:value,name:value"; false: an unknown name.
    bool parse(const std::string& text) {
        const std::map<std::string, int*> names = {
            {"block", &block}, {"group_low", &group_low}, {"group_bits", &group_bits}, {"bank_low", &bank_low},
            {"bank_bits", &bank_bits}, {"row_low", &row_low}, {"rcd", &rcd}, {"rp", &rp}, {"ras", &ras}, {"rc", &rc},
            {"rrd_s", &rrd_s}, {"rrd_l", &rrd_l}, {"faw", &faw}, {"ccd_s", &ccd_s}, {"ccd_l", &ccd_l}, {"rtp", &rtp},
            {"wtp", &wtp}, {"rtw", &rtw}, {"wtr_s", &wtr_s}, {"wtr_l", &wtr_l}, {"cl", &cl}, {"refi", &refi},
            {"rfc", &rfc}, {"window", &window}, {"starve", &starve}, {"run", &run}, {"bursts", &bursts},
            {"split", &split}, {"fifo", &fifo}, {"beat", &beat}, {"path", &path}, {"hold", &hold},
            {"bubble", &bubble}, {"order", &order}};
        size_t at = 0;
        while (at < text.size()) {
            const size_t end = std::min(text.find(',', at), text.size());
            const std::string word = text.substr(at, end - at);
            at = end + 1;
            const size_t cut = word.find(':');
            if (cut == std::string::npos) return false;
            const std::string name = word.substr(0, cut);
            const unsigned long value = std::strtoul(word.c_str() + cut + 1, nullptr, 0);
            if (name == "clock_khz") clock_khz = value;
            else if (name == "fabric_khz") fabric_khz = value;
            else if (name.rfind("xpi", 0) == 0) xpi[std::strtoul(name.c_str() + 3, nullptr, 10) % kPorts] = value % kPorts;
            else if (names.count(name)) *names.at(name) = static_cast<int>(value);
            else return false;
        }
        return true;
    }
};

class Memory {
  public:
    Settings s;

    // A burst of `bytes` at `address`; its blocks come in order. Returns the number of its first block.
    uint32_t read(int port, uint64_t address, uint64_t bytes) {
        Port& p = ports[port];
        const uint64_t first = address / s.block, last = (address + bytes - 1) / s.block;
        p.burst[p.put++ % kBursts] = {first, static_cast<uint32_t>(last - first + 1), now + s.path / 2};
        p.asked += last - first + 1;
        wake = now;
        return p.asked - static_cast<uint32_t>(last - first + 1);
    }
    // Whether the block of that number is in the port's FIFO.
    bool arrived(int port, uint32_t number) const {
        const Port& p = ports[port];
        return static_cast<int32_t>(p.come - number) > 0 && p.seen[number % kRing] <= now;
    }
    // A block of the FIFO has been taken, whichever.
    void take(int port) {
        ports[port].taken++;
        wake = now;
    }
    // Room for another block to write.
    bool room(int port) const { return static_cast<int>(ports[port].written - ports[port].sent) < s.fifo; }
    // A block to write, complete. Returns its number.
    uint32_t write(int port, uint64_t address) {
        Port& p = ports[port];
        p.store[p.written % kRing] = {address / s.block, now + s.path / 2};
        wake = now;
        return p.written++;
    }
    // Whether the write of that number has been answered.
    bool answered(int port, uint32_t number) const {
        const Port& p = ports[port];
        return static_cast<int32_t>(p.sent - number) > 0 && p.reply[number % kRing] <= now;
    }
    void reset_port(int port) {
        // Blocks in the window still come; the numbers go on.
        Port& p = ports[port];
        p.get = p.put;
        p.done = 0;
        p.asked = p.issued;
        p.taken = p.issued;
        p.sent = p.written;
    }

    // One cycle of the fabric's clock.
    void cycle() {
        part += s.clock_khz;
        uint64_t end = now;
        while (part >= s.fabric_khz) {
            part -= s.fabric_khz;
            end++;
        }
        while (now < end) {
            if (wake > now) {
                now = std::min(wake, end);
                continue;
            }
            step();
            now++;
        }
    }

    uint64_t now = 0;
    uint64_t reads = 0, writes = 0, activates = 0, refreshes = 0;

  private:
    struct Burst {
        uint64_t block;
        uint32_t blocks;
        uint64_t from;  // when the controller sees it
    };
    struct Write {
        uint64_t block, from;
    };
    struct Port {
        Burst burst[kBursts];
        uint32_t put = 0, get = 0, done = 0;           // bursts; blocks of the oldest burst that were sent on
        uint32_t asked = 0, issued = 0, come = 0, taken = 0;  // blocks
        uint64_t due[kRing] = {}, seen[kRing] = {};    // when a block's data is there (0: not yet), and seen by the fabric
        Write store[kRing];
        uint32_t written = 0, sent = 0;
        uint64_t reply[kRing] = {};
    };
    struct Entry {
        uint64_t age;
        uint32_t row, number;
        uint8_t bank, port;
    };
    struct Store {
        Entry entry[kWindow];
        uint64_t free = ~0ULL;
        int count = 0;
        uint8_t at[kBanks][kWindow];
        int waiting[kBanks] = {}, hit[kBanks];  // hit: place in `at` of the oldest block in the open row, -1: none
        uint32_t banks = 0, hits = 0;           // bits of banks with anything waiting, with a hit
        uint64_t served = 0;                    // when one was last served, or none waited
    };
    struct Bank {
        uint32_t row = 0;
        bool open = false;
        uint64_t act = 0, pre = 0, cas = 0;
    };
    struct Xpi {
        int port = -1, left = 0;  // whose transaction is on, and its blocks
        uint64_t bus = 0;
    };

    Port ports[kPorts];
    Xpi xpis[kPorts];
    Store stores[2];  // reads, writes
    Bank banks[kBanks];
    uint64_t part = 0, wake = 0, ages = 1;
    uint64_t cas_group[2][kGroups] = {}, cas_any[2] = {};
    uint64_t act_group[kGroups] = {}, act_any = 0, faw[4] = {};
    unsigned faws = 0;
    uint64_t refresh_at = 0;
    int mode = 0, quota = 0, turn_read = 0, turn_write = 0, turn_port[kPorts] = {};
    uint64_t idle = 0;

    int bank_of(uint64_t block) const {
        const uint64_t a = block * s.block;
        return static_cast<int>((a >> s.bank_low & ((1u << s.bank_bits) - 1)) << s.group_bits |
                                (a >> s.group_low & ((1u << s.group_bits) - 1)));
    }
    int group_of(int bank) const { return bank & ((1 << s.group_bits) - 1); }

    void look(Store& q, int b) {  // finds the oldest hit of a bank anew
        q.hit[b] = -1;
        if (banks[b].open)
            for (int k = 0; k < q.waiting[b]; k++)
                if (q.entry[q.at[b][k]].row == banks[b].row) {
                    q.hit[b] = k;
                    break;
                }
        if (q.hit[b] >= 0) q.hits |= 1u << b;
        else q.hits &= ~(1u << b);
    }

    void enter(int kind, int port, uint64_t block, uint32_t number) {
        Store& q = stores[kind];
        const int e = __builtin_ctzll(q.free), b = bank_of(block);
        q.free &= q.free - 1;
        q.entry[e] = {ages++, static_cast<uint32_t>(block * s.block >> s.row_low), number, static_cast<uint8_t>(b),
                      static_cast<uint8_t>(port)};
        q.at[b][q.waiting[b]++] = static_cast<uint8_t>(e);
        if (!q.count++) q.served = now;
        q.banks |= 1u << b;
        if (!(q.hits >> b & 1) && banks[b].open && banks[b].row == q.entry[e].row) {
            q.hit[b] = q.waiting[b] - 1;
            q.hits |= 1u << b;
        }
    }

    // The arbiter's turn: one block into a window. Gives the earliest time at which it could do something.
    bool grant(uint64_t& soonest) {
        if (stores[0].count < s.window) {
            for (int n = 0; n < kPorts; n++) {
                const int x = (turn_read + n) % kPorts;
                Xpi& c = xpis[x];
                if (!c.left && !transact(x, soonest)) continue;
                Port& p = ports[c.port];
                Burst& b = p.burst[p.get % kBursts];
                enter(0, c.port, b.block + p.done, p.issued);
                p.due[p.issued % kRing] = 0;
                p.issued++;
                c.left--;
                if (++p.done == b.blocks) {
                    p.done = 0;
                    p.get++;
                }
                turn_read = (x + 1) % kPorts;
                return true;
            }
        }
        if (stores[1].count < s.window) {
            for (int n = 0; n < kPorts; n++) {
                const int i = (turn_write + n) % kPorts;
                Port& p = ports[i];
                if (p.sent == p.written) continue;
                const Write& w = p.store[p.sent % kRing];
                if (w.from > now) {
                    soonest = std::min(soonest, w.from);
                    continue;
                }
                enter(1, i, w.block, p.sent);
                p.reply[p.sent % kRing] = now + s.path - s.path / 2;
                p.sent++;
                turn_write = (i + 1) % kPorts;
                return true;
            }
        }
        return false;
    }

    // The next transaction of a controller port: of its fabric ports in turn, one whose data has room.
    bool transact(int x, uint64_t& soonest) {
        for (int n = 0; n < kPorts; n++) {
            const int i = (turn_port[x] + n) % kPorts;
            if (s.xpi[i] != x) continue;
            Port& p = ports[i];
            if (p.get == p.put) continue;
            const Burst& b = p.burst[p.get % kBursts];
            if (b.from > now) {
                soonest = std::min(soonest, b.from);
                continue;
            }
            const int blocks = std::min<int>(s.split, b.blocks - p.done);
            if (static_cast<int>(p.issued - p.taken) + blocks > s.fifo) continue;
            xpis[x].port = i;
            xpis[x].left = blocks;
            turn_port[x] = (i + 1) % kPorts;
            return true;
        }
        return false;
    }

    bool column(uint64_t& soonest) {
        Store& q = stores[mode];
        int best = -1;
        uint64_t age = ~0ULL;
        for (uint32_t m = q.hits; m; m &= m - 1) {
            const int b = __builtin_ctz(m);
            const uint64_t at = std::max({banks[b].cas, cas_group[mode][group_of(b)], cas_any[mode]});
            if (at > now) {
                soonest = std::min(soonest, at);
                continue;
            }
            const uint64_t a = q.entry[q.at[b][q.hit[b]]].age;
            if (a < age) {
                age = a;
                best = b;
            }
        }
        if (best < 0) return false;
        const int k = q.hit[best], e = q.at[best][k], g = group_of(best);
        const Entry entry = q.entry[e];
        std::memmove(q.at[best] + k, q.at[best] + k + 1, q.waiting[best] - k - 1);
        if (!--q.waiting[best]) q.banks &= ~(1u << best);
        q.free |= 1ULL << e;
        q.count--;
        q.served = now;
        // Later ones of the row are behind the place where this one was.
        q.hit[best] = -1;
        for (int j = k; j < q.waiting[best]; j++)
            if (q.entry[q.at[best][j]].row == entry.row) {
                q.hit[best] = j;
                break;
            }
        if (q.hit[best] < 0) q.hits &= ~(1u << best);
        for (int other = 0; other < kGroups; other++)
            cas_group[mode][other] = std::max(cas_group[mode][other], now + (other == g ? s.ccd_l : s.ccd_s));
        if (mode == 0) {
            reads++;
            banks[best].pre = std::max(banks[best].pre, now + s.rtp);
            cas_any[1] = std::max(cas_any[1], now + s.rtw);
            deliver(entry.port, entry.number, now + s.cl);
        } else {
            writes++;
            banks[best].pre = std::max(banks[best].pre, now + s.wtp);
            for (int other = 0; other < kGroups; other++)
                cas_group[0][other] = std::max(cas_group[0][other], now + (other == g ? s.wtr_l : s.wtr_s));
        }
        if (quota) quota--;
        return true;
    }

    // The data of a block is there: what is now in order goes back to its port.
    void deliver(int port, uint32_t number, uint64_t at) {
        Port& p = ports[port];
        p.due[number % kRing] = at;
        Xpi& c = xpis[s.xpi[port]];
        while (p.come != p.issued && p.due[p.come % kRing]) {
            c.bus = std::max(c.bus + s.beat, p.due[p.come % kRing]);
            p.seen[p.come % kRing] = c.bus + (s.path - s.path / 2);
            p.come++;
        }
    }

    bool row(uint64_t& soonest) {
        const Store& q = stores[mode];
        int best = -1;
        uint64_t age = ~0ULL;
        const uint64_t any = std::max(act_any, faw[faws % 4] ? faw[faws % 4] + s.faw : 0);
        for (uint32_t m = q.banks & ~q.hits; m; m &= m - 1) {
            const int b = __builtin_ctz(m);
            const Bank& bank = banks[b];
            const uint64_t at = bank.open ? bank.pre : std::max({bank.act, any, act_group[group_of(b)]});
            if (at > now) {
                soonest = std::min(soonest, at);
                continue;
            }
            const uint64_t a = q.entry[q.at[b][0]].age;
            if (a < age) {
                age = a;
                best = b;
            }
        }
        if (best < 0) return false;
        Bank& bank = banks[best];
        if (bank.open) {
            bank.open = false;
            bank.act = std::max(bank.act, now + s.rp);
        } else {
            activates++;
            bank.open = true;
            bank.row = q.entry[q.at[best][0]].row;
            bank.cas = now + s.rcd;
            bank.pre = now + s.ras;
            bank.act = now + s.rc;
            for (int g = 0; g < kGroups; g++)
                act_group[g] = std::max(act_group[g], now + (g == group_of(best) ? s.rrd_l : s.rrd_s));
            faw[faws++ % 4] = now;
        }
        look(stores[0], best);
        look(stores[1], best);
        return true;
    }

    bool refresh(uint64_t& soonest) {
        uint64_t at = now;
        for (int b = 0; b < kBanks; b++)
            if (banks[b].open) at = std::max(at, banks[b].pre);
        if (at > now) {
            soonest = at;
            return false;
        }
        for (int b = 0; b < kBanks; b++) {
            banks[b].open = false;
            banks[b].act = std::max(banks[b].act, now + s.rp) + s.rfc;
            if (stores[0].hits >> b & 1 || stores[1].hits >> b & 1) {
                look(stores[0], b);
                look(stores[1], b);
            }
        }
        refreshes++;
        refresh_at += s.refi;
        return true;
    }

    void direct() {  // reads or writes
        const bool some[2] = {stores[0].count > 0, stores[1].count > 0};
        if (mode == 0) {
            if (some[1] && (!some[0] || now - stores[1].served >= static_cast<uint64_t>(s.starve))) {
                mode = 1;
                quota = s.run;
            }
        } else if (!some[1] || (some[0] && !quota)) {
            mode = 0;
            stores[1].served = now;
        }
    }

    void step() {
        uint64_t soonest = ~0ULL;
        bool did = grant(soonest);
        if (s.refi) {
            if (!refresh_at) refresh_at = s.refi;
            if (now >= refresh_at) {
                did |= refresh(soonest);
                if (!did) wake = soonest;
                return;
            }
            soonest = std::min(soonest, refresh_at);
        }
        direct();
        did |= column(soonest);
        did |= row(soonest);
        if (!did) {
            if (mode == 0 && stores[1].count) soonest = std::min(soonest, stores[1].served + s.starve);
            wake = std::max(soonest, now + 1);
        }
    }
};

}  // namespace dram

#endif
