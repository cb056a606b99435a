// CUDA's names for a C++ compiler of a CPU, so that kernels can be tested where there is no GPU.
//
// The threads of a block are fibers of one thread of the system: each runs until it waits at a barrier, and then the
// next one does. They run in order or in reverse: a kernel that lacks a barrier gives something else in one of the two.
// Of a kernel that is said to have no barrier, the threads are a loop.

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <utility>

using std::erf;
using std::exp;
using std::log;
using std::sqrt;
using std::tanh;

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

namespace host {

struct Size {
    unsigned x, y, z;
};

// Threads that wait for each other: a warp, or a block.
struct Group {
    int alive, arrived, generation;
};

struct Fiber {
    ucontext_t context;
    jmp_buf place;  // where it goes on: jumps, unlike switches of contexts, ask nothing of the system
    Size index;
    Group *warp, *waits_for;
    int generation, number;
    bool begun, done;
};

const int STACK = 1 << 16, LARGEST_BLOCK = 1024, WARP = 32;

jmp_buf scheduler;
Group block_group, warps[LARGEST_BLOCK / WARP];
Fiber fibers[LARGEST_BLOCK], *current;
const std::unique_ptr<char[]> stacks(new char[size_t(STACK) * LARGEST_BLOCK]);  // not zeros: most stays untouched
double slots[LARGEST_BLOCK];  // what the lanes of a warp show each other
void (*run)(void**);
void** run_arguments;
bool has_barriers, waited;  // what is said of a kernel, and whether it was wrong
bool misaligned;            // whether a vector lay at an address that is no multiple of its alignment

inline void open_if_complete(Group& group) {
    if (group.arrived < group.alive || group.alive == 0) return;
    group.arrived = 0;
    ++group.generation;
}

inline void pause() {
    if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}

inline void wait(Group& group) {
    if (!has_barriers) {
        waited = true;
        return;
    }
    ++group.arrived;
    current->waits_for = &group;
    current->generation = group.generation;
    open_if_complete(group);
    pause();
}

inline void leave(Group& group) {
    --group.alive;
    open_if_complete(group);
}

}  // namespace host

