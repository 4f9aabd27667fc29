// The memory behind the fabric's ports, in time only (no data): the ports' AXI FIFOs, the controller's arbiter and window of
// requests, and the DRAM's banks. memory.cpp runs it cycle by cycle under the accelerator, stream.cpp under streams alone.
//
// What is modelled, in the order a read meets it (Zynq UltraScale+: UG1085, chapters 17 and 35, registers by UG1087):
// - the AXI FIFO of a fabric port accepts `bursts` bursts a direction, splits them into AXI3 transactions of `split` blocks
//   and sends one on only when its data has room in the FIFO of `fifo` blocks: what is on its way and what waits there;
// - a controller port takes the transactions of its fabric ports in turn and offers their blocks one by one;
// - the arbiter takes a block a clock, from the ports in turn, as long as the window of `window` blocks has room; a block
//   keeps its place until its data is out of the controller and the place is given back, `hold` clocks after its column
//   command;
// - the scheduler gives the DRAM a command a clock: a column command for the oldest block whose row is open and whose
//   timing allows it; else a precharge or an activation for the oldest block of a bank whose open row nobody asks for;
// - a write joins one that waits for the same block;
// - reads come first: writes are served when no read waits, or after they waited `starve` clocks, then `run` of them;
// - data goes back in the order of the requests of a fabric port, a block in `beat` clocks of the controller port;
// - a refresh closes all banks.
// A block is what one DRAM burst carries. Time is counted in clocks of the controller. Everything is integer arithmetic:
// equal inputs give equal results.

