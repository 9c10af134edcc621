// What warpgroups do: products, their fences, commits and waits.
#include "warpgroups.h"

#include <string.h>

#include <algorithm>

#include "describe.h"
#include "matrices.h"
#include "numbers.h"
#include "products.h"
#include "rendezvous.h"

namespace emulator {

namespace {

// What registers hold while a product is under way: a NaN that no arithmetic makes.
constexpr uint32_t kUnderWay = 0xffc0deadu;

constexpr const char* kNoFence = "wgmma without fence";
constexpr const char* kTouchedSinceFence = "registers of a product were touched after its fence";
constexpr const char* kOperandsDiffer = "operands of a warpgroup's product differ";

void note_touched(Lane& lane, const char* what) {
    Faults& faults = lane.launch->faults;
    if (faults.repeated(fault::kRegistersTouched, lane.site)) return;
    faults.add(fault::kRegistersTouched, lane.site,
               print("%s of %s, at or after %s:%d", what, describe(lane).c_str(), lane.site.file, lane.site.line));
}

// While registers are under way, and from a fence on, accesses to the lanes' own stacks are looked at as well.
void watch(Warp& warp) {
    if (warp.block->launch->options.detector == 0) return;
    const bool watched = warp.products.watched();
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
        Lane& lane = warp.lanes[i];
        lane.own = watched ? OwnMemory{0, 0} : lane.stack;
        if (&lane == current) own = lane.own;
    }
}

void carry_out_oldest(Warpgroup& warpgroup) {
    const SharedMemory& shared = warpgroup.block->shared;
    carry_out(warpgroup.pending.front(), shared.base, warpgroup.block->launch->request->shared_bytes);
    warpgroup.pending.pop_front();
}

// ---- Registers -----------------------------------------------------------------------------------------------------------

// Element (row, column) of a warp's rows of c: mma.m16n8k16's layout, blocks of 8 columns one after the other.
template <class Each>
void for_fragment(uint32_t lane, uint32_t columns, Each each) {
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t block = 0; block < columns / 8; ++block) {
        for (uint32_t half = 0; half < 2; ++half) {
            const uint32_t word = block * 4 + half * 2, at = (g + half * 8) * columns + block * 8 + 2 * t;
            each(word, at);
            each(word + 1, at + 1);
        }
    }
}

bool overlap(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
    const auto x = reinterpret_cast<uintptr_t>(a), y = reinterpret_cast<uintptr_t>(b);
    return x < y + b_bytes && y < x + a_bytes;
}

struct Registers {
    float* c;
    const uint32_t* a;
};

// A fence orders what lanes did with their registers before; what they did since is not.
void check_fenced(Warp& warp, uint32_t columns) {
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
        const Registers& mine = argument_of<Registers>(warp, i);
        for (const OwnMemory& each : warp.lanes[i].touched) {
            const void* at = reinterpret_cast<const void*>(each.low);
            const bool is_c = overlap(at, each.bytes, mine.c, columns / 2 * sizeof(float));
            if (!is_c && (mine.a == nullptr || !overlap(at, each.bytes, mine.a, sizeof(HeldOperand::words[0])))) continue;
            refuse(warp.lanes[i], kTouchedSinceFence, is_c ? ": c" : ": A");
        }
    }
}

// c of a warp is under way from now on, if it is not already.
Accumulator* take_accumulator(Warp& warp, uint32_t columns, bool accumulate) {
    WarpProducts& products = warp.products;
    Lane& first = warp.lanes[0];
    const Registers& mine = argument_of<Registers>(warp, 0);
    for (const auto& each : products.accumulators) {
        if (each->registers[0] == mine.c && each->columns == columns) return each.get();
        if (overlap(each->registers[0], each->words() * sizeof(float), mine.c, columns / 2 * sizeof(float))) {
            note_touched(first, "another product takes a part of c");
        }
    }
    for (const auto& each : products.operands) {
        if (overlap(each->registers[0], sizeof each->words[0], mine.c, columns / 2 * sizeof(float))) {
            note_touched(first, "another product takes A for c");
        }
    }
    auto made = std::make_unique<Accumulator>();
    made->columns = columns;
    made->values.resize(kWarpRows * columns);
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
        float* c = made->registers[i] = argument_of<Registers>(warp, i).c;
        if (accumulate) for_fragment(i, columns, [&](uint32_t word, uint32_t at) { made->values[at] = c[word]; });
        std::fill_n(c, made->words(), float_of(kUnderWay));
    }
    products.accumulators.push_back(std::move(made));
    return products.accumulators.back().get();
}

void give_back(Warp& warp, const Accumulator& c) {
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
        float* to = c.registers[i];
        bool touched = false;
        for_fragment(i, c.columns, [&](uint32_t word, uint32_t at) {
            touched |= bits_of(to[word]) != kUnderWay;
            to[word] = c.values[at];
        });
        if (touched) note_touched(warp.lanes[i], "c, when it was waited for,");
    }
}