static host::Size threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { host::wait(host::block_group); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int distance) {
    host::Fiber* me = host::current;
    host::slots[me->number] = value;
    host::wait(*me->warp);
    const T other = T(host::slots[me->number ^ distance]);
    host::wait(*me->warp);
    return other;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

namespace host {

inline void fiber_body() {
    for (;;) {  // a thread of one block after the other
        run(run_arguments);
        current->done = true;
        leave(*current->warp);
        leave(block_group);
        pause();
    }
}

inline void resume(Fiber& fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {&stacks[size_t(fiber.number) * STACK], 0, size_t(STACK)};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_body, 0);
    setcontext(&fiber.context);
}

inline Size place_of(unsigned n) {
    return {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
}

// Runs one block; false where threads wait for one that never comes.
inline bool run_block(bool reversed) {
    const int threads = blockDim.x * blockDim.y * blockDim.z;
    if (!has_barriers) {
        for (int n = 0; n < threads; ++n) {
            threadIdx = place_of(reversed ? threads - 1 - n : n);
            run(run_arguments);
        }
        return true;
    }
    block_group = {threads, 0, 0};
    for (int warp = 0; warp * WARP < threads; ++warp)
        warps[warp] = {threads - warp * WARP < WARP ? threads - warp * WARP : WARP, 0, 0};
    for (int n = 0; n < threads; ++n) {
        Fiber& fiber = fibers[n];
        fiber.index = place_of(n);
        fiber.warp = &warps[n / WARP];
        fiber.waits_for = nullptr;
        fiber.number = n;
        fiber.done = false;
    }
    for (int done = 0; done < threads;) {
        bool moved = false;
        for (int step = 0; step < threads; ++step) {
            Fiber& fiber = fibers[reversed ? threads - 1 - step : step];
            if (fiber.done || (fiber.waits_for && fiber.waits_for->generation == fiber.generation)) continue;
            fiber.waits_for = nullptr;
            current = &fiber;
            threadIdx = fiber.index;
            resume(fiber);
            moved = true;
            done += fiber.done;
        }
        if (!moved) return false;
    }
    return true;
}

template <typename... Types, size_t... I>
void call(void (*kernel)(Types...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<Types*>(arguments[I])...);
}

template <typename... Types>
void call(void (*kernel)(Types...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<Types...>());
}

struct Entry {
    const char* name;
    void (*run)(void**);
    int arguments;
    bool has_barriers;
};

template <typename... Types>
constexpr int count_arguments(void (*)(Types...)) {
    return sizeof...(Types);
}

enum Status { FINE, UNKNOWN, WRONG_COUNT, DEADLOCK, UNEXPECTED_BARRIER, MISALIGNED };

inline Status launch(
    const Entry* entries, const char* name, const unsigned* grid, const unsigned* block, int count, void** arguments,
    bool reversed
) {
    while (entries->name && std::strcmp(entries->name, name)) ++entries;
    if (!entries->name) return UNKNOWN;
    if (entries->arguments != count) return WRONG_COUNT;
    run = entries->run;
    has_barriers = entries->has_barriers;
    waited = misaligned = false;
    run_arguments = arguments;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
                if (!run_block(reversed)) return DEADLOCK;
    return misaligned ? MISALIGNED : waited ? UNEXPECTED_BARRIER : FINE;
}

}  // namespace host

// What the compiler calls where a pointer is not aligned as its type asks: a CPU would read on, a GPU stops.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, uintptr_t) { host::misaligned = true; }

namespace host {

// cuBLAS's gemm: C = alpha op(A) op(B) + beta C, columns first

const int TF32 = 77;  // CUBLAS_COMPUTE_32F_FAST_TF32

inline double number(const void* array, int type, size_t at, int compute = 0) {
    if (type == 0 && compute == TF32) {  // 10 bits after the point, ties away from zero
        const unsigned bits = (__float_as_uint(static_cast<const float*>(array)[at]) + 0x1000u) & ~0x1fffu;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    if (type == 0) return static_cast<const float*>(array)[at];
    if (type == 1) return static_cast<const double*>(array)[at];
    const unsigned bits = static_cast<const uint16_t*>(array)[at];
    if (type == 14) {  // bfloat16
        const unsigned wide = bits << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;  // float16
    const double size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                        : exponent     ? std::ldexp(mantissa + 1024, exponent - 25)
                                       : std::ldexp(mantissa, -24);
    return bits >> 15 ? -size : size;
}

}  // namespace host

extern "C" int cublasGemmEx(
    void*, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, int a_type, int lda,
    const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc, int compute, int
) {
    // What cuBLAS asks of its arguments.
    if (lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m || a_type != b_type) return 7;
    if ((compute == 70) != (c_type == 1) || (compute != 68 && compute != 70 && compute != host::TF32)) return 15;
    const bool wide = c_type == 1;
    const double one = wide ? *static_cast<const double*>(alpha) : *static_cast<const float*>(alpha);
    const double kept = wide ? *static_cast<const double*>(beta) : *static_cast<const float*>(beta);
    for (int column = 0; column < n; ++column)
        for (int row = 0; row < m; ++row) {
            double sum = 0;
            for (int i = 0; i < k; ++i) {
                const size_t in_a = transpose_a ? i + size_t(row) * lda : row + size_t(i) * lda;
                const size_t in_b = transpose_b ? column + size_t(i) * ldb : i + size_t(column) * ldb;
                sum += host::number(a, a_type, in_a, compute) * host::number(b, b_type, in_b, compute);
            }
            const size_t at = row + size_t(column) * ldc;
            const double old = kept == 0 ? 0 : kept * host::number(c, c_type, at);
            if (wide)
                static_cast<double*>(c)[at] = one * sum + old;
            else
                static_cast<float*>(c)[at] = float(one * sum + old);
        }
    return 0;
}

extern "C" int cublasSetStream_v2(void*, void* stream) { return stream ? 0 : 1; }

// cuBLAS asks for an address that is a multiple of 256.
extern "C" int cublasSetWorkspace_v2(void*, void* workspace, size_t) { return uintptr_t(workspace) % 256 ? 7 : 0; }