#ifndef TELLME_DRAM_HPP
#define TELLME_DRAM_HPP

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace dram {

constexpr int kPorts = 8, kBanks = 16, kGroups = 4, kWindow = 64, kBursts = 64, kRing = 2048;

struct Settings {
    int clock_khz = 0, fabric_khz = 1;  // of the controller (0: there is no such model) and of the ports
    // Bytes of a block, and where its address has bank group, bank and row.
    int block = 64, group_low = 6, group_bits = 1, bank_low = 14, bank_bits = 2, row_low = 16;
    // DRAM timing by JEDEC's names; wtp and wtr count from the write command, cl up to the last data.
    int rcd = 0, rp = 0, ras = 0, rc = 0, rrd_s = 0, rrd_l = 0, faw = 0, ccd_s = 1, ccd_l = 1, rtp = 0, wtp = 0;
    int rtw = 0, wtr_s = 0, wtr_l = 0, cl = 0, refi = 0, rfc = 0;
    int window = 32, hold = 0, starve = 64, run = 8;           // the controller
    int bursts = 8, split = 4, fifo = 32, beat = 4, path = 0;   // the ports
    int xpi[kPorts] = {0, 1, 2, 3, 4, 5, 6, 7};                 // controller port of each fabric port

    // Reads "name:value,name:value". Gives what it does not understand, or nothing.
    std::string parse(const std::string& text) {
        const std::map<std::string, int*> names = {
            {"clock_khz", &clock_khz}, {"fabric_khz", &fabric_khz}, {"block", &block}, {"group_low", &group_low},
            {"group_bits", &group_bits}, {"bank_low", &bank_low}, {"bank_bits", &bank_bits}, {"row_low", &row_low},
            {"rcd", &rcd}, {"rp", &rp}, {"ras", &ras}, {"rc", &rc}, {"rrd_s", &rrd_s}, {"rrd_l", &rrd_l}, {"faw", &faw},
            {"ccd_s", &ccd_s}, {"ccd_l", &ccd_l}, {"rtp", &rtp}, {"wtp", &wtp}, {"rtw", &rtw}, {"wtr_s", &wtr_s},
            {"wtr_l", &wtr_l}, {"cl", &cl}, {"refi", &refi}, {"rfc", &rfc}, {"window", &window}, {"hold", &hold},
            {"starve", &starve}, {"run", &run}, {"bursts", &bursts}, {"split", &split},
            {"fifo", &fifo}, {"beat", &beat}, {"path", &path}, {"xpi0", xpi}, {"xpi1", xpi + 1}, {"xpi2", xpi + 2},
            {"xpi3", xpi + 3}, {"xpi4", xpi + 4}, {"xpi5", xpi + 5}, {"xpi6", xpi + 6}, {"xpi7", xpi + 7}};
        for (size_t at = 0, end; at < text.size(); at = end + 1) {
            end = std::min(text.find(',', at), text.size());
            const size_t cut = text.find(':', at);
            const auto found = names.find(text.substr(at, std::min(cut, end) - at));
            if (cut >= end || found == names.end()) return text.substr(at, end - at);
            *found->second = static_cast<int>(std::strtoul(text.c_str() + cut + 1, nullptr, 0));
        }
        for (const int x : xpi)
            if (x < 0 || x >= kPorts) return "xpi";
        if (window < 1 || window > kWindow || bursts < 1 || bursts > kBursts || fabric_khz < 1) return "limits";
        if (bank_bits + group_bits > 4 || group_bits > 2 || split < 1 || fifo < split) return "limits";
        return "";
    }
};

enum Kind : int { kRead = 0, kWrite = 1, kActivate = 2, kPrecharge = 3, kRefresh = 4 };

struct Command {  // to the DRAM
    uint64_t clock;
    int32_t kind, bank;
    uint32_t row;
};

class Memory {
  public:
    Settings s;
    std::vector<Command>* log = nullptr;  // where to write all commands down
    uint64_t now = 0, reads = 0, writes = 0, activates = 0, refreshes = 0;

    // Takes a burst of `bytes` at `address`; its blocks come in order. Gives the number of its first block.
    uint32_t read(int port, uint64_t address, uint64_t bytes) {
        Port& p = ports[port];
        const uint64_t first = address / s.block;
        const auto blocks = static_cast<uint32_t>((address + bytes - 1) / s.block - first + 1);
        p.burst[p.put++ % kBursts] = {first, blocks, now + s.path / 2};
        p.asked += blocks;
        stir(port);
        return p.asked - blocks;
    }

    // Whether the block of that number is in the port's FIFO.
    bool arrived(int port, uint32_t number) const {
        const Port& p = ports[port];
        return static_cast<int32_t>(p.come - number) > 0 && p.seen[number % kRing] <= now;
    }

    // One block has left the FIFO, whichever.
    void take(int port) {
        ports[port].taken++;
        stir(port);
    }

    // Whether the FIFO has room for another block to write.
    bool room(int port) const { return static_cast<int>(ports[port].put_writes - ports[port].sent) < s.fifo; }

    // Takes a block to write, whose data is all there. Gives its number.
    uint32_t write(int port, uint64_t address) {
        Port& p = ports[port];
        p.write[p.put_writes % kRing] = {address / s.block, now + s.path / 2};
        writing = true;
        wake = now;
        return p.put_writes++;
    }

    // Whether the write of that number has been answered.
    bool answered(int port, uint32_t number) const {
        const Port& p = ports[port];
        return static_cast<int32_t>(p.sent - number) > 0 && p.reply[number % kRing] <= now;
    }

    // Forgets what a port asked for; what is in the window still runs.
    void reset(int port) {
        Port& p = ports[port];
        if (xpis[s.xpi[port]].port == port) xpis[s.xpi[port]].left = 0;
        p.get = p.put;
        p.done = 0;
        p.asked = p.taken = p.issued;
        p.sent = p.put_writes;
    }

    // One cycle of the fabric.
    void cycle() {
        phase += s.clock_khz;
        uint64_t end = now;
        for (; phase >= static_cast<uint64_t>(s.fabric_khz); phase -= s.fabric_khz) end++;
        while (now < end) {
            if (wake <= now) {
                wake = kNever;
                step();
            }
            now = std::min(std::max(wake, now + 1), end);
        }
    }

  private:
    static constexpr uint64_t kNever = ~0ULL;
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
        uint32_t put = 0, get = 0, done = 0;                  // bursts; blocks of the oldest that were sent on
        uint32_t asked = 0, issued = 0, come = 0, taken = 0;  // blocks
        uint64_t due[kRing] = {}, seen[kRing] = {};  // when a block is out of the DRAM (0: not yet), and in the FIFO
        Write write[kRing];
        uint32_t put_writes = 0, sent = 0;
        uint64_t reply[kRing] = {};
    };
    struct Entry {
        uint64_t age, block;
        uint32_t row, number;
        uint8_t bank, port;
    };
    struct Store {  // the window of a direction
        Entry entry[kWindow];
        uint64_t free = ~0ULL;
        int count = 0;                          // that wait
        uint64_t back[2 * kWindow] = {};        // when served ones give their places back
        uint32_t put = 0, get = 0;
        uint8_t at[kBanks][kWindow];            // of a bank, the oldest first
        int waiting[kBanks] = {}, hit[kBanks];  // hit: place in `at` of the oldest block in the open row
        uint32_t banks = 0, hits = 0;           // bits: anything waits in a bank; something hits its open row
        uint64_t served = 0;                    // since when nothing has been served
    };
    struct Bank {
        uint32_t row = 0;
        bool open = false;
        uint64_t act = 0, pre = 0, cas = 0;  // the earliest time of each command
    };
    struct Xpi {
        int port = 0, left = 0, turn = 0;  // whose transaction it is at, blocks left of it, whose turn is next
        uint64_t bus = 0;
        uint64_t write = 0;
    };

    Port ports[kPorts];
    Xpi xpis[kPorts];
    Store stores[2];  // reads, writes
    Bank banks[kBanks];
    uint64_t phase = 0, wake = 0, ages = 0;
    uint64_t cas_group[2][kGroups] = {}, cas_any[2] = {};
    uint64_t act_group[kGroups] = {}, act_any[4] = {}, refresh_at = 0;  // act_any: the last four activations
    unsigned acts = 0;
    uint32_t live = 0;  // controller ports that may have something to read
    bool writing = false;
    int mode = 0, quota = 0, turn_read = 0, turn_write = 0;

    void stir(int port) {
        live |= 1u << s.xpi[port];
        wake = now;
    }
    void soon(uint64_t at) { wake = std::min(wake, at); }

    int bank_of(uint64_t address) const {
        return static_cast<int>((address >> s.bank_low & ((1u << s.bank_bits) - 1)) << s.group_bits |
                                (address >> s.group_low & ((1u << s.group_bits) - 1)));
    }
    int group_of(int bank) const { return bank & ((1 << s.group_bits) - 1); }

    void look(Store& q, int b, int from = 0) {  // finds the oldest hit of a bank anew
        q.hits &= ~(1u << b);
        if (!banks[b].open) return;
        for (int k = from; k < q.waiting[b]; k++)
            if (q.entry[q.at[b][k]].row == banks[b].row) {
                q.hit[b] = k;
                q.hits |= 1u << b;
                return;
            }
    }

    void enter(Store& q, int port, uint64_t block, uint32_t number) {
        const uint64_t address = block * s.block;
        const int e = __builtin_ctzll(q.free), b = bank_of(address);
        q.free &= q.free - 1;
        const auto row = static_cast<uint32_t>(address >> s.row_low);
        q.entry[e] = {ages++, block, row, number, static_cast<uint8_t>(b), static_cast<uint8_t>(port)};
        q.at[b][q.waiting[b]++] = static_cast<uint8_t>(e);
        if (!q.count++) q.served = now;
        q.banks |= 1u << b;
        if (!(q.hits >> b & 1) && banks[b].open && banks[b].row == row) {
            q.hit[b] = q.waiting[b] - 1;
            q.hits |= 1u << b;
        }
        soon(now + 1);
    }

    // Whether a write goes into one that waits for the same block.
    bool combine(uint64_t block) {
        const Store& q = stores[1];
        const int b = bank_of(block * s.block);
        for (int k = 0; k < q.waiting[b]; k++)
            if (q.entry[q.at[b][k]].block == block) return true;
        return false;
    }

    void note(Kind kind, int bank, uint32_t row, int later = 0) {
        if (log) log->push_back({now + later, kind, bank, row});
    }

    bool has_room(Store& q) {
        while (q.get != q.put && q.back[q.get % (2 * kWindow)] <= now) q.get++;
        if (q.count + static_cast<int>(q.put - q.get) < s.window) return true;
        if (q.get != q.put) soon(q.back[q.get % (2 * kWindow)]);
        return false;
    }

    // The arbiter's turn: one block into a window.
    void grant() {
        if (live && has_room(stores[0])) {
            // From the port whose turn it is on: first the bits at and above it, then those below.
            const uint32_t above = live >> turn_read << turn_read;
            for (uint32_t part : {above, live ^ above})
                for (; part; part &= part - 1) {
                    const int x = __builtin_ctz(part);
                    Xpi& c = xpis[x];
                    if (!c.left && !transact(x)) continue;
                    Port& p = ports[c.port];
                    const Burst& b = p.burst[p.get % kBursts];
                    p.due[p.issued % kRing] = 0;
                    enter(stores[0], c.port, b.block + p.done, p.issued++);
                    c.left--;
                    if (++p.done == b.blocks) {
                        p.done = 0;
                        p.get++;
                    }
                    turn_read = (x + 1) % kPorts;
                    return;
                }
        }
        if (writing && has_room(stores[1])) {
            writing = false;
            for (int n = 0; n < kPorts; n++) {
                const int i = (turn_write + n) % kPorts;
                Port& p = ports[i];
                if (p.sent == p.put_writes) continue;
                writing = true;
                Xpi& c = xpis[s.xpi[i]];
                const Write& w = p.write[p.sent % kRing];
                if (const uint64_t at = std::max(w.from, c.write); at > now) {
                    soon(at);
                    continue;
                }
                c.write = now + s.beat;
                p.reply[p.sent % kRing] = now + s.path - s.path / 2;
                if (combine(w.block)) soon(now + 1);
                else enter(stores[1], i, w.block, p.sent);
                p.sent++;
                turn_write = (i + 1) % kPorts;
                return;
            }
        }
    }

    // The next transaction of a controller port: of its fabric ports in turn, one whose data has room.
    bool transact(int x) {
        bool later = false;
        for (int n = 0; n < kPorts; n++) {
            const int i = (xpis[x].turn + n) % kPorts;
            Port& p = ports[i];
            if (s.xpi[i] != x || p.get == p.put) continue;
            const Burst& b = p.burst[p.get % kBursts];
            if (b.from > now) {
                later = true;
                soon(b.from);
                continue;
            }
            const int blocks = std::min<int>(s.split, b.blocks - p.done);
            if (static_cast<int>(p.issued - p.taken) + blocks > s.fifo) continue;
            xpis[x].port = i;
            xpis[x].left = blocks;
            xpis[x].turn = (i + 1) % kPorts;
            return true;
        }
        if (!later) live &= ~(1u << x);
        return false;
    }

    bool column() {
        Store& q = stores[mode];
        int best = -1;
        uint64_t age = kNever;
        for (uint32_t m = q.hits; m; m &= m - 1) {
            const int b = __builtin_ctz(m);
            const uint64_t at = std::max(banks[b].cas, std::max(cas_group[mode][group_of(b)], cas_any[mode]));
            if (at > now) {
                soon(at);
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
        const Entry& entry = q.entry[e];
        note(mode ? kWrite : kRead, best, entry.row);
        std::memmove(q.at[best] + k, q.at[best] + k + 1, q.waiting[best] - k - 1);
        if (!--q.waiting[best]) q.banks &= ~(1u << best);
        q.free |= 1ULL << e;
        q.count--;
        q.served = now;
        look(q, best, k);  // later ones of the row are behind the place where this one was
        for (int i = 0; i < 1 << s.group_bits; i++)
            cas_group[mode][i] = std::max(cas_group[mode][i], now + (i == g ? s.ccd_l : s.ccd_s));
        if (mode == 0) {
            reads++;
            if (s.hold) q.back[q.put++ % (2 * kWindow)] = now + s.hold;
            banks[best].pre = std::max(banks[best].pre, now + s.rtp);
            cas_any[1] = now + s.rtw;
            deliver(entry.port, entry.number, now + s.cl);
        } else {
            writes++;
            banks[best].pre = std::max(banks[best].pre, now + s.wtp);
            for (int i = 0; i < 1 << s.group_bits; i++)
                cas_group[0][i] = std::max(cas_group[0][i], now + (i == g ? s.wtr_l : s.wtr_s));
        }
        if (quota) quota--;
        soon(now + 1);
        return true;
    }

    // The data of a block is there: what is now in order goes back to its port.
    void deliver(int port, uint32_t number, uint64_t at) {
        Port& p = ports[port];
        p.due[number % kRing] = at;
        Xpi& c = xpis[s.xpi[port]];
        for (; p.come != p.issued && p.due[p.come % kRing]; p.come++) {
            c.bus = std::max(c.bus + s.beat, p.due[p.come % kRing]);
            p.seen[p.come % kRing] = c.bus + (s.path - s.path / 2);
        }
    }

    void row() {
        const Store& q = stores[mode];
        int best = -1;
        uint64_t age = kNever;
        const uint64_t faw = acts < 4 ? 0 : act_any[acts % 4] + s.faw;
        for (uint32_t m = q.banks & ~q.hits; m; m &= m - 1) {
            const int b = __builtin_ctz(m);
            const Bank& bank = banks[b];
            const Entry& first = q.entry[q.at[b][0]];
            const uint64_t at = bank.open ? bank.pre : std::max(bank.act, std::max(faw, act_group[group_of(b)]));
            if (at > now) {
                soon(at);
                continue;
            }
            if (first.age < age) {
                age = first.age;
                best = b;
            }
        }
        if (best < 0) return;
        Bank& bank = banks[best];
        bank.open = !bank.open;
        if (bank.open) {
            activates++;
            bank.row = q.entry[q.at[best][0]].row;
            note(kActivate, best, bank.row);
            bank.cas = now + s.rcd;
            bank.pre = now + s.ras;
            bank.act = now + s.rc;
            for (int i = 0; i < 1 << s.group_bits; i++)
                act_group[i] = std::max(act_group[i], now + (i == group_of(best) ? s.rrd_l : s.rrd_s));
            act_any[acts++ % 4] = now;
        } else {
            note(kPrecharge, best, bank.row);
            bank.act = std::max(bank.act, now + s.rp);
        }
        look(stores[0], best);
        look(stores[1], best);
        soon(now + 1);
    }

    bool refresh() {  // whether it keeps the DRAM from everything else
        if (!s.refi) return false;
        if (!refresh_at) refresh_at = s.refi;
        if (now < refresh_at) {
            soon(refresh_at);
            return false;
        }
        uint64_t at = now;
        for (const Bank& b : banks)
            if (b.open) at = std::max(at, b.pre);
        if (at > now) {
            soon(at);
            return true;
        }
        for (int b = 0; b < kBanks; b++)
            if (banks[b].open) note(kPrecharge, b, banks[b].row);
        note(kRefresh, 0, 0, s.rp);
        for (Bank& b : banks) {
            b.open = false;
            b.act = std::max(b.act, now + s.rp) + s.rfc;
        }
        stores[0].hits = stores[1].hits = 0;
        refreshes++;
        refresh_at += s.refi;
        soon(now + 1);
        return true;
    }

    void direct() {  // reads or writes
        Store &r = stores[0], &w = stores[1];
        if (mode == 0 && w.count) {
            if (!r.count || now - w.served >= static_cast<uint64_t>(s.starve)) {
                mode = 1;
                quota = s.run;
            } else {
                soon(w.served + s.starve);
            }
        } else if (mode == 1 && (!w.count || (r.count && !quota))) {
            mode = 0;
            w.served = now;
        }
    }

    void step() {
        grant();
        if (refresh()) return;
        direct();
        if (!column()) row();
    }
};

}  // namespace dram

#endif