// A in registers: a warp's rows, in the layout of mma.m16n8k16.
void take_operand(Warp& warp, uint16_t* rows, uint32_t group) {
    auto held = std::make_unique<HeldOperand>();
    held->group = group;
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
        const uint32_t* a = held->registers[i] = argument_of<Registers>(warp, i).a;
        memcpy(held->words[i], a, sizeof held->words[i]);
        const uint32_t g = i / 4, t = i % 4;
        for (uint32_t j = 0; j < 4; ++j) {
            uint16_t* to = rows + (g + j % 2 * 8) * kProductDepth + 2 * t + j / 2 * 8;
            to[0] = static_cast<uint16_t>(a[j]);
            to[1] = static_cast<uint16_t>(a[j] >> 16);
        }
    }
    for (const auto& each : warp.products.accumulators) {
        if (overlap(each->registers[0], each->words() * sizeof(float), held->registers[0], sizeof held->words[0])) {
            note_touched(warp.lanes[0], "another product takes c for A");
        }
    }
    warp.products.operands.push_back(std::move(held));
}

// ---- Products ------------------------------------------------------------------------------------------------------------

struct Call {
    Registers registers;        // first, as functions above look at it
    uint64_t a, b;
    bool accumulate;
    ProductForm form;
};

bool same(const ProductForm& x, const ProductForm& y) {
    return x.columns == y.columns && x.is_f16 == y.is_f16 && x.transpose_a == y.transpose_a && x.transpose_b == y.transpose_b;
}
bool same(const Call& x, const Call& y) {
    return x.a == y.a && x.b == y.b && x.accumulate == y.accumulate && same(x.form, y.form) &&
           (x.registers.a == nullptr) == (y.registers.a == nullptr);
}

void check_matrix(Lane& lane, const Matrix& matrix, const char* name) {
    if (const char* fault = matrix.fault()) refuse(lane, fault, print(", matrix %s", name));
}

// All four warps have come.
void issue(Lane& lane, Warpgroup& warpgroup, const Call& call) {
    Launch& launch = *lane.launch;
    const uint32_t group = lane.warp->products.committed + 1;
    for (uint32_t w = 0; w < kWarpgroupWarps; ++w) {
        Warp& warp = warpgroup.warps[w];
        for (uint32_t i = 0; i < kWarpLanes; ++i) {
            if (same(argument_of<Call>(warp, i), call)) continue;
            refuse(lane, kOperandsDiffer, " and " + describe(warp.lanes[i]));
        }
        if (warp.products.committed + 1 != group) {
            diverged(lane, "a product", lane.site, "one of another group", warpgroup.site);
        }
        if (!warp.products.fenced) refuse(warp.lanes[0], kNoFence, "");
        check_fenced(warp, call.form.columns);
    }
    const bool a_in_registers = call.registers.a != nullptr;
    const Matrix a(call.a, kProductRows, call.form.transpose_a), b(call.b, call.form.columns, call.form.transpose_b);
    std::vector<Span> spans;
    if (!a_in_registers) {
        check_matrix(lane, a, "A");
        a.append_spans(spans);
    }
    check_matrix(lane, b, "B");
    b.append_spans(spans);
    look_at_product(warpgroup, lane, group, spans);

    Product product = {call.form, call.accumulate, call.a, call.b, {}, {}, group};
    if (a_in_registers) product.a_elements.resize(kProductRows * kProductDepth);
    for (uint32_t w = 0; w < kWarpgroupWarps; ++w) {
        Warp& warp = warpgroup.warps[w];
        product.c[w] = take_accumulator(warp, call.form.columns, call.accumulate);
        product.c[w]->group = group;
        if (a_in_registers) take_operand(warp, &product.a_elements[w * kWarpRows * kProductDepth], group);
        watch(warp);
    }
    warpgroup.pending.push_back(std::move(product));
    if (static_cast<CopyTiming>(launch.options.copies) == CopyTiming::kEarly) carry_out_oldest(warpgroup);
}

void multiply(const Call& call, Site site) {
    Lane& lane = *current;
    if (!come(lane, "multiply", site, const_cast<Call*>(&call))) {
        wait(lane, State::kAtCollective);
        return;
    }
    Warp& warp = *lane.warp;
    if (warp.warpgroup == nullptr) refuse(lane, fault::kNoWarpgroup, "");
    Warpgroup& warpgroup = *warp.warpgroup;
    for (uint32_t w = 0; w < kWarpgroupWarps; ++w) {
        if (warpgroup.warps[w].exited != 0) diverged(lane, "a product", site, "exit", site);
    }
    if (warpgroup.arrived == 0) {
        warpgroup.site = site;
    } else if (!same_site(site, warpgroup.site)) {
        diverged(lane, "a product", site, "another one", warpgroup.site);
    }
    warpgroup.arrived |= 1u << warp.index % kWarpgroupWarps;
    if (warpgroup.arrived != (1u << kWarpgroupWarps) - 1) {
        wait_together(lane, State::kAtProduct);
        return;
    }
    warpgroup.arrived = 0;
    issue(lane, warpgroup, call);
    for (uint32_t w = 0; w < kWarpgroupWarps; ++w) go_on(warpgroup.warps[w]);
    maybe_preempt(lane);
}

// All products of the warpgroup up to a group are done, and this warp gets its registers back.
void complete(Warp& warp, uint32_t group) {
    Warpgroup& warpgroup = *warp.warpgroup;
    WarpProducts& products = warp.products;
    products.completed = group;
    while (!warpgroup.pending.empty() && warpgroup.pending.front().group <= group) carry_out_oldest(warpgroup);
    for (const auto& each : products.operands) {
        if (each->group > group) continue;
        for (uint32_t i = 0; i < kWarpLanes; ++i) {
            if (memcmp(each->registers[i], each->words[i], sizeof each->words[i]) != 0) {
                note_touched(warp.lanes[i], "A, when it was waited for,");
            }
        }
    }
    for (const auto& each : products.accumulators) {
        if (each->group <= group) give_back(warp, *each);
    }
    auto done = [&](const auto& each) { return each->group <= group; };
    products.operands.erase(std::remove_if(products.operands.begin(), products.operands.end(), done), products.operands.end());
    products.accumulators.erase(std::remove_if(products.accumulators.begin(), products.accumulators.end(), done),
                                products.accumulators.end());
    watch(warp);
}

}  // namespace

void Warpgroup::reset() {
    arrived = 0;
    pending.clear();
    register_calls.clear();
}

void maybe_finish_products(Lane& lane) {
    Warpgroup* warpgroup = lane.warp->warpgroup;
    if (warpgroup == nullptr || warpgroup->pending.empty()) return;
    Launch& launch = *lane.launch;
    if (static_cast<CopyTiming>(launch.options.copies) != CopyTiming::kRandom) return;
    if (launch.random.one_in(4)) carry_out_oldest(*warpgroup);
}

void look_at_registers(Lane& lane, const void* address, size_t bytes) {
    const WarpProducts& products = lane.warp->products;
    for (const auto& each : products.accumulators) {
        if (overlap(address, bytes, each->registers[lane.lane], each->words() * sizeof(float))) note_touched(lane, "c");
    }
    for (const auto& each : products.operands) {
        if (overlap(address, bytes, each->registers[lane.lane], sizeof each->words[0])) note_touched(lane, "A");
    }
    if (!products.fenced) return;
    const auto at = reinterpret_cast<uintptr_t>(address);
    std::vector<OwnMemory>& touched = lane.touched;
    if (!touched.empty() && touched.back().low + touched.back().bytes == at) {
        touched.back().bytes += bytes;
    } else {
        touched.push_back({at, bytes});
    }
}

void multiply_shared(float* c, uint64_t a, uint64_t b, bool accumulate, ProductForm form, Site site) {
    multiply({{c, nullptr}, a, b, accumulate, form}, site);
}
void multiply_registers(float* c, const uint32_t* a, uint64_t b, bool accumulate, ProductForm form, Site site) {
    multiply({{c, a}, 0, b, accumulate, form}, site);
}

void warpgroup_fence(Site site) {
    Lane& lane = *current;
    if (!lane.launch->sites.enabled("warpgroup_fence", site)) return;
    meet(lane, "warpgroup_fence", site, nullptr, [](Warp& warp) {
        warp.products.fenced = true;
        for (uint32_t i = 0; i < kWarpLanes; ++i) warp.lanes[i].touched.clear();
        watch(warp);
    });
}

void warpgroup_commit(Site site) {
    Lane& lane = *current;
    if (!lane.launch->sites.enabled("warpgroup_commit", site)) return;
    meet(lane, "warpgroup_commit", site, nullptr, [](Warp& warp) {
        ++warp.products.committed;
        warp.products.fenced = false;
        watch(warp);
    });
}

// Groups complete in the order in which they were committed; products that belong to none yet are not waited for.
void warpgroup_wait(int pending, Site site) {
    Lane& lane = *current;
    if (!lane.launch->sites.enabled("warpgroup_wait", site)) return;
    uint32_t left = static_cast<uint32_t>(pending);
    meet(lane, "warpgroup_wait", site, &left, [](Warp& warp) {
        WarpProducts& products = warp.products;
        const uint32_t left = argument_of<uint32_t>(warp, 0);
        if (products.committed < left || products.committed - left <= products.completed) return;
        if (warp.warpgroup == nullptr) {
            products.completed = products.committed - left;
        } else {
            complete(warp, products.committed - left);
        }
    });
}

}  // namespace emulator
